#!/usr/bin/env bash
# A private Slurm of two pretended nodes on this machine, for root:  start.sh FOLDER PORT  (takes PORT to PORT + 2).
# The folder and its parents must be open to the munge user. Needs: apt-get install slurm-wlm munge (22.05 or newer).
set -euo pipefail
S=$1 PORT=$2
HOST=$(hostname -s)
mkdir -p "$S"/{state,n1,n2,gpu}
install -d -o munge -g munge -m 0755 "$S/munge"
head -c 1024 /dev/urandom >"$S/munge/key"
chown munge:munge "$S/munge/key"
chmod 0400 "$S/munge/key"
for i in 0 1; do mknod "$S/gpu/nvidia$i" c 1 3; done # /dev/null by another name: scheduled, never used

# config_overrides: a node may have more CPUs than the machine. No*InAddrAny: everything stays on loopback.
# cred_expire, sched_interval: a requeued job is back in 6 seconds instead of two minutes.
cat >"$S/slurm.conf" <<C
ClusterName=test
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=$PORT
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
SlurmdParameters=config_overrides
AuthType=auth/munge
AuthInfo=socket=$S/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$S/state
SlurmdSpoolDir=$S/%n
SlurmctldPidFile=$S/slurmctld.pid
SlurmdPidFile=$S/slurmd-%n.pid
SlurmctldLogFile=$S/slurmctld.log
SlurmdLogFile=$S/slurmd-%n.log
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=1,sched_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
DefMemPerCPU=1000
GresTypes=gpu
NodeName=n1 NodeHostname=$HOST NodeAddr=127.0.0.1 Port=$((PORT + 1)) CPUs=4 RealMemory=8000 Gres=gpu:2
NodeName=n2 NodeHostname=$HOST NodeAddr=127.0.0.1 Port=$((PORT + 2)) CPUs=4 RealMemory=8000 Gres=gpu:2
PartitionName=low  Nodes=n1,n2 State=UP Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=high Nodes=n1,n2 State=UP PriorityTier=10 PreemptMode=OFF
C
echo "CgroupPlugin=cgroup/v1" >"$S/cgroup.conf" # nothing is put into one; cgroup/v2 dies on hybrid cgroups
echo "Name=gpu File=$S/gpu/nvidia[0-1]" >"$S/gres.conf"

export SLURM_CONF=$S/slurm.conf
setpriv --reuid=munge --regid=munge --clear-groups munged --key-file="$S/munge/key" --socket="$S/munge/socket" \
    --pid-file="$S/munge/pid" --log-file="$S/munge/log" --seed-file="$S/munge/seed"
slurmctld -c -i
slurmd -N n1
slurmd -N n2
for _ in $(seq 100); do
    if [ "$(sinfo --noheader --partition=low --states=idle --format=%D 2>/dev/null)" = 2 ]; then exit 0; fi
    sleep 0.1
done
tail "$S"/*.log >&2
exit 1
