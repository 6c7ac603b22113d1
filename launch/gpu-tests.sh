# shellcheck shell=bash
# Sourced by gpu-check.sh: what it needs built, and the parts `tests` and `sanitizer`. Where the device
# is `cpu` the same checks run without a GPU and without NCCL, to show that they work.

# shellcheck disable=SC2034  # used by gpu-check.sh and gpu-bundle.sh
gpu_targets=(amur test_kernels test_contrastive_loss test_loss_precision test_collectives test_nccl
  misbehave amur_bench_kernels amur_bench_training)
gpu_programs=(src/app/{amur,libamur_cuda.so,libamur_nccl.so}
  tests/unit/{kernels/test_kernels,loss/test_contrastive_loss,loss/test_loss_precision}
  tests/unit/comm/{test_collectives,test_nccl,misbehave}
  tests/bench/{amur_bench_kernels,amur_bench_training})
build=build/release
gpu_tests=("$build"/tests/unit/{kernels/test_kernels,loss/test_contrastive_loss,loss/test_loss_precision})

# Programs, libraries and MPI of an unpacked bundle, for ranks on one machine; CUDA's libraries where they
# are, the driver also where a container's image says it is.
use_bundle() {
  local folder
  AMUR_LIBRARY_PATH=$root/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  for folder in /usr/local/nvidia/lib64 "${CUDA_HOME:-/usr/local/cuda}"/{lib64,extras/CUPTI/lib64} \
    $(python3 -c 'import glob, sys; print(*(p for s in sys.path for p in glob.glob(s + "/nvidia/*/lib")))' \
      2> /dev/null); do
    [ ! -d "$folder" ] || AMUR_LIBRARY_PATH+=:$folder
  done
  export AMUR_LIBRARY_PATH LD_LIBRARY_PATH=$AMUR_LIBRARY_PATH PATH=$root/openmpi/bin:$PATH \
    OPAL_PREFIX=$root/openmpi OPAL_BINDIR=$root/openmpi/bin OPAL_LIBDIR=$root/lib \
    OPAL_PKGLIBDIR=$root/openmpi/lib/openmpi3 OPAL_PKGDATADIR=$root/openmpi/share/openmpi \
    OPAL_SYSCONFDIR=$root/openmpi/etc PMIX_PREFIX=$root/openmpi PMIX_LIBDIR=$root/lib \
    PMIX_PKGLIBDIR=$root/openmpi/lib/pmix OMPI_MCA_plm=isolated OMPI_MCA_pml=ob1 \
    OMPI_MCA_btl=self,vader,tcp OMPI_MCA_btl_vader_single_copy_mechanism=none
}

# Seconds until this part is over, at least 1.
left() { echo $((deadline > SECONDS ? deadline - SECONDS : 1)); }

# check NAME COMMAND...: goes on where it fails; what came out is written at once.
checks='' checks_failed=0
check() {
  local name=$1 begin=$SECONDS result=passed
  shift
  note=''
  if [ "$(left)" -lt 5 ]; then
    result="not run" note="the time was over" checks_failed=1
  else
    say "$name"
    "$@" || { result=FAILED; checks_failed=1; }
  fi
  say "$name: $result${note:+, $note}"
  checks+="${checks:+,
}  {\"name\": \"$name\", \"result\": \"$result${note:+, $note}\", \"seconds\": $((SECONDS - begin))}"
  # shellcheck disable=SC2154  # of gpu-check.sh
  printf '{"part": "%s", "device": "%s", "device_name": "%s", "checks": [\n%s\n]}\n' \
    "$part_name" "$device" "$device_name" "$checks" > "$out/$part_name.json"
}

# run_checks PART FUNCTION: its checks, their output in PART.log and results in PART.json.
run_checks() {
  {
    part_name=$1 deadline=$((SECONDS + $(limit_of "$1")))
    "$2"
    exit $checks_failed
  } 2>&1 | tee "$out/$1.log"
}

# together COMMAND...: each of them a line for the shell, all at once; fails where one does.
together() {
  local line job jobs=() status=0
  for line in "$@"; do
    eval "$line" &
    jobs+=($!)
  done
  for job in "${jobs[@]}"; do wait "$job" || status=1; done
  return $status
}

# The tests of a GPU are named /cuda or /cuda_TYPE, and exist only where a GPU is usable.
filter_of() {
  if [ "$device" = cuda ]; then
    printf '%s' '*/cuda*'
  elif [ -n "$small" ]; then
    printf '%s' 'All/GemmTest.Matches*_f32:All/NormTest.*/baseline_f32:All/ContrastiveLoss.ScaleAndBias*/cpu:All/LossPrecisionTest.Only*/cpu'
  else
    printf '%s' '*-*/cuda*'
  fi
}

# The cases of every program, in as many shares as there are cores for: their references are computed on
# the CPU. Fails where a program has no case.
device_cases() {
  local program shares share place folder ran cases=0 status=0
  folder=$(mktemp -d)
  shares=$(($(nproc) / 3))
  shares=$((shares < 1 ? 1 : shares > 5 ? 5 : shares))
  for program in "${gpu_tests[@]}"; do
    for ((share = 0; share < shares; ++share)); do
      place=$folder/$(basename "$program").$share
      GTEST_TOTAL_SHARDS=$shares GTEST_SHARD_INDEX=$share OMP_NUM_THREADS=1 timeout -k 5 "$(left)" "$program" \
        --gtest_filter="$(filter_of)" --gtest_brief=1 > "$place" 2>&1 || echo "ended with $?" >> "$place" &
    done
  done
  wait
  for program in "${gpu_tests[@]}"; do
    cat "$folder/$(basename "$program")".*
    ran=$(sed -n 's/^\[=*\] \([0-9]*\) tests\{0,1\} from .* ran.*/\1/p' "$folder/$(basename "$program")".* |
      awk '{ n += $1 } END { print n + 0 }')
    [ "$ran" -gt 0 ] || { say "$program has run no case for this device"; status=1; }
    cases=$((cases + ran))
  done
  ! grep -q '^ended with' "$folder"/* || status=1
  rm -r "$folder"
  note="$cases cases"
  return $status
}

# on_one_gpu RANKS COMMAND...: ranks that take each other for other machines, so that NCCL lets them
# share the GPU: everything goes through the sockets of this machine, and the ranks take turns on the
# GPU. It shows that calls, orders and sums are right. It cannot show NVLink, RDMA or how fast any of it
# is, nor kernels of several ranks that run at the same time.
on_one_gpu() (
  ranks=$1
  shift
  export NCCL_SOCKET_IFNAME=lo NCCL_IB_DISABLE=1 NCCL_P2P_DISABLE=1 NCCL_SHM_DISABLE=1 \
    NCCL_MNNVL_ENABLE=0 NCCL_MAX_CTAS=2 NCCL_ALGO=Ring NCCL_PROTO=Simple NCCL_RAS_ENABLE=0
  timeout -k 10 "$(left)" mpirun -n "$ranks" \
    bash -c 'NCCL_HOSTID=r${OMPI_COMM_WORLD_RANK:-$PMI_RANK} exec "$@"' rank "$@"
)

# Sums, gathers and broadcasts of tensors on the device against closed forms, by MPI and by NCCL.
collectives_by() {
  local cases ranks collectives=$build/tests/unit/comm/test_collectives side=$build/tests/unit/comm/test_nccl
  if [ "$device" = cpu ]; then
    for ranks in "$@"; do
      on_one_gpu "$ranks" "$collectives" --gtest_filter='*/host' --gtest_brief=1 || return
    done
    return
  fi
  cases=$(on_one_gpu 1 "$collectives" --gtest_filter='*/cuda_nccl' --gtest_list_tests |
    grep -c '^  ' || true)
  [ "$cases" -gt 0 ] || { say "$collectives has no case for NCCL"; return 1; }
  for ranks in "$@"; do
    on_one_gpu "$ranks" "$collectives" --gtest_filter='*/cuda_*' --gtest_brief=1 &&
      on_one_gpu "$ranks" "$side" --gtest_filter='*/cuda_*' --gtest_brief=1 || return
  done
}

# A rank that never comes to a sum, and one that is killed on the way, end the job.
failure_ends() {
  local code=0 output
  output=$(MISBEHAVE_FOLDER=$build/src/app on_one_gpu 3 $build/tests/unit/comm/misbehave "$1" 15 5 2>&1) || code=$?
  if [ $code = 0 ] || [ $code = 124 ]; then
    printf '%s\n' "$output" >&2
    say "$1 ended with $code"
    return 1
  fi
  [ "$1" != nccl-stall ] || grep -q 'rank 2/3 .*is not in a collective' <<< "$output"
}
failures_end() {
  if [ "$device" = cuda ]; then
    together "failure_ends nccl-stall" "failure_ends nccl-kill"
  else
    together "failure_ends stop" "failure_ends kill"
  fi
}

# Short trainings and what is made of them. Called in a folder of their own, see `in_folder`. One thread a
# rank: several of them run at once, and threads that wait for each other on too few cores stand still.
losses() { sed -n 's/.*"loss":\([-+0-9.e]*\).*/\1/p' "$1/metrics.jsonl"; }
in_folder() (  # COMMAND...
  amur=$PWD/$build/src/app/amur
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
parallel: {threads: 1}
YAML
  "$@"
)
run() {  # RUN DEVICE RANKS STEPS [OPTION...]
  local name=$1 where=$2 ranks=$3 steps=$4
  shift 4
  on_one_gpu "$ranks" "$amur" train small.yaml --run-dir "$name" --device "$where" \
    --set "train.steps=$steps" "$@" 2> "$name.log" || { cat "$name.log" >&2; return 1; }
}

# Those named against that of the CPU: the same losses up to rounding.
agree_with_cpu() {
  local other worst status=0
  for other in "$@"; do
    worst=$(paste <(losses cpu) <(losses "$other") | awk '
      NF == 2 { d = ($1 - $2) / $1; if (d < 0) d = -d; if (!(d <= worst)) worst = d; ++n }
      END { print n == 8 ? worst + 0 : "not all steps are there" }')
    say "the CPU and $other: losses differ by $worst at most"
    awk -v d="$worst" 'BEGIN { exit !(d "" ~ /^[0-9.e+-]+$/ && d < 1e-3) }' || status=1
  done
  return $status
}
same_losses() { cmp <(losses "$1") <(losses "$2") || { say "two runs differ: $1, $2"; return 1; }; }

# Eight steps on the CPU, on the device by one rank and by two through host memory, and half on each device,
# either first; on a GPU also twice the same.
trainings_agree() {
  local state fixed repeated=() status=0
  together "run cpu cpu 1 8" "run one $device 1 8" "run two $device 2 8 --comm mpi" \
    "run there cpu 1 4 && run there $device 1 8" "run back $device 1 4 && run back cpu 1 8" || status=1
  agree_with_cpu one two there back || status=1
  [ "$device" = cuda ] || return $status
  for state in fp32 bf16_weights bf16; do
    # Without measuring: two runs, each of which measures for itself, may choose other algorithms.
    fixed="--set optimizer.state=$state --set runtime.tune=false"
    repeated+=("run once-$state cuda 1 8 $fixed" "run again-$state cuda 1 8 $fixed")
  done
  # With it: what one checkpoint has chosen gives the same bits whenever it is taken up.
  together "${repeated[@]}" "run kept cuda 1 4 && cp -r kept kept-copy" || status=1
  together "run kept cuda 1 8" "run kept-copy cuda 1 8" || status=1
  for state in fp32 bf16_weights bf16; do same_losses once-$state again-$state || status=1; done
  same_losses kept kept-copy || status=1
  return $status
}

# The same steps by NCCL, data and tensor parallel; one after the other, since ranks wait for each other on
# the GPU that they share.
nccl_trainings_agree() {
  run cpu cpu 1 8 && run nccl-1x1 cuda 1 8 --comm nccl && run nccl-2x1 cuda 2 8 --comm nccl &&
    run nccl-1x2 cuda 2 8 --comm nccl --set parallel.tp=2 &&
    run nccl-2x2 cuda 4 8 --comm nccl --set parallel.tp=2 && agree_with_cpu nccl-{1x1,2x1,1x2,2x2}
}

# Gradients of every parameter against a reference in double, and embeddings of one model by both devices.
certified() {  # RANKS PRECISION
  on_one_gpu "$1" "$amur" verify-grad small.yaml --device "$device" --comm mpi --samples 48 \
    --set train.precision="$2" > "certificate-$1-$2" 2>&1 || { cat "certificate-$1-$2" >&2; return 1; }
}
embedded() {  # DEVICE
  "$amur" embed model --input texts.txt --output "$1.jsonl" --device "$1" 2> "embed-$1.log" ||
    { cat "embed-$1.log" >&2; return 1; }
}
models_agree() {
  cut -f 1 pairs.tsv > texts.txt
  together "certified 1 fp32" "certified 1 bf16" "certified 2 fp32" "certified 2 bf16" "run model cpu 1 2" || return
  embedded cpu && cp cpu.jsonl reference.jsonl && embedded "$device" || return
  python - reference.jsonl "$device.jsonl" << 'PYTHON'
import json, sys
read = lambda name: [json.loads(line)["embedding"] for line in open(name, encoding="utf-8")]
one, other = read(sys.argv[1]), read(sys.argv[2])
worst = max(abs(a - b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))
print(f"embeddings of {len(one)} texts differ by {worst:.1e} at most")
sys.exit(not (len(one) == 400 and worst < 1e-5))
PYTHON
}

# What is asked for most comes first, should the time not suffice.
gpu_checks() {
  check "kernels and loss stage" device_cases
  check "training" in_folder trainings_agree
  check "gradients and embeddings" in_folder models_agree
  check "loss stage by two ranks" on_one_gpu 2 "${gpu_tests[1]}" --gtest_filter="$(filter_of)" --gtest_brief=1
  if [ -n "$small" ]; then
    check "collectives, 1 and 2 ranks" collectives_by 1 2
  else
    check "collectives, 1 to 4 ranks" collectives_by 1 2 3 4
    [ "$device" = cpu ] || check "training over NCCL" in_folder nccl_trainings_agree
    check "failures" failures_end
  fi
  [ "$device" = cpu ] ||
    say "not shown by one GPU: NVLink and RDMA, ranks that compute at the same time, any speed of NCCL"
}

# sanitize TOOL: every suite of the device's cases under compute-sanitizer, half as many at a time as there
# are cores, those that do not begin before the deadline left out. The output of each, and a summary as
# `note`.
sanitize() {
  local program suite folder=$1 code=0
  folder=$(mktemp -d)
  for program in "${gpu_tests[@]}"; do
    "$program" --gtest_filter="$(filter_of)" --gtest_list_tests | sed -n 's/^\([A-Za-z0-9_/]*\.\).*/\1/p' |
      sed "s|^|$program |"
  done > "$folder/suites"
  # shellcheck disable=SC2016  # expanded by the shell that xargs starts
  deadline=$(($(date +%s) + deadline - SECONDS)) tool=$1 folder=$folder xargs -P $(($(nproc) / 2 + 1)) -L 1 bash -c '
    left=$((deadline - $(date +%s)))
    name=$(printf %s "$1" | tr -c "A-Za-z0-9\n" _)
    if [ $left -lt 10 ]; then echo "not run" > "$folder/$name.result"; exit 0; fi
    code=0
    timeout -k 5 $left compute-sanitizer --tool "$tool" --error-exitcode 9 "$0" \
      --gtest_filter="$1*/cuda*" --gtest_brief=1 > "$folder/$name.out" 2>&1 || code=$?
    case $code in 0) echo passed ;; 124) echo "not finished" ;; *) echo "FAILED" ;; esac \
      > "$folder/$name.result"' < "$folder/suites"
  for suite in "$folder"/*.out; do
    say "$(basename "$suite" .out): $(cat "${suite%.out}.result")"
    tail -n 40 "$suite"
  done
  for suite in passed FAILED "not finished" "not run"; do
    note+="${note:+, }$(grep -lx "$suite" "$folder"/*.result | wc -l) $suite"
  done
  grep -qx FAILED "$folder"/*.result && code=1
  grep -qx passed "$folder"/*.result || code=1
  rm -r "$folder"
  return $code
}
sanitizer_checks() {
  local end=$deadline
  if [ "$device" = cpu ]; then
    say "compute-sanitizer looks at a GPU: nothing to run without one"
    return
  fi
  command -v compute-sanitizer > /dev/null || PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin
  command -v compute-sanitizer > /dev/null || { say "no compute-sanitizer is here"; checks_failed=1; return; }
  deadline=$((SECONDS + (end - SECONDS) * 3 / 5))
  check memcheck sanitize memcheck
  deadline=$end
  check racecheck sanitize racecheck
}
