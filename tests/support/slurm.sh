#!/bin/bash
# tests/support/slurm.sh: a real Slurm on the pretend hosts of hosts.sh, without systemd.
#
#   slurm.sh check             exit 0 where its programs are installed, else says which is missing
#   slurm.sh DIR up [CPUS]     DIR as given to hosts.sh, whose first host becomes the controller and
#                              the place to submit from, the others the nodes with CPUS cores each (2)
#   slurm.sh DIR start NODE    a node's daemon again, after `hosts.sh DIR kill` and `start`
#   slurm.sh DIR exec COMMAND..   on the first host, with SLURM_CONF set
#
# Jobs of the partition `urgent` take nodes away from those of `main`, which are requeued.
# `hosts.sh DIR down` ends it: its daemons are processes of the hosts, its files lie in DIR.
set -eu

if [ "${1:-}" = check ]; then
  for program in munged slurmctld slurmd sbatch srun; do
    command -v $program > /dev/null || {
      echo "no Slurm: $program is not installed (launch/packages.txt)"
      exit 1
    }
  done
  exit 0
fi

[ $# -ge 2 ] || { sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 2; }
dir=$(cd "$1" && pwd)
shift
on() { "$(dirname "$0")/hosts.sh" "$dir" exec "$@"; }
mapfile -t names < "$dir/names"
controller=${names[0]} nodes=("${names[@]:1}")
slurm=$dir/slurm
export SLURM_CONF=$slurm/slurm.conf

address() { awk -v name="$1" '$2 == name { print $1 }' "$dir/hosts"; }

# Time limits as short as Slurm takes them: a node that is silent for 5 s is down; credentials, which
# a requeued job waits for, expire after 5 s.
configuration() {
  cat <<CONF
ClusterName=$(basename "$dir")
SlurmctldHost=$controller($(address "$controller"))
SlurmctldPort=16817
SlurmdPort=16818
SrunPortRange=17000-17999
AuthType=auth/munge
AuthInfo=socket=$slurm/munge.socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$slurm/state
SlurmdSpoolDir=$slurm/spool-%n
TmpFS=/dev/shm
SlurmctldPidFile=$slurm/slurmctld.pid
SlurmdPidFile=$slurm/slurmd-%n.pid
SlurmctldLogFile=$slurm/slurmctld.log
SlurmdLogFile=$slurm/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=1
MpiDefault=pmix
ReturnToService=2
SlurmdTimeout=5
SlurmctldTimeout=5
KillWait=2
MinJobAge=300
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
CONF
  for node in "${nodes[@]}"; do
    echo "NodeName=$node NodeAddr=$(address "$node") CPUs=$1 RealMemory=2000 State=UNKNOWN"
  done
  echo "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1"
  echo "PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2"
}

case $1 in
  up)
    mkdir -p "$slurm/state"
    head -c 128 /dev/urandom > "$slurm/munge.key"
    chmod 700 "$slurm"
    chmod 400 "$slurm/munge.key"
    configuration "${2:-2}" > "$SLURM_CONF"
    on "$controller" munged --force --key-file="$slurm/munge.key" --socket="$slurm/munge.socket" \
      --pid-file="$slurm/munged.pid" --log-file="$slurm/munged.log" --seed-file="$slurm/munge.seed"
    on "$controller" slurmctld -c -f "$SLURM_CONF"
    for node in "${nodes[@]}"; do on "$node" slurmd -f "$SLURM_CONF"; done
    for _ in {1..300}; do
      ready=$(on "$controller" sinfo -h -N -p main -t idle -o %N 2> /dev/null | wc -l)
      [ "$ready" = ${#nodes[@]} ] && exit 0
      sleep 0.1
    done
    cat "$slurm"/*.log >&2
    echo "slurm.sh: the nodes did not come up" >&2
    exit 1
    ;;
  start) on "$2" slurmd -f "$SLURM_CONF" ;;
  exec) on "$controller" "${@:2}" ;;
  *) echo "slurm.sh: unknown command '$1'" >&2; exit 2 ;;
esac
