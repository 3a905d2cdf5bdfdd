#!/usr/bin/env bash
# Stop what start.sh started, by pid:  stop.sh FOLDER
S=$1
SLURM_CONF=$S/slurm.conf scancel --quiet --user=root
for file in "$S"/slurmd-n1.pid "$S"/slurmd-n2.pid "$S"/slurmctld.pid "$S"/munge/pid; do
    if [ -s "$file" ]; then kill "$(cat "$file")"; fi
done
