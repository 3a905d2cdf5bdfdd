"""Validated on several loaders."""
