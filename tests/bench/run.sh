#!/bin/sh
# Measures training on this machine and writes docs/benchmarks/cpu.md, with everything that was
# printed in cpu.log beside it. Takes about three minutes on two idle cores.
#   tests/bench/run.sh [PROGRAM] [ROUNDS]
set -eu
cd "$(dirname "$0")/../.."
program=${1:-build/release/tests/bench/amur_bench_training}
rounds=${2:-3}
report=docs/benchmarks/cpu.md
log=docs/benchmarks/cpu.log
folder=$(mktemp -d "${TMPDIR:-/tmp}/amur-bench-XXXXXX")
trap 'rm -r "$folder"' EXIT
trap 'exit 1' INT TERM
[ "$(id -u)" = 0 ] && export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

cp /proc/loadavg "$folder/load"
"$program" vocabulary "$folder/vocabulary.model" > "$log" 2>&1
"$program" ratios "$folder/vocabulary.model" "$rounds" > "$folder/ratios" 2>> "$log"
cat "$folder/ratios" >> "$log"
for round in $(seq "$rounds"); do
  for ranks in 1 2; do
    mpirun --oversubscribe --bind-to none -n "$ranks" "$program" rate "$folder/vocabulary.model" 2 \
      >> "$folder/rates" 2>> "$log"
  done
done
cat "$folder/rates" >> "$log"

# For each precision: the rates of both grids, round by round, and the ratio in each round.
rates() {
  awk -v precision="$1" '
    $1 == precision && $2 == 1 { one[++n] = $(NF - 1) }
    $1 == precision && $2 == 2 { two[n] = $(NF - 1) }
    END {
      printf "| %s |", precision
      for (i = 1; i <= n; i++) printf "%s %.0f", (i > 1 ? "," : ""), one[i]
      printf " |"
      for (i = 1; i <= n; i++) printf "%s %.0f", (i > 1 ? "," : ""), two[i]
      printf " |"
      for (i = 1; i <= n; i++) printf "%s %.2f", (i > 1 ? "," : ""), two[i] / one[i]
      printf " |\n"
    }' "$folder/rates"
}

{
  cat << 'END'
# Speed of training on a CPU

Written by `tests/bench/run.sh`; all output of that run is in `cpu.log`. [README.md](README.md) says
what is measured and what the figures mean. Only ratios within one run compare machines and versions.

END
  echo "Machine: $(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | sort -u), $(nproc) cores." \
    "Date: $(date -u +%Y-%m-%d). Load average before: $(cut -d' ' -f1-3 "$folder/load")."
  echo
  cat "$folder/ratios"
  cat << 'END'

### One rank with two threads against two ranks with one

Pairs a second of the same global batches, the two in turn.

| | 1 rank | 2 ranks | 2 ranks / 1 rank |
| --- | --- | --- | --- |
END
  rates fp32
  rates bf16
} > "$report"
