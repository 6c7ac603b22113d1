#!/bin/bash
# launch/gpu-check.sh [--built]: on a machine with an NVIDIA GPU, builds what is missing, says what
# `amur doctor` finds, runs every test that needs a GPU, once more under compute-sanitizer where there
# is one, and compares a short training on the GPU with the same on the CPU. Ends with what passed.
# Not passed where no GPU test ran.
#   --built   do not build: build/release was brought from another machine
set -eu
. "$(dirname "$0")/common.sh"

case ${1:-} in
  '') part build configure_and_build release amur test_kernels test_contrastive_loss ;;
  --built) ;;
  -h | --help) sed -n '2,6s/^# //p' "$0"; exit 0 ;;
  *) die "unknown option '$1'; use --built or nothing" ;;
esac

amur=build/release/src/app/amur
tests=(build/release/tests/unit/{kernels/test_kernels,loss/test_contrastive_loss})
for file in "$amur" "$(dirname "$amur")/libamur_cuda.so" "${tests[@]}"; do
  [ -e "$file" ] || die "$file is missing: build it where a CUDA compiler is (docs/gpu.md)"
done

say "doctor"
mpi_environment
report=$("$amur" doctor) || die "amur doctor failed"
printf '%s\n' "$report"
grep -q '^devices .*cuda:0' <<< "$report" || die "no GPU can be used here; the line 'gpu' above says why"

# The tests of a GPU are named /cuda or /cuda_TYPE, and exist only where a GPU is usable.
cases=0
for program in "${tests[@]}"; do
  found=$("$program" --gtest_filter='*/cuda*' --gtest_list_tests | grep -c '^  ' || true)
  [ "$found" -gt 0 ] || die "$program has no case for this GPU"
  cases=$((cases + found))
done
say "$cases cases on the GPU"
gpu_tests() {
  local program
  for program in "${tests[@]}"; do
    "$@" "$program" --gtest_filter='*/cuda*' --gtest_brief=1 || return 1
  done
}
part "tests" gpu_tests timeout -k 10 600
part "loss stage by two ranks" timeout -k 10 600 mpirun -n 2 "${tests[1]}" \
  --gtest_filter='*/cuda*' --gtest_brief=1
if command -v compute-sanitizer > /dev/null; then
  part "tests under memcheck" gpu_tests timeout -k 10 1200 compute-sanitizer --tool memcheck \
    --error-exitcode 9
  part "tests under racecheck" gpu_tests timeout -k 10 1200 compute-sanitizer --tool racecheck \
    --error-exitcode 9
else
  say "no compute-sanitizer is here: its runs are left out"
fi

# Eight steps on the CPU, on the GPU, on the GPU by two ranks, and half on each: the same losses up
# to rounding.
losses() { sed -n 's/.*"loss":\([-+0-9.e]*\).*/\1/p' "$1/metrics.jsonl"; }
trainings_agree() (
  amur=$PWD/$amur
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  cd "$folder"
  awk 'BEGIN {
    srand(1)
    for (i = 0; i < 400; ++i) {
      for (k = 0; k < 4; ++k) word[k] = int(100 * rand())
      printf "a%d b%d c%d\tx%d y%d z%d\n", word[0], word[1], word[2], word[2], word[1], word[0]
    }
  }' > pairs.tsv
  cat > small.yaml << 'YAML'
model: {layers: 2, hidden: 64, heads: 2, ffn: 128, max_length: 32, dropout: 0.1}
data: {vocab_size: 400, sources: [{format: tsv, path: pairs.tsv}]}
optimizer: {kind: tiger, learning_rate: 0.002, warmup_steps: 4}
train: {batch_size: 32, chunk_tokens: 256, steps: 8, schedule_steps: 8, seed: 3}
YAML
  run() {  # RUN DEVICE RANKS STEPS
    local launcher=()
    if [ "$3" -gt 1 ]; then launcher=(mpirun -n "$3"); fi
    timeout -k 10 600 "${launcher[@]}" "$amur" train small.yaml --run-dir "$1" --device "$2" \
      --set "train.steps=$4" 2> "$1.log" || { cat "$1.log" >&2; return 1; }
  }
  run cpu cpu 1 8 && run gpu cuda 1 8 && run two cuda 2 8 && run half cpu 1 4 &&
    run half cuda 1 8 || exit 1
  status=0
  for other in gpu two half; do
    worst=$(paste <(losses cpu) <(losses $other) | awk '
      NF == 2 { d = ($1 - $2) / $1; if (d < 0) d = -d; if (!(d <= worst)) worst = d; ++n }
      END { print n == 8 ? worst + 0 : "not all steps are there" }')
    say "cpu and $other: losses differ by $worst at most"
    awk -v d="$worst" 'BEGIN { exit !(d "" ~ /^[0-9.e+-]+$/ && d < 1e-3) }' || status=1
  done
  exit $status
)
part "training" trainings_agree
say "passed, $cases cases on the GPU; the parts took"
print_parts
