#!/bin/bash
# launch/test.sh [--long]: installs what is missing, builds, and runs the test suite.
#   --long   then also the suite under AddressSanitizer with UndefinedBehaviorSanitizer and under
#            ThreadSanitizer, and the soak loops. The plain suite is not repeated where it has just
#            passed on the same sources.
set -eu
. "$(dirname "$0")/common.sh"

long=no
case ${1:-} in
  '') ;;
  --long) long=yes ;;
  -h | --help) sed -n '2,5s/^# //p' "$0"; exit 0 ;;
  *) die "unknown option '$1'; use --long or nothing" ;;
esac

# What the sources are, as far as git can tell: nothing where it cannot.
state_of_sources() {
  git rev-parse HEAD 2> /dev/null || return 0
  { git diff HEAD; git ls-files --others --exclude-standard -z | xargs -0 -r sha256sum; } | sha256sum
}

# suite PRESET SECONDS CTEST_OPTIONS...: a suite that outlives its time has failed. Two more at a time
# than there are cores: many tests wait for a time limit.
suite() {
  local preset=$1 seconds=$2 code=0
  shift 2
  timeout -k 20 "$seconds" ctest --test-dir "build/$preset" --output-on-failure --no-tests=error \
    --parallel $(($(nproc) + 2)) "$@" || code=$?
  [ $code != 124 ] || say "the $preset suite was stopped after $seconds s"
  return $code
}

failed=()
# attempt NAME COMMAND...: a part whose failure does not keep the next one from running.
attempt() {
  part "$@" || failed+=("$1")
}

finish() {
  say "the parts took"
  print_parts
  if [ ${#failed[@]} != 0 ]; then
    say "FAILED: $(IFS=,; echo "${failed[*]}")"
    exit 1
  fi
  say "passed"
  exit 0
}

part install launch/setup.sh
stamp=build/release/suite-passed
state=$(state_of_sources)
part "build release" configure_and_build release
if [ $long = yes ] && [ -n "$state" ] && [ "$(cat "$stamp" 2> /dev/null)" = "$state" ]; then
  say "the plain suite has passed on these sources"
else
  rm -f "$stamp"
  attempt "test release" suite release 1800 --label-exclude soak
  if [ ${#failed[@]} = 0 ] && [ -n "$state" ]; then printf '%s\n' "$state" > "$stamp"; fi
fi
[ $long = yes ] || finish

# Soak loops wait for most of their time: the next build goes on beside them, behind them in priority.
log=build/build-asan.log
(renice -n 19 "$BASHPID" > /dev/null && configure_and_build asan) > "$log" 2>&1 &
builder=$!
built() { wait "$builder" || { cat "$log"; return 1; }; }
attempt "soak" suite release 900 --label-regex soak
attempt "build asan (after soak)" built
# Speed and end-to-end learning say nothing new under a sanitizer and take many times as long there.
attempt "test asan" suite asan 900 --label-exclude 'soak|slow'
attempt "build tsan" configure_and_build tsan
attempt "test tsan" suite tsan 900 --label-exclude 'soak|slow'
finish
