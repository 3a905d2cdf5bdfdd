#!/usr/bin/env bash
# Stop what start.sh started, by pid:  stop.sh FOLDER
S=$1
export SLURM_CONF=$S/slurm.conf
scancel --quiet --user=root
for _ in $(seq 150); do # a job that outlives its controller keeps on calling it
    if [ -z "$(squeue --noheader)" ]; then break; fi
    sleep 0.1
done
for file in "$S"/slurmd-n1.pid "$S"/slurmd-n2.pid "$S"/slurmctld.pid "$S"/munge/pid; do
    if [ -s "$file" ]; then kill "$(cat "$file")"; fi
done
