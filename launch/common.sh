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

# The CUDA compiler, where there is one that is new enough (kernels/cuda/CMakeLists.txt says which).
cuda_compiler() {
  local nvcc oldest version
  oldest=$(sed -n 's/^set(AMUR_CUDA_OLDEST \([0-9.]*\)).*/\1/p' kernels/cuda/CMakeLists.txt)
  for nvcc in "${CUDACXX:-}" "$(command -v nvcc)" "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc"; do
    [ -x "$nvcc" ] || continue
    version=$("$nvcc" --version 2> /dev/null | sed -n 's/.*release \([0-9.]*\),.*/\1/p')
    [ "$(printf '%s\n' "$oldest" "${version:-0}" | sort -V | head -n 1)" = "$oldest" ] || continue
    printf '%s\n' "$nvcc"
    return
  done
}

# configure_and_build PRESET [TARGET...]: into build/PRESET.
configure_and_build() {
  local preset=$1
  shift
  mkdir -p build
  local log=build/configure-$preset.log cuda=()
  case $preset in
    asan | tsan) ;;  # without the GPU back end, as the preset says
    *)
      local nvcc
      nvcc=$(cuda_compiler)
      if [ -n "$nvcc" ]; then
        cuda=(-DAMUR_CUDA=ON "-DCMAKE_CUDA_COMPILER=$nvcc")
      else
        say "no CUDA compiler (nvcc) is here: building without the GPU back end"
        cuda=(-DAMUR_CUDA=OFF)
      fi
      ;;
  esac
  cmake --preset "$preset" "${cuda[@]}" > "$log" 2>&1 || { cat "$log" >&2; return 1; }
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
