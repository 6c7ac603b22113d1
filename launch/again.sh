# shellcheck shell=bash
# Sourced by what starts a run again: slurm/train.sbatch and relaunch.sh.

# start_again CODE RUN_DIR LIMIT: true where a run that ended with this exit code should be started
# again: after an interruption (75), and after a failure that a new start may get over (a dead host,
# a broken connection, a file system that was away), as long as fewer than LIMIT such failures in a
# row came without a newer checkpoint. Says why. The count stands in RUN_DIR/failures.
start_again() {
  local code=$1 run_dir=$2 limit=$3 newest=none last='' count=0
  case $code in
    0) return 1 ;;
    75) echo "$run_dir: interrupted (75): it is started again"; return 0 ;;
    2 | 5 | 70)
      echo "$run_dir: exit code $code: another start would end alike"
      return 1
      ;;
  esac
  if [ -L "$run_dir/checkpoints/latest" ]; then newest=$(readlink "$run_dir/checkpoints/latest"); fi
  if [ -r "$run_dir/failures" ]; then read -r last count < "$run_dir/failures" || true; fi
  if [ "$last" = "$newest" ]; then count=$((count + 1)); else count=1; fi
  mkdir -p "$run_dir"
  echo "$newest $count" > "$run_dir/failures"
  if [ "$count" -ge "$limit" ]; then
    echo "$run_dir: exit code $code: failure $count without a checkpoint newer than $newest: given up"
    return 1
  fi
  echo "$run_dir: exit code $code: failure $count of at most $limit since checkpoint $newest:" \
    "it is started again"
}
