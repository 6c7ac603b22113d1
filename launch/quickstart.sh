#!/bin/bash
# launch/quickstart.sh [--ranks N] [--config FILE] [--run-dir DIR] [--set KEY=VALUE]...
# Installs what is missing, builds Amur, trains, evaluates and shows the checkpoint. Run it again
# after an interruption: every part goes on where it was.
set -eu
. "$(dirname "$0")/common.sh"

ranks=2
config=configs/dictionary.yaml
run_dir=
settings=()
while [ $# -gt 0 ]; do
  case $1 in
    --ranks | --config | --run-dir | --set)
      [ $# -ge 2 ] || die "$1 needs a value"
      case $1 in
        --ranks) ranks=$2 ;;
        --config) config=$2 ;;
        --run-dir) run_dir=$2 ;;
        --set) settings+=(--set "$2") ;;
      esac
      shift 2
      ;;
    -h | --help) sed -n '2,4s/^# //p' "$0"; exit 0 ;;
    *) die "unknown option '$1'; use --ranks N, --config FILE, --run-dir DIR, --set KEY=VALUE" ;;
  esac
done
case $ranks in '' | *[!0-9]* | 0) die "--ranks is '$ranks', but must be a number of at least 1" ;; esac
[ -r "$config" ] || die "cannot read $config"
run_dir=${run_dir:-runs/$(basename "$config" .yaml)}
amur=build/release/src/app/amur

part install launch/setup.sh
part build configure_and_build release amur

mpi_environment
mpi=(mpirun -n "$ranks")
train() {
  local code=0
  "${mpi[@]}" "$amur" train "$config" --run-dir "$run_dir" "${settings[@]}" || code=$?
  if [ $code = 75 ]; then
    say "interrupted, a checkpoint is written: run launch/quickstart.sh again to go on"
    exit 75
  fi
  return $code
}
part "train ($ranks ranks)" train
part evaluate "${mpi[@]}" "$amur" eval "$run_dir"
part inspect "$amur" inspect "$run_dir/checkpoints/latest"

say "done; the parts took"
print_parts
cat <<TEXT
   configuration    $run_dir/config.yaml
   log, metrics     $run_dir/log.txt, $run_dir/metrics.jsonl
   checkpoint       $run_dir/checkpoints/$(readlink "$run_dir/checkpoints/latest")
TEXT
