#!/bin/bash
# check_headers.sh ROOT COMPILER FLAGS...: compiles each of our headers as if nothing stood before it.
# A header that its own source includes first has been compiled so by the build.
set -eu
cd "$1"
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A header that leans on its includer must not get through: otherwise this test says nothing.
echo 'inline std::string leaning() { return {}; }' > "$work/leaning.h"
if "$@" -fsyntax-only -x c++ "$work/leaning.h" 2> /dev/null; then
  echo "a header without its includes compiled: the check is broken"
  exit 1
fi

check() {
  local header=$1 source=${1%.h}.cpp unit
  shift
  if [ -f "$source" ] && [ "$(grep -m1 '^#include' "$source")" = "#include \"$header\"" ]; then return; fi
  unit=$(mktemp "$WORK/XXXXXX.cpp")
  printf '#include "%s"\n#include "%s"\n' "$header" "$header" > "$unit"
  "$@" -I. -fsyntax-only "$unit" || { echo "$header does not compile by itself"; return 1; }
}
export -f check
export WORK=$work
find src kernels comm tests -name '*.h' -not -path '*/cuda_emulation/include/*' -print0 |
  xargs -0 -I{} bash -c 'check "$@"' check {} "$@"
