# A batch job's first step, in the project's folder: `. scripts/activate.sh` (scripts/train.sbatch, launch=slurm).
# What your cluster wants loaded comes first, for example:
#     module purge
#     module load gcc/13 cuda/12.6
. .venv/bin/activate
