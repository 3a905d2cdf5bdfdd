"""An autoencoder that logs nothing but its loss."""
