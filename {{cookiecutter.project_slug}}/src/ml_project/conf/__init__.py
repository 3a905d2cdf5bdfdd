"""The settings; a package, for Hydra to find them next to the code that runs, which in a Slurm job is a copy."""
