# A batch job's first step, in the project's folder: `. scripts/activate.sh` (scripts/train.sbatch, launch=slurm).
# What your cluster wants loaded comes first, for example:
#     module purge
#     module load gcc/13 cuda/12.6
export CONDA_PREFIX="$PWD/.conda" PATH="$PWD/.conda/bin:$PATH" # `conda activate` needs a shell that conda has set up
. etc/conda/activate.d/project.sh
