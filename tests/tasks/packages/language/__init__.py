"""A language model of characters."""
