#!/bin/bash
# launch/gpu-check.sh [--built]: on a machine with an NVIDIA GPU, builds what is missing, says what
# `amur doctor` finds, and runs every test that needs a GPU, once more under compute-sanitizer where
# there is one. Ends with what passed. Not passed where no GPU test ran.
#   --built   do not build: build/release was brought from another machine
set -eu
. "$(dirname "$0")/common.sh"

case ${1:-} in
  '') part build configure_and_build release amur test_kernels ;;
  --built) ;;
  -h | --help) sed -n '2,5s/^# //p' "$0"; exit 0 ;;
  *) die "unknown option '$1'; use --built or nothing" ;;
esac

amur=build/release/src/app/amur
tests=build/release/tests/unit/kernels/test_kernels
for file in "$amur" "$(dirname "$amur")/libamur_cuda.so" "$tests"; do
  [ -e "$file" ] || die "$file is missing: build it where a CUDA compiler is (docs/gpu.md)"
done

say "doctor"
mpi_environment
report=$("$amur" doctor) || die "amur doctor failed"
printf '%s\n' "$report"
grep -q '^devices .*cuda:0' <<< "$report" || die "no GPU can be used here; the line 'gpu' above says why"

# The tests of a GPU are named /cuda_TYPE, and exist only where a GPU is usable.
cases=$("$tests" --gtest_filter='*/cuda_*' --gtest_list_tests | grep -c '^  ' || true)
[ "$cases" -gt 0 ] || die "$tests has no case for this GPU"
say "$cases cases on the GPU"
gpu_tests() { "$@" "$tests" --gtest_filter='*/cuda_*' --gtest_brief=1; }
part "tests" gpu_tests timeout -k 10 600
if command -v compute-sanitizer > /dev/null; then
  part "tests under memcheck" gpu_tests timeout -k 10 1200 compute-sanitizer --tool memcheck \
    --error-exitcode 9
  part "tests under racecheck" gpu_tests timeout -k 10 1200 compute-sanitizer --tool racecheck \
    --error-exitcode 9
else
  say "no compute-sanitizer is here: its runs are left out"
fi
say "passed, $cases cases on the GPU; the parts took"
print_parts
