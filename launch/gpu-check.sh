#!/bin/bash
# launch/gpu-check.sh [OPTION...]: on a machine with an NVIDIA GPU, all that has to be right and to be
# measured there, in one command. Builds what is missing, runs the parts and writes
# FOLDER/<device>/<part>.json and <part>.log, and of all parts that are there FOLDER/<device>.md. Fails
# where a part fails, and where no GPU can be used. docs/gpu.md says what the parts are.
#   --part NAME     tests, benchmarks, peers, sanitizer or training; may be given more than once; else all
#   --out FOLDER    docs/benchmarks where it is not given
#   --only TEXTS    of peers these alone, "mix, bert-base" for one (tests/bench/peers.py); may be repeated
#   --limit SECONDS of a part, 540 where it is not given, of tests 200: what has not begun then is left out,
#                   and said. What was measured is written at once, and stays where the command is killed
#   --built         do not build: build/release was brought from another machine
#   --bundle FILE   instead of all this makes a tar file that such a machine needs nothing else for; it
#                   is unpacked there, and amur-gpu/launch/gpu-check.sh started in it
#   --device cpu    to try the command: all parts on the CPU, which says nothing of a GPU
#   --small         with sizes that mean nothing: seconds instead of minutes
set -euo pipefail
caller=$PWD
callers_libraries=${LD_LIBRARY_PATH:-}
. "$(dirname "$0")/common.sh"
. launch/gpu-tests.sh

usage() { sed -n '2,17s/^# \{0,1\}//p' launch/gpu-check.sh; }
device=cuda out='' limit='' built=no small='' chosen=() only=()
while [ $# -gt 0 ]; do
  case $1 in
    --part | --only | --out | --limit | --bundle | --device)
      [ $# -ge 2 ] || die "$1 needs a value"
      case $1 in
        --part) chosen+=("$2") ;;
        --only) only+=("$2") ;;
        --out) out=$2 ;;
        --limit) limit=$2 ;;
        --device) device=$2 ;;
        --bundle) bundle=$2 ;;
      esac
      shift 2
      ;;
    --built) built=yes; shift ;;
    --small) small=--small; shift ;;
    -h | --help) usage; exit 0 ;;
    *) die "unknown option '$1'; --help lists them" ;;
  esac
done
case $device in cuda | cpu) ;; *) die "--device is '$device': use cuda or cpu" ;; esac
case $limit in *[!0-9]* | 0) die "--limit is '$limit', but must be a number of seconds" ;; esac
if [ -n "${bundle:-}" ]; then
  [ $built = yes ] || part build configure_and_build release "${gpu_targets[@]}"
  case $bundle in /*) ;; *) bundle=$caller/$bundle ;; esac
  exec launch/gpu-bundle.sh "$bundle" "$device"
fi
all=(tests benchmarks peers sanitizer training)
[ ${#chosen[@]} -gt 0 ] || chosen=("${all[@]}")
for name in "${chosen[@]}"; do
  case " ${all[*]} " in *" $name "*) ;; *) die "--part is '$name': use ${all[*]}" ;; esac
done

if [ -e bundle.txt ]; then
  use_bundle
elif [ $built = no ]; then
  part build configure_and_build release "${gpu_targets[@]}"
fi
for file in "${gpu_programs[@]}"; do
  [ -e "build/release/$file" ] || [ "$device$file" = "cpu${file%.so}.so" ] ||
    die "build/release/$file is missing: build it where a CUDA compiler is (docs/gpu.md)"
done

say "doctor"
mpi_environment
report=$(timeout -k 5 60 build/release/src/app/amur doctor) || die "amur doctor failed"
printf '%s\n' "$report"
if [ "$device" = cuda ]; then
  grep -q '^devices .*cuda:0' <<< "$report" || die "no GPU can be used here; the line 'gpu' above says why"
  device_name=$(sed -n 's/^gpu \{2,\}\([^(]*[^( ]\) *(sm_.*/\1/p' <<< "$report")
else
  device_name="the CPU: nothing of a GPU was seen"
fi
case $out in
  '') [ "$device" = cuda ] && out=docs/benchmarks || out=build/gpu-check ;;
  /*) ;;
  *) out=$caller/$out ;;
esac
name=cpu
[ "$device" = cpu ] || name=$(tr -cs 'a-z0-9' - <<< "${device_name,,}" | sed 's/^-*//; s/-*$//')
mkdir -p "$out/$name"
out=$(cd "$out/$name" && pwd)

limit_of() {
  local default=540
  [ "$1" != tests ] || default=200
  printf '%s\n' "${limit:-$default}"
}
# What Python starts needs the libraries of a bundle, Python itself does not.
python() { LD_LIBRARY_PATH=$callers_libraries PYTHONDONTWRITEBYTECODE=1 python3 "$@"; }
measure() {
  python tests/bench/device_benchmarks.py "$1" build/release "$out" --device "$device" --limit "$(limit_of "$1")" $small
}
against_peers() {
  # Importing them would take seconds of the GPU's time.
  python -c 'import importlib.util, sys
sys.exit(not all(map(importlib.util.find_spec, ("torch", "sentence_transformers"))))' ||
    { say "python3 here has no torch and sentence-transformers: nothing to compare with"; return 1; }
  HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 python tests/bench/peers.py build/release/src/app/amur --device "$device" \
    --built-model $small --limit "$(limit_of peers)" --out "$out" ${only[@]+--only "${only[@]}"}
}
run_part() {
  case $1 in
    tests) run_checks tests gpu_checks ;;
    sanitizer) run_checks sanitizer sanitizer_checks ;;
    benchmarks | training) measure "$1" ;;
    peers) against_peers 2>&1 | tee "$out/peers.log" ;;
  esac
}

failed=()
for name in "${chosen[@]}"; do
  part "$name" run_part "$name" || failed+=("$name")
  say "written: $(python tests/bench/device_report.py "$out")" || true
done
say "the parts took"
print_parts
if [ ${#failed[@]} -gt 0 ]; then
  say "FAILED: ${failed[*]}"
  exit 1
fi
say "passed on $device_name"
