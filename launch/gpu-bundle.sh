#!/bin/bash
# launch/gpu-bundle.sh FILE [cuda|cpu]: of what is in build/release, a tar file with everything that
# launch/gpu-check.sh needs on another machine but glibc, bash, the usual tools, Python and, for a GPU,
# CUDA's libraries: programs, the libraries that they load, Open MPI, the scripts, the quick start's
# data. `cpu` leaves out the modules of a GPU. Started by `launch/gpu-check.sh --bundle FILE`.
set -eu
. "$(dirname "$0")/common.sh"
. launch/gpu-tests.sh

most=60000000  # bytes
file=${1:?launch/gpu-check.sh --bundle FILE starts this}
device=${2:-cuda}
mkdir -p "$(dirname "$file")"
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
to=$stage/amur-gpu

programs=()
for program in "${gpu_programs[@]}" tests/bench/libamur_kernel_times.so; do
  case $device$program in
    cpu*.so) continue ;;
    cuda*libamur_kernel_times.so) [ -e "$build/$program" ] || continue ;;  # where CUPTI was found
  esac
  [ -e "$build/$program" ] || die "$build/$program is missing: build first, with a CUDA compiler"
  mkdir -p "$to/$build/$(dirname "$program")"
  strip -o "$to/$build/$program" "$build/$program"
  programs+=("$to/$build/$program")
done

# Open MPI: what several ranks on one machine need. What is for other networks and batch systems stays,
# and so do their libraries.
mpi() { ompi_info --parsable --path "$1" | cut -d: -f3-; }
mkdir -p "$to"/openmpi/{bin,lib/openmpi3,lib/pmix,share,etc} "$to/lib"
cp -L "$(mpi bindir)"/{mpirun,orted} "$to/openmpi/bin/"
for component in "$(mpi pkglibdir)"/mca_*.so; do
  case $component in
    *ucx* | *_ofi* | *psm* | *openib* | *verbs* | *slurm* | *flux* | *jsm* | *gridengine* | *simulator* | \
      *monitoring* | *mca_memheap* | *mca_scoll* | *mca_spml* | *mca_sshmem* | *mca_atomic*) ;;
    *) cp "$component" "$to/openmpi/lib/openmpi3/" ;;
  esac
done
cp -rL "$(mpi pkgdatadir)" "$to/openmpi/share/openmpi"
cp -L "$(mpi sysconfdir)"/openmpi-mca-params.conf "$to/openmpi/etc/"
pmix=$(ldd "$(mpi pkglibdir)/mca_pmix_ext3x.so" | sed -n 's/.*libpmix.* => \([^ ]*\) .*/\1/p')
cp "$(dirname "$(readlink -f "$pmix")")"/pmix/*.so "$to/openmpi/lib/pmix/"

# The libraries that any of these loads, but for those of glibc, CUDA and the driver.
find "$to" -type f \( -name '*.so' -o -perm -u+x \) -print0 | xargs -0 ldd 2> /dev/null |
  sed -n 's/^\t\([^ ]*\) => \(\/[^ ]*\) .*/\1 \2/p' | sort -u > "$stage/libraries"
while read -r name path; do
  case $name in
    ld-linux* | libc.so* | libm.so* | libmvec* | libdl.* | libpthread.* | librt.* | libresolv.* | libutil.* | \
      libnsl.* | libcuda* | libcublas* | libcupti* | libnccl* | libnvidia* | libnvrtc*) ;;
    *) [ -e "$to/lib/$name" ] || cp -L "$path" "$to/lib/$name" ;;
  esac
done < "$stage/libraries"
if grep -q 'not found' < <(ldd "${programs[@]}" 2> /dev/null | grep -v 'libc[un]\|libnccl'); then
  die "a library of the programs is not here: $(ldd "${programs[@]}" 2> /dev/null | grep 'not found' | sort -u)"
fi
strip --strip-unneeded "$to"/lib/* "$to"/openmpi/lib/*/*.so

mkdir -p "$to"/launch "$to"/tests/bench "$to"/docs/benchmarks
cp launch/{common,gpu-check,gpu-tests}.sh "$to/launch/"
cp tests/bench/{device_benchmarks,device_report,peers,peers_report,svg_plot,scaling}.py "$to/tests/bench/"
cp -rL configs "$to/"
dictionary=/usr/share/trans/de-en  # of the quick start
[ -e $dictionary ] || die "$dictionary is missing: apt-get install trans-de-en"
mkdir -p "$to/data/trans"
cp $dictionary "$to/data/trans/"
{
  echo "Amur for a machine with a GPU: start launch/gpu-check.sh, docs/gpu.md says more."
  echo "commit: $(git rev-parse HEAD 2> /dev/null || echo unknown)$(git diff --quiet HEAD 2> /dev/null || echo ', changed')"
  echo "device: $device"
  "$build/src/app/amur" --version
} > "$to/bundle.txt"

tar -C "$stage" --owner=0 --group=0 --sort=name -cJf "$file" amur-gpu
size=$(stat -c %s "$file")
say "$file: $size bytes, $(du -sm "$to" | cut -f1) MiB unpacked, $(find "$to/lib" -type f | wc -l) libraries"
[ "$size" -le $most ] || die "it may have $most bytes at most"
