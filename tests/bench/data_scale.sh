#!/bin/sh
# What a data set of PAIRS generated pairs costs: index time, start once indexed, resident memory.
#   data_scale.sh PROGRAM [PAIRS] [RANKS] [FOLDER]
# 100,000,000 pairs take about 10 GB in FOLDER; a million, the default, take seconds.
set -eu
program=$1
pairs=${2:-1000000}
ranks=${3:-2}
folder=${4:-${TMPDIR:-/tmp}}
file=$(mktemp -d "$folder/amur-data-scale-XXXXXX")/pairs.tsv
trap 'rm -r "$(dirname "$file")"' EXIT
trap 'exit 1' INT TERM
"$program" make "$file" "$pairs"
ls -l "$file"
echo "first start (builds the index):"
mpirun --oversubscribe -n "$ranks" "$program" start "$file" 50
echo "second start:"
mpirun --oversubscribe -n "$ranks" "$program" start "$file" 50
ls -l "$file"*
