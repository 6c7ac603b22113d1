#!/bin/bash
# launch/gpu-check.sh [--built]: on a machine with an NVIDIA GPU, builds what is missing, says what
# `amur doctor` finds, runs every test that needs a GPU, once more under compute-sanitizer where there
# is one, the collectives over NCCL by several ranks on one GPU, and compares short trainings on the
# GPU, by one rank and by several, with the same on the CPU. Ends with what passed. Not passed where no
# GPU test ran.
#   --built   do not build: build/release was brought from another machine
set -eu
. "$(dirname "$0")/common.sh"

case ${1:-} in
  '') part build configure_and_build release amur test_kernels test_contrastive_loss \
    test_collectives test_nccl misbehave ;;
  --built) ;;
  -h | --help) sed -n '2,7s/^# //p' "$0"; exit 0 ;;
  *) die "unknown option '$1'; use --built or nothing" ;;
esac

amur=build/release/src/app/amur
tests=(build/release/tests/unit/{kernels/test_kernels,loss/test_contrastive_loss})
collectives=build/release/tests/unit/comm/test_collectives
side=build/release/tests/unit/comm/test_nccl
misbehave=build/release/tests/unit/comm/misbehave
for file in "$amur" "$(dirname "$amur")/libamur_cuda.so" "$(dirname "$amur")/libamur_nccl.so" \
  "${tests[@]}" "$collectives" "$side" "$misbehave"; do
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

# on_one_gpu RANKS COMMAND...: ranks that take each other for other machines, so that NCCL lets them
# share the GPU: everything goes through the sockets of this machine, and the ranks take turns on the
# GPU. It shows that calls, orders and sums are right. It cannot show NVLink, RDMA or how fast any of it
# is, nor kernels of several ranks that run at the same time.
on_one_gpu() (
  ranks=$1
  shift
  export NCCL_SOCKET_IFNAME=lo NCCL_IB_DISABLE=1 NCCL_P2P_DISABLE=1 NCCL_SHM_DISABLE=1 \
    NCCL_MNNVL_ENABLE=0 NCCL_MAX_CTAS=2 NCCL_ALGO=Ring NCCL_PROTO=Simple NCCL_RAS_ENABLE=0
  timeout -k 10 600 mpirun -n "$ranks" \
    bash -c 'NCCL_HOSTID=r${OMPI_COMM_WORLD_RANK:-$PMI_RANK} exec "$@"' rank "$@"
)

# Sums, gathers and broadcasts of tensors on the GPU against closed forms, by MPI and by NCCL.
collectives_by() {
  local cases
  cases=$(on_one_gpu 1 "$collectives" --gtest_filter='*/cuda_nccl' --gtest_list_tests |
    grep -c '^  ' || true)
  [ "$cases" -gt 0 ] || { say "$collectives has no case for NCCL"; return 1; }
  for ranks in "$@"; do
    on_one_gpu "$ranks" "$collectives" --gtest_filter='*/cuda_*' --gtest_brief=1 &&
      on_one_gpu "$ranks" "$side" --gtest_filter='*/cuda_*' --gtest_brief=1 || return
  done
}
part "collectives, 1 to 4 ranks" collectives_by 1 2 3 4

# A rank that never comes to a sum, and one that is killed on the way, end the job.
failures_end() {
  local kind code output
  for kind in nccl-stall nccl-kill; do
    code=0
    output=$(MISBEHAVE_FOLDER=$(dirname "$amur") on_one_gpu 3 "$misbehave" $kind 15 5 2>&1) || code=$?
    if [ $code = 0 ] || [ $code = 124 ]; then
      printf '%s\n' "$output" >&2
      say "$kind ended with $code"
      return 1
    fi
    [ $kind = nccl-kill ] || grep -q 'rank 2/3 .*is not in a collective' <<< "$output" || return
  done
}
part "failures" failures_end

# Eight steps on the CPU, on the GPU by one rank and by several, through host memory and by NCCL, data
# and tensor parallel, and half on each device: the same losses up to rounding.
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
  run() {  # RUN DEVICE RANKS STEPS [OPTION...]
    local name=$1 device=$2 ranks=$3 steps=$4
    shift 4
    on_one_gpu "$ranks" "$amur" train small.yaml --run-dir "$name" --device "$device" \
      --set "train.steps=$steps" "$@" 2> "$name.log" || { cat "$name.log" >&2; return 1; }
  }
  run cpu cpu 1 8 && run gpu cuda 1 8 && run two cuda 2 8 --comm mpi && run half cpu 1 4 &&
    run half cuda 1 8 && run nccl-1x1 cuda 1 8 --comm nccl && run nccl-2x1 cuda 2 8 --comm nccl &&
    run nccl-1x2 cuda 2 8 --comm nccl --set parallel.tp=2 &&
    run nccl-2x2 cuda 4 8 --comm nccl --set parallel.tp=2 || exit 1
  status=0
  for other in gpu two half nccl-1x1 nccl-2x1 nccl-1x2 nccl-2x2; do
    worst=$(paste <(losses cpu) <(losses $other) | awk '
      NF == 2 { d = ($1 - $2) / $1; if (d < 0) d = -d; if (!(d <= worst)) worst = d; ++n }
      END { print n == 8 ? worst + 0 : "not all steps are there" }')
    say "cpu and $other: losses differ by $worst at most"
    awk -v d="$worst" 'BEGIN { exit !(d "" ~ /^[0-9.e+-]+$/ && d < 1e-3) }' || status=1
  done
  exit $status
)
part "training" trainings_agree
say "not shown by one GPU: NVLink and RDMA, ranks that compute at the same time, any speed of NCCL"
say "passed, $cases cases on the GPU; the parts took"
print_parts
