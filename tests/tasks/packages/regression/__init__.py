"""Regression on a table: the progress of diabetes after a year."""
