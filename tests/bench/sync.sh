#!/bin/bash
# Measures sums over ranks on this machine and on pretend hosts joined by 1 Gbit/s links, and writes
# docs/benchmarks/sync.md. Needs root for the hosts (tests/support/hosts.sh).
#   tests/bench/sync.sh [BUILD] [ROUNDS]
set -eu
cd "$(dirname "$0")/../.."
build=$(readlink -f "${1:-build/release}")
program=$build/tests/bench/amur_bench_sync amur=$build/src/app/amur
rounds=${2:-5}
report=docs/benchmarks/sync.md
place=$(mktemp -d "${TMPDIR:-/tmp}/amur-sync-XXXXXX")/bench
hosts=tests/support/hosts.sh
cores=$(env -u OMP_NUM_THREADS nproc)
"$hosts" check
"$hosts" "$place" up 4 1gbit > /dev/null
trap '"$hosts" "$place" down > /dev/null; rmdir "$(dirname "$place")"' EXIT
trap 'exit 1' INT TERM
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_mpi_yield_when_idle=1
export OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_rmaps_base_oversubscribe=1
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

# Ranks stay on the same cores wherever they run.
pinned="$(dirname "$place")/pinned"
printf '#!/bin/sh\nexec taskset -c $((OMPI_COMM_WORLD_RANK %% %d)) "$@"\n' "$cores" > "$pinned"
chmod +x "$pinned"
trap '"$hosts" "$place" down > /dev/null; rm -r "$(dirname "$place")"' EXIT

on_one() { timeout -k 5 600 mpirun -n "$1" "$pinned" "$program" "${@:2}"; }
on_hosts() { # HOSTS SLOTS COMMAND..
  local list
  list=$("$hosts" "$place" names | head -n "$1" | sed "s/\$/:$2/" | paste -sd,)
  timeout -k 5 600 "$hosts" "$place" exec "$("$hosts" "$place" names | head -n 1)" mpirun \
    --mca plm_rsh_agent "$PWD/tests/support/hosts_rsh.sh" \
    --host "$list" -n $(($1 * $2)) "$pinned" "${@:3}"
}

{
  cat << 'END'
# Sums over ranks

Written by `tests/bench/sync.sh`. Hosts are namespaces of one machine, joined by links of 1 Gbit/s; all ranks share its
cores, and rank r runs on the same core on every line. [scaling.md](../scaling.md) says what follows from it.

END
  echo "Machine: $(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | sort -u), $cores cores." \
    "Date: $(date -u +%Y-%m-%d). Load average before: $(cut -d' ' -f1-3 /proc/loadavg)."
  printf '\n## A message\n\n'
  echo 'Two hosts, one rank each, as `amur doctor --cluster` finds them:'
  on_hosts 2 1 "$amur" doctor --cluster --run-dir "$(dirname "$place")" |
    sed -nE 's/^(between machines|link) +/\n\1: /p'
  printf '\n## One vector\n'
  for n in 2 4; do echo; on_one $n sums 64 "$rounds"; done
  echo; on_hosts 2 1 "$program" sums 64 "$rounds"
  echo; on_hosts 4 1 "$program" sums 64 "$rounds"
  echo; on_hosts 2 2 "$program" sums 64 "$rounds"
  printf '\n## A step\n\nMedian (least-greatest); ratios are taken inside each round.\n'
  for n in 2 4; do echo; on_one $n step 24 "$rounds"; done
  echo; on_hosts 4 1 "$program" step 24 "$rounds"
  echo; on_hosts 2 2 "$program" step 24 "$rounds"
} > "$report"
