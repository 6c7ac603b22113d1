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

# Every program starts by MPI, which wants a loopback interface even for one rank; a machine that was given
# no network may have left it down.
raise_loopback() {
  python3 - << 'PYTHON' || true
import fcntl, os, socket, struct
link, request = socket.socket(), lambda flags: struct.pack("16sH14s", b"lo", flags, b"")
flags = struct.unpack_from("H", fcntl.ioctl(link, 0x8913, request(0)), 16)[0]  # SIOCGIFFLAGS
if not flags & 1 and os.geteuid() == 0:
    print("== the loopback interface is down: bringing it up")
    fcntl.ioctl(link, 0x8914, request(0x49))  # SIOCSIFFLAGS: up, loopback, running
PYTHON
}

# The folders of CUDA's libraries, the first ones first: those of Python's packages where they belong to
# torch, so that both sides of a comparison compute by the same cuBLASLt; else the toolkit's.
cuda_folders() {
  python3 - "${CUDA_HOME:-/usr/local/cuda}"/{lib64,extras/CUPTI/lib64} << 'PYTHON'
import glob, importlib.util, sys
packages = [folder for path in sys.path for folder in glob.glob(path + "/nvidia/*/lib")]
toolkit = sys.argv[1:]
print(*(packages + toolkit if importlib.util.find_spec("torch") else toolkit + packages), sep="\n")
PYTHON
}

# Programs, libraries and MPI of an unpacked bundle, for ranks on one machine; CUDA's libraries where they
# are, the driver also where a container's image says it is.
use_bundle() {
  local folder
  raise_loopback
  AMUR_LIBRARY_PATH=$root/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  for folder in /usr/local/nvidia/lib64 $(cuda_folders); do
    [ ! -d "$folder" ] || AMUR_LIBRARY_PATH+=:$folder
  done
  export AMUR_LIBRARY_PATH LD_LIBRARY_PATH=$AMUR_LIBRARY_PATH PATH=$root/openmpi/bin:$PATH \
    OPAL_PREFIX=$root/openmpi OPAL_BINDIR=$root/openmpi/bin OPAL_LIBDIR=$root/lib \
    OPAL_PKGLIBDIR=$root/openmpi/lib/openmpi3 OPAL_PKGDATADIR=$root/openmpi/share/openmpi \
    OPAL_SYSCONFDIR=$root/openmpi/etc PMIX_PREFIX=$root/openmpi PMIX_LIBDIR=$root/lib \
    PMIX_PKGLIBDIR=$root/openmpi/lib/pmix OMPI_MCA_plm=isolated OMPI_MCA_pml=ob1 \
    OMPI_MCA_btl=self,vader,tcp OMPI_MCA_btl_vader_single_copy_mechanism=none
  # A container may have 64 MiB of shared memory, too little for several jobs of several ranks.
  [ "$(df --output=avail -k /dev/shm 2> /dev/null | tail -n 1)" -ge 1048576 ] 2> /dev/null ||
    export OMPI_MCA_btl_vader_backing_directory=/tmp
}

# Seconds until this part is over, at least 1.
left() { echo $((deadline > SECONDS ? deadline - SECONDS : 1)); }

# limited SECONDS COMMAND...: for so long at most, and not beyond the part's end: one that hangs does not
# take the rest of the part with it.
limited() {
  local most=$1
  shift
  timeout -k 5 "$(($(left) < most ? $(left) : most))" "$@" < /dev/null
}

# quietly COMMAND...: of what it says the end, and only where it fails. Through a file: a pipe would be
# waited for as long as any process that it has left behind.
quietly() {
  local file status=0
  file=$(mktemp)
  "$@" > "$file" 2>&1 || { status=1; tail -n 60 "$file"; }
  rm "$file"
  return $status
}

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

# The cases of a program for this device, one a line.
cases_of() {
  limited 60 "$1" --gtest_filter="$(filter_of)" --gtest_list_tests |
    awk '/^[^ ]/ { suite = $1 } /^  / { print suite $1 }'
}
# run_cases PROGRAM LIST: the cases in the file LIST, by one process as long as that can go on. Where it
# ends or hangs, and behind an error of the GPU, after which nothing of a process succeeds, another one takes
# up the rest. What failed is then run alone: it may have paid for a case before it, and where the time was
# over it may just be slow. The names go to LIST.passed, LIST.failed, LIST.slow, and of the latter two those
# that pass alone to LIST.alone; what the time did not suffice for stays in LIST.
run_cases() {
  local program=$1 list=$2 code name
  touch "$list".{passed,failed,slow,alone}
  while [ -s "$list" ] && [ "$(left)" -gt 5 ]; do
    code=0
    limited 70 "$program" --gtest_filter="$(paste -sd: "$list")" > "$list.out" 2>&1 || code=$?
    awk -v list="$list" -v code=$code '
      /^\[ RUN      \] / { name = $4; text = ""; lines = broken = 0; next }
      name == "" { next }
      /^\[(       OK|  SKIPPED) \] / { print name >> (list ".passed"); name = ""; next }
      /^\[  FAILED  \] / { print name >> (list ".failed"); print text $0; name = ""; if (broken) exit; next }
      /cudaError|CUBLAS_STATUS/ { broken = 1 }
      ++lines <= 40 { text = text $0 "\n" }
      END {
        if (name == "") exit
        print name >> (list (code == 124 || code == 137 ? ".slow" : ".failed"))
        print text name ": the program went no further"
      }' "$list.out" > "$list.said"
    cat "$list.said"
    grep -vxFf <(cat "$list".{passed,failed,slow}) "$list" > "$list.rest" || true
    ! cmp -s "$list" "$list.rest" || { tail -n 20 "$list.out"; break; }  # not even one
    mv "$list.rest" "$list"
  done
  cat "$list".{failed,slow} | while read -r name && [ "$(left)" -gt 5 ]; do
    ! limited 30 "$program" --gtest_filter="$name" > /dev/null 2>&1 || echo "$name" >> "$list.alone"
  done
}

# The cases of every program, in as many shares as there are cores for: their references are computed on
# the CPU. Fails where a program has no case.
device_cases() {
  local program shares share list folder alone failed behind passed missing status=0
  folder=$(mktemp -d)
  shares=$(($(nproc) / 3))
  shares=$((shares < 1 ? 1 : shares > 5 ? 5 : shares))
  for program in "${gpu_tests[@]}"; do
    list=$folder/$(basename "$program")
    cases_of "$program" > "$list"
    [ -s "$list" ] || { say "$program has no case for this device"; status=1; }
    for ((share = 0; share < shares; ++share)); do
      awk -v n=$shares -v k=$share 'NR % n == k' "$list" > "$list.$share.list"
      OMP_NUM_THREADS=1 run_cases "$program" "$list.$share.list" &
    done
  done
  wait
  alone=$(cat "$folder"/*.alone)
  failed=$(cat "$folder"/*.{failed,slow} | grep -vxF "$alone" || true)
  behind=$(cat "$folder"/*.failed | grep -xF "$alone" || true)
  passed=$(cat "$folder"/*.{passed,slow} | grep -vxF "$failed" || true)
  missing=$(cat "$folder"/*.list)
  note="$(grep -c . <<< "$passed" || true) cases passed"
  counted "$failed" FAILED
  counted "$behind" "failed after another failure, and not alone"
  counted "$missing" "not run"
  [ -z "$failed$behind$missing" ] || status=1
  rm -r "$folder"
  return $status
}
counted() {  # NAMES RESULT: their number into `note`, and all of them to the log
  [ -n "$1" ] || return 0
  note+=", $(wc -l <<< "$1") $2"
  sed "s/$/: $2/" <<< "$1"
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
  limited 70 mpirun -n "$ranks" \
    bash -c 'NCCL_HOSTID=r${OMPI_COMM_WORLD_RANK:-$PMI_RANK} exec "$@"' rank "$@"
)

# Sums, gathers and broadcasts of tensors on the device against closed forms, by MPI and by NCCL.
collectives_by() {
  local cases ranks collectives=$build/tests/unit/comm/test_collectives side=$build/tests/unit/comm/test_nccl
  if [ "$device" = cpu ]; then
    for ranks in "$@"; do
      quietly on_one_gpu "$ranks" "$collectives" --gtest_filter='*/host' || return
    done
    return
  fi
  cases=$(on_one_gpu 1 "$collectives" --gtest_filter='*/cuda_nccl' --gtest_list_tests |
    grep -c '^  ' || true)
  [ "$cases" -gt 0 ] || { say "$collectives has no case for NCCL"; return 1; }
  for ranks in "$@"; do
    quietly on_one_gpu "$ranks" "$collectives" --gtest_filter='*/cuda_*' &&
      quietly on_one_gpu "$ranks" "$side" --gtest_filter='*/cuda_*' || return
  done
}

# A rank that never comes to a sum, and one that is killed on the way, end the job.
failure_ends() {
  local code=0 status=0 file
  file=$(mktemp)
  MISBEHAVE_FOLDER=$build/src/app on_one_gpu 3 $build/tests/unit/comm/misbehave "$1" 15 5 > "$file" 2>&1 || code=$?
  if [ $code = 0 ] || [ $code = 124 ]; then
    tail -n 60 "$file"
    say "$1 ended with $code"
    status=1
  elif [ "$1" = nccl-stall ]; then
    grep -q 'rank 2/3 .*is not in a collective' "$file" || { tail -n 60 "$file"; status=1; }
  fi
  rm "$file"
  return $status
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
    --set "train.steps=$steps" "$@" > "$name.log" 2>&1 || { cat "$name.log"; return 1; }
}

# agree REFERENCE BOUND RUN...: the same losses up to rounding.
agree() {
  local reference=$1 bound=$2 other worst status=0
  shift 2
  for other in "$@"; do
    worst=$(paste <(losses "$reference") <(losses "$other") | awk '
      NF == 2 { d = ($1 - $2) / $1; if (d < 0) d = -d; if (!(d <= worst)) worst = d; ++n }
      END { print n == 8 ? worst + 0 : "not all steps are there" }')
    say "$reference and $other: losses differ by $worst at most"
    awk -v d="$worst" -v bound="$bound" 'BEGIN { exit !(d "" ~ /^[0-9.e+-]+$/ && d < bound) }' || status=1
  done
  return $status
}
same_losses() { cmp <(losses "$1") <(losses "$2") || { say "two runs differ: $1, $2"; return 1; }; }

# Eight steps on the CPU, on the device by one rank and by several through host memory, and half on each
# device, either first; then twice the same in each way to hold weights and momentum and in bf16 by each
# engine of attention, in bf16 also from a checkpoint.
trainings_agree() {
  local name setting fixed repeated=() status=0
  local -A ways=([fp32]="" [bf16_weights]=optimizer.state=bf16_weights [bf16_state]=optimizer.state=bf16
    [own]="train.precision=bf16 runtime.attention=own")
  # shellcheck disable=SC2154  # of gpu-check.sh
  if [ "$device" = cuda ] && grep -q ', cuDNN [0-9]' <<< "$report"; then
    ways[cudnn]="train.precision=bf16 runtime.attention=cudnn"
  fi
  together "run cpu cpu 1 8" "run one $device 1 8" "run two $device 2 8 --comm mpi" "run four $device 4 8 --comm mpi" \
    "run there cpu 1 4 && run there $device 1 8" "run back $device 1 4 && run back cpu 1 8" \
    "run cpu-bf16 cpu 1 8 --set train.precision=bf16" || status=1
  agree cpu 1e-3 one two four there back || status=1
  for name in "${!ways[@]}"; do
    # Without measuring: two runs, each of which measures for itself, may choose other algorithms.
    fixed="--set runtime.tune=false"
    for setting in ${ways[$name]}; do fixed+=" --set $setting"; done
    repeated+=("run once-$name $device 1 8 $fixed" "run again-$name $device 1 8 $fixed")
    [ "$name" != own ] || repeated+=("run halves-own $device 1 4 $fixed && run halves-own $device 1 8 $fixed")
  done
  # With it: what one checkpoint has chosen gives the same bits whenever it is taken up.
  together "${repeated[@]}" "run kept $device 1 4 && cp -r kept kept-copy" || status=1
  together "run kept $device 1 8" "run kept-copy $device 1 8" || status=1
  for name in "${!ways[@]}"; do same_losses "once-$name" "again-$name" || status=1; done
  same_losses once-own halves-own || status=1
  same_losses kept kept-copy || status=1
  agree cpu-bf16 1e-2 once-own || status=1
  [ -z "${ways[cudnn]:-}" ] || agree cpu-bf16 1e-2 once-cudnn || status=1
  return $status
}

# The same steps by NCCL, data and tensor parallel; one after the other, since ranks wait for each other on
# the GPU that they share.
nccl_trainings_agree() {
  run cpu cpu 1 8 && run nccl-1x1 cuda 1 8 --comm nccl && run nccl-2x1 cuda 2 8 --comm nccl &&
    run nccl-1x2 cuda 2 8 --comm nccl --set parallel.tp=2 &&
    run nccl-2x2 cuda 4 8 --comm nccl --set parallel.tp=2 && agree cpu 1e-3 nccl-{1x1,2x1,1x2,2x2}
}

# Gradients of every parameter against a reference in double, and embeddings of one model by both devices.
certified() {  # RANKS PRECISION
  on_one_gpu "$1" "$amur" verify-grad small.yaml --device "$device" --comm mpi --samples 48 \
    --set train.precision="$2" > "certificate-$1-$2" 2>&1 || { cat "certificate-$1-$2"; return 1; }
}
embedded() {  # DEVICE
  limited 60 "$amur" embed model --input texts.txt --output "$1.jsonl" --device "$1" 2> "embed-$1.log" ||
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
  check "loss stage by two ranks" quietly on_one_gpu 2 "${gpu_tests[1]}" --gtest_filter="$(filter_of)"
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

# sanitize OPTION...: the device's cases under compute-sanitizer with these options, suite by suite in pieces
# of at most twenty cases, as many at a time as there are cores, up to sixteen for the memory of the GPU; those
# that do not begin before the deadline are left out. A summary as `note`.
sanitize() {
  local program piece result folder workers code=0
  folder=$(mktemp -d)
  for program in "${gpu_tests[@]}"; do
    cases_of "$program" | awk -v program="$program" -v folder="$folder" '{
      suite = $0; sub(/\..*/, "", suite); gsub("/", "_", suite)
      piece = folder "/" suite "." int(cases[suite] / 20)
      ++cases[suite]
      if (!(piece in begun)) print program, piece
      begun[piece]
      print > piece
    }'
  done > "$folder/pieces"
  workers=$(nproc)
  # shellcheck disable=SC2016  # expanded by the shell that xargs starts
  deadline=$(($(date +%s) + deadline - SECONDS)) options="$*" OMP_NUM_THREADS=1 \
    xargs -r -P $((workers < 16 ? workers : 16)) -L 1 bash -c '
    left=$((deadline - $(date +%s))) code=0
    [ $left -ge 10 ] || { echo "not run" > "$1.result"; exit; }
    timeout -k 5 $left compute-sanitizer $options --report-api-errors no --error-exitcode 9 "$0" \
      --gtest_filter="$(paste -sd: "$1")" > "$1.out" 2>&1 || code=$?
    case $code in 0) echo passed ;; 124 | 137) echo "not finished" ;; *) echo FAILED ;; esac > "$1.result"
    ' < "$folder/pieces"
  while read -r _ piece; do
    result=$(cat "$piece.result")
    say "$(basename "$piece"), $(wc -l < "$piece") cases: $result"
    case $result in
      FAILED) grep -v '^\[       OK' "$piece.out" | head -n 150 ;;
      "not finished") tail -n 5 "$piece.out" ;;
    esac
  done < "$folder/pieces"
  for result in passed FAILED "not finished" "not run"; do
    note+="${note:+, }$(cat "$folder"/*.result | grep -cx "$result" || true) $result"
  done
  note+=" of $(wc -l < "$folder/pieces") pieces"
  ! grep -qx FAILED "$folder"/*.result || code=1
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
  check memcheck sanitize --tool memcheck
  deadline=$end
  # Our own kernels alone: those of libraries give reports that no argument of ours can be the cause of, since
  # shared memory is a kernel's own affair. All of ours are in the namespace `amur`.
  check racecheck sanitize --tool racecheck --kernel-name kns=4amur
}
