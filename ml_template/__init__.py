"""The generator's own logic: what the answers mean and which are refused. Standard library only."""
