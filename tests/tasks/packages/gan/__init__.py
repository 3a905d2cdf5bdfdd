"""A GAN: two optimizers, stepped by hand."""
