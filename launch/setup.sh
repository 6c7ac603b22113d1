#!/bin/bash
# launch/setup.sh: installs the Debian packages of launch/packages.txt that are missing.
# Can be run again. Without root, or on another system, it explains what has to be there.
set -eu
. "$(dirname "$0")/common.sh"

explain() {
  cat <<TEXT
   Amur needs a C++20 compiler (g++ 12 or newer), CMake 3.25, Ninja, pkg-config, an MPI 3.1, an HDF5
   built with that MPI, OpenBLAS, oneDNN, SentencePiece, Boost.Program_options 1.81, yaml-cpp,
   nlohmann-json, fmt and zlib; the tests need GoogleTest, Google Benchmark, h5dump and h5py.
   On a cluster, load the site's modules and name what lies elsewhere, for example:
     module load gcc openmpi hdf5-parallel cmake
     export CMAKE_PREFIX_PATH=/path/to/fmt:/path/to/yaml-cpp
   The examples read /usr/share/trans/de-en and /usr/share/wordnet (Debian: trans-de-en,
   wordnet-base); data.sources.0.path names another place.
TEXT
}

if ! command -v dpkg-query > /dev/null || ! command -v apt-get > /dev/null; then
  say "this is not Debian: nothing is installed"
  explain
  exit 0
fi

mapfile -t wanted < <(sed 's/#.*//' launch/packages.txt | awk 'NF { print $1 }')
missing=()
for package in "${wanted[@]}"; do
  status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2> /dev/null || true)
  [ "$status" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} = 0 ]; then
  say "all ${#wanted[@]} packages are installed"
  exit 0
fi

if [ "$(id -u)" = 0 ]; then
  as_root=()
elif command -v sudo > /dev/null && sudo -n true 2> /dev/null; then
  as_root=(sudo -n)
elif command -v sudo > /dev/null && [ -t 0 ]; then
  as_root=(sudo)
else
  say "not root, so these packages are not installed: ${missing[*]}"
  explain
  exit 0
fi

say "installing ${missing[*]}"
apt() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 \
    -o Acquire::Retries=3 -qq "$@"
}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { apt update && apt install -y --no-install-recommends "${missing[@]}"; } > "$log" 2>&1; then
  cat "$log" >&2
  die "apt-get failed; its words stand above"
fi
