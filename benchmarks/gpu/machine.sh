#!/bin/sh
# On the machine with the GPU, in the repository's root: unpacks what `pack` made, puts ONNX Runtime and diffusers into the
# Python that holds torch, then runs the command that follows, with the packages laid out as the wheel has them. Where a
# word of it is PACK, that becomes the folder of what was unpacked.
#
#   benchmarks/gpu/machine.sh CARRIED python3 -m unibrain_rt.benchmarks.gpu.correct --pack PACK --out OUT
set -eu

[ $# -ge 2 ] || { echo "usage: $0 CARRIED COMMAND..." >&2; exit 2; }
carried=$1
shift
pack=${TMPDIR:-/tmp}/unibrain-rt-pack
laid=${TMPDIR:-/tmp}/unibrain-rt-laid
if [ ! -e "$pack" ]; then
    mkdir -p "$pack.part"
    tar xJf "$carried" -C "$pack.part"
    python3 -m pip uninstall -qy onnxruntime >/dev/null 2>&1 || true
    # Beside nvidia/, so that preload_dlls finds CUDA's libraries there.
    cp -r "$pack.part/site/." "$(python3 -c 'import site; print(site.getsitepackages()[0])')"
    mv "$pack.part" "$pack"
fi
rm -rf "$laid"
mkdir -p "$laid"
cp -r runtime "$laid/unibrain_rt"
cp -r engines export benchmarks "$laid/unibrain_rt/"
export PYTHONPATH="$laid" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
for word in "$@"; do
    shift
    [ "$word" != PACK ] || word=$pack
    set -- "$@" "$word"
done
exec "$@"
