#!/bin/bash
# launch/relaunch.sh [OPTIONS] CONFIG [OPTIONS OF amur train]
# For sites without Slurm: starts `mpirun amur train` on the hosts that answer, and again after a
# failure, on those that are left, until the run is done. An interrupted run (exit code 75) is
# started again at once.
#   --hosts A,B,C     where ranks may run; each is asked before each start (this host)
#   --ranks N         ranks on each host (1)
#   --run-dir DIR     (runs/ and the name of CONFIG)
#   --failures N      failures without a newer checkpoint after which it gives up (3)
#   --amur PATH       the program (amur in PATH, else the one built here)
# Ctrl-C, SIGTERM and SIGUSR1 end the run with a checkpoint (75) and this script with it. mpirun and
# this script reach the hosts by ssh, or by the command in OMPI_MCA_plm_rsh_agent.
set -u
here=$(dirname "$(readlink -f "$0")")
. "$here/mpi.sh"
. "$here/again.sh"
die() { echo "relaunch.sh: $*" >&2; exit 2; }

hosts=$(hostname) ranks=1 failures=3 run_dir='' amur='' config='' arguments=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 0 ;;
    --hosts | --ranks | --failures | --run-dir | --amur)
      [ $# -ge 2 ] || die "$1 needs a value"
      option=${1#--}
      printf -v "${option//-/_}" %s "$2"
      shift
      ;;
    *) if [ -z "$config" ] && [[ $1 != -* ]]; then config=$1; else arguments+=("$1"); fi ;;
  esac
  shift
done
[ -n "$config" ] || die "which configuration? (--help)"
[ -r "$config" ] || die "cannot read '$config'"
for number in "$ranks" "$failures"; do
  [[ $number =~ ^[1-9][0-9]*$ ]] || die "'$number' must be a number of at least 1"
done
run_dir=${run_dir:-runs/$(basename "$config" .yaml)}
if [ -z "$amur" ]; then
  amur=$(command -v amur) || amur=$(readlink -f "$here/../build/release/src/app/amur")
fi
[ -x "$amur" ] || die "there is no program '$amur': build it or name it with --amur"
IFS=, read -r -a hosts <<< "$hosts"

# Those of the hosts that answer and have the program; says which do not.
agent=${OMPI_MCA_plm_rsh_agent:-ssh -o BatchMode=yes -o ConnectTimeout=5}
answers() {
  [ "$1" = "$(hostname)" ] || timeout -k 1 8 $agent "$1" test -x "$amur" < /dev/null > /dev/null 2>&1
}
find_hosts() {
  local host i asked=()
  for host in "${hosts[@]}"; do
    answers "$host" &
    asked+=($!)
  done
  left=()
  for i in "${!hosts[@]}"; do
    if wait "${asked[i]}"; then
      left+=("${hosts[i]}:$ranks")
    else
      echo "relaunch.sh: host ${hosts[i]} does not answer, or has no $amur: it is left out"
    fi
  done
}

# The run folder's lock of an earlier start is known by this.
export AMUR_JOB_ID=$(hostname)-$$ AMUR_RESTART_COUNT=0
stopping=no
job=
trap 'stopping=yes; [ -z "$job" ] || kill -USR1 $job 2> /dev/null' INT TERM USR1
while :; do
  find_hosts
  [ ${#left[@]} != 0 ] || { echo "relaunch.sh: no host is left"; exit 3; }
  echo "relaunch.sh: start $AMUR_RESTART_COUNT on $(IFS=,; echo "${left[*]}")"
  # In its own session: Ctrl-C is for this script, which passes it on.
  setsid mpirun -x AMUR_JOB_ID -x AMUR_RESTART_COUNT --host "$(IFS=,; echo "${left[*]}")" \
    -n $((ranks * ${#left[@]})) "$amur" train "$config" --run-dir "$run_dir" "${arguments[@]}" &
  job=$!
  while wait $job; code=$?; kill -0 $job 2> /dev/null; do :; done
  job=
  [ $stopping = no ] || exit $code
  start_again $code "$run_dir" "$failures" || exit $code
  AMUR_RESTART_COUNT=$((AMUR_RESTART_COUNT + 1))
done
