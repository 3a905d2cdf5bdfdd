"""The settings; a package, for Hydra to find them beside the code that runs, which in a Slurm job is a copy."""
