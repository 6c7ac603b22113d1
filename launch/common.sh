# shellcheck shell=bash
# Sourced by the scripts of this folder: messages, timed parts, MPI without a launcher's help.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit

say() { printf '== %s\n' "$*"; }
die() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

# part NAME COMMAND...: runs it and remembers how long it took for `print_parts`.
parts=()
part() {
  local name=$1 start=$SECONDS
  shift
  say "$name"
  "$@" || return
  parts+=("$(printf '%-28s %5d s' "$name" $((SECONDS - start)))")
}
print_parts() {
  if ((${#parts[@]})); then printf '   %s\n' "${parts[@]}"; fi
}

# configure_and_build PRESET [TARGET...]: into build/PRESET.
configure_and_build() {
  local preset=$1
  shift
  mkdir -p build
  local log=build/configure-$preset.log
  cmake --preset "$preset" > "$log" 2>&1 || { cat "$log" >&2; return 1; }
  cmake --build --preset "$preset" ${1:+--target "$@"}
}

# Open MPI refuses root, binds the ranks of every job to the same first cores, and refuses more
# ranks than cores, unless told otherwise. Other MPIs do not look at these names.
mpi_environment() {
  export OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_rmaps_base_oversubscribe=1
  if [ "$(id -u)" = 0 ]; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  fi
}
