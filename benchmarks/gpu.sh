#!/bin/sh
# A whole decode of the published size on one GPU: makes a checkpoint of random weights, exports it, measures.
# This script has not been run on a GPU yet. `--dry-run` runs all of it on a CPU, at sizes that are given with
# --config and with the engine onnxruntime.
#
#   benchmarks/gpu.sh WORK [--dry-run] [--config FILE] [options of unibrain_rt.benchmarks.gpu]
#
# WORK is a folder with 40 GB of room for the published size; what is there already is kept.
set -eu

[ $# -ge 1 ] || { echo "usage: $0 WORK [--dry-run] [--config FILE] [options]" >&2; exit 2; }
work=$1
shift
precision=fp16
config=
dry=
expect=
for word in "$@"; do
    case $word in
        --dry-run) precision=fp32; dry=yes ;;
        --config=*) config=${word#--config=} ;;
    esac
    [ "$expect" != config ] || config=$word
    expect=
    [ "$word" != --config ] || expect=config
done
python=${PYTHON:-python3}

if [ -z "$dry" ]; then
    # Before anything is written: minutes of exporting are of no use without a GPU.
    "$python" -c 'import sys
from unibrain_rt.engines import probe
found = probe("cuda")
sys.exit(None if found.usable else f"{found}; --dry-run checks this script on a CPU")'
fi
mkdir -p "$work"
if [ ! -e "$work/checkpoint/done" ]; then
    "$python" -m unibrain_rt.benchmarks.random_checkpoint "$work/checkpoint" ${config:+--config "$config"}
    touch "$work/checkpoint/done"
fi
if [ ! -e "$work/$precision/bundle.json" ]; then
    "$python" -m unibrain_rt export "$work/checkpoint" --out "$work/$precision" --precision "$precision" \
        ${config:+--config "$config"}
fi
exec "$python" -m unibrain_rt.benchmarks.gpu "$work/checkpoint" "$work/$precision" "$@"
