"""A schedule that steps with each batch, and an average of the weights."""
