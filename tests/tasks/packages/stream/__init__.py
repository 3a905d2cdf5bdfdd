"""A stream of examples whose length nobody knows."""
