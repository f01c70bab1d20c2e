"""A checkpoint of random weights in the published layout, at any size: to measure without a download.

Weights are drawn so that activations stay sane: norms scale by 1, biases are 0, everything else is
N(0, 1 / fan-in). Each tensor is drawn from its own name (Philox keyed by SHA-256), so a tensor is the same in
every file that has it, as long as numpy's ``standard_normal`` is. Files are written block by block; no whole
tensor is ever in memory. A vocabulary of the right size lies beside them, so that captions can be decoded, too.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import click
import numpy as np
from numpy.typing import NDArray

from unibrain_rt.captions import byte_alphabet
from unibrain_rt.errors import InputError
from unibrain_rt.export.bundles.architecture import Architecture
from unibrain_rt.files import whole_file

Shape = tuple[int, ...]
MAIN = "vd-four-flow-v1-0.safetensors"
# The files beside the main one when a checkpoint is split, and the prefix that their keys leave out.
SIDE_FILES = {"kl-f8.safetensors": "vae.image.", "optimus-vae.safetensors": "vae.text."}
DTYPES: dict[str, tuple[str, np.dtype[Any]]] = {
    "fp32": ("F32", np.dtype("<f4")),
    "fp16": ("F16", np.dtype("<f2")),
}

SPECIAL = 3
"""Tokens that Optimus adds to GPT-2's: padding, begin and end."""
_BLOCK = 1 << 22
_REPORT_EVERY = 1 << 30
# Fully connected layers that were published as 1×1 convolutions.
_POINTWISE = re.compile(
    r"diffuser\.text\.data_blocks\.\d+\.0\.(in_layers\.2|out_layers\.3|skip_connection)\.weight"
    r"|diffuser\.\w+\.context_blocks\.\d+\.0\.proj_(in|out)\.weight"
    r"|vae\.image\.\w+\.mid\.attn_1\.(q|k|v|proj_out)\.weight"
)
_TRANSPOSED = re.compile(r"vae\.text\.decoder\.transformer\.h\.\d+\..*\.c_\w+\.weight")
"""GPT-2 keeps its weights as (in, out)."""
_TIED = {"vae.text.decoder.lm_head.weight": "vae.text.decoder.transformer.wte.weight"}
_LOGIT_SCALE = math.log(1 / 0.07)


def tensor_shapes(architecture: Architecture) -> dict[str, Shape]:
    """Every tensor of a published checkpoint of these sizes, by name.

    Both context encoders hold both towers of CLIP, as published; the second towers are never read. The
    schedule's tables and GPT-2's causal masks, which are no weights, are left out.
    """
    from accelerate import init_empty_weights

    from unibrain_rt.export.bundles.models.autokl import build_autokl, published_key
    from unibrain_rt.export.bundles.models.clip import build_clip_image, build_clip_text
    from unibrain_rt.export.bundles.models.optimus import (
        OptimusDecoder,
        OptimusEncode,
        decoder_key,
        encoder_key,
    )
    from unibrain_rt.export.bundles.models.unet import FourFlowUNet

    levels = len(architecture.autokl.channel_mult)
    with init_empty_weights():
        clip = {
            key: tuple(value.shape)
            for build in (build_clip_image, build_clip_text)
            for key, value in build(architecture.clip).state_dict().items()
        }
        named = {
            f"vae.image.{published_key(key, levels)}": value
            for key, value in build_autokl(architecture.autokl).state_dict().items()
        }
        for key, value in OptimusEncode(architecture.optimus).state_dict().items():
            named[f"vae.text.encoder.{encoder_key(key)}"] = value
        for key, value in OptimusDecoder(architecture.optimus).state_dict().items():
            named[f"vae.text.decoder.{decoder_key(key)}"] = value
        for key, value in FourFlowUNet(architecture.unet).state_dict().items():
            named[f"diffuser.{key}"] = value
    shapes = {key: tuple(value.shape) for key, value in named.items()}
    for context in ("image", "text"):
        shapes |= {f"ctx.{context}.model.{key}": shape for key, shape in clip.items()}
        shapes[f"ctx.{context}.model.logit_scale"] = ()
    return {key: (*shape, 1, 1) if _POINTWISE.fullmatch(key) else shape for key, shape in shapes.items()}


def blocks_of(name: str, shape: Shape, seed: int = 0) -> Iterator[NDArray[np.float32]]:
    """The values of a tensor, flat, in blocks of at most 16 MiB."""
    size = math.prod(shape)
    constant = _constant(name, shape)
    source = _TIED.get(name, name)
    key = np.frombuffer(hashlib.sha256(f"{seed}/{source}".encode()).digest()[:16], dtype="<u8")
    generator = np.random.Generator(np.random.Philox(key=key))
    scale = np.float32(1 / math.sqrt(_fan_in(name, shape)))
    buffer = np.empty(min(size, _BLOCK), dtype=np.float32)
    for start in range(0, size, _BLOCK):
        block = buffer[: min(_BLOCK, size - start)]
        if constant is not None:
            block.fill(constant)
        else:
            generator.standard_normal(dtype=np.float32, out=block)
            block *= scale
        yield block


def write_checkpoint(
    out: Path, architecture: Architecture, *, dtype: str = "fp32", split: bool = False, seed: int = 0
) -> dict[str, int]:
    """Write the weights and ``config.json`` into the folder ``out``; returns bytes by file name.

    Args:
        dtype: ``fp32`` or ``fp16``.
        split: put AutoKL and Optimus into files of their own, without their prefixes, as they were published.

    Raises:
        InputError: ``out`` holds a checkpoint already.
    """
    if (out / MAIN).exists():
        raise InputError(f"{out}: holds a checkpoint already; choose another folder")
    shapes = tensor_shapes(architecture)
    files: dict[str, dict[str, str]] = {MAIN: {}}
    for name in shapes:
        file, prefix = next(
            ((f, p) for f, p in SIDE_FILES.items() if split and name.startswith(p)), (MAIN, "")
        )
        files.setdefault(file, {})[name.removeprefix(prefix)] = name
    out.mkdir(parents=True, exist_ok=True)
    write_vocabulary(out / "tokenizers" / "gpt2", int(architecture.optimus.decoder["vocab_size"]) - SPECIAL)
    sizes = json.dumps(architecture.to_mapping(), indent=1)
    (out / "config.json").write_text(sizes + "\n", encoding="utf-8")
    # The main file comes last: a folder that has it is complete.
    for file in sorted(files, key=lambda name: name == MAIN):
        with whole_file(out / file) as part, part.open("wb") as stream:
            _write_safetensors(stream, file, files[file], shapes, dtype, seed)
    return {file: (out / file).stat().st_size for file in files}


def write_vocabulary(folder: Path, size: int) -> None:
    """A byte-level vocabulary of ``size`` tokens as GPT-2 has it, of letters and pairs of letters.

    ``vocab.json`` and ``merges.txt``; the words that random weights choose from it mean nothing.
    """
    letters = sorted(byte_alphabet(), key=byte_alphabet().__getitem__)
    pairs = [(first, second) for first in letters for second in letters][: max(size - 1 - len(letters), 0)]
    tokens = [*letters, *("".join(pair) for pair in pairs)][: size - 1]
    tokens.append("<|endoftext|>")
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    merges = "".join(f"{first} {second}\n" for first, second in pairs)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")


def _write_safetensors(
    stream: BinaryIO, file: str, names: Mapping[str, str], shapes: Mapping[str, Shape], dtype: str, seed: int
) -> None:
    """``names`` maps the key in the file to the canonical name of the tensor."""
    label, kind = DTYPES[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, name in names.items():
        start, end = end, end + math.prod(shapes[name]) * kind.itemsize
        header[key] = {"dtype": label, "shape": list(shapes[name]), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    # Data starts at a multiple of 8; the format pads its header with spaces.
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    written = reported = 0
    for name in names.values():
        for block in blocks_of(name, shapes[name], seed):
            stream.write(block.astype(kind, copy=False).data)
            written += block.size * kind.itemsize
        if written - reported >= _REPORT_EVERY:
            reported = written
            print(f"{file}: {written / 1e9:.1f} of {end / 1e9:.1f} GB", file=sys.stderr, flush=True)


def _constant(name: str, shape: Shape) -> float | None:
    if name.endswith(".logit_scale"):
        return _LOGIT_SCALE
    if name.endswith(".bias"):
        return 0.0
    # Only norms have weights with one axis.
    return 1.0 if len(shape) == 1 and name.endswith(".weight") else None


def _fan_in(name: str, shape: Shape) -> int:
    if _TRANSPOSED.fullmatch(name):
        return shape[0]
    return math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--config", type=click.Path(path_type=Path), help="JSON file with the sizes.  [default: published]"
)
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="fp32", show_default=True)
@click.option("--split", is_flag=True, help="AutoKL and Optimus in files of their own, as published.")
@click.option("--seed", type=int, default=0, show_default=True)
def main(out: Path, config: Path | None, dtype: str, split: bool, seed: int) -> None:
    """Write a checkpoint of random weights, in the published layout, into the folder OUT."""
    start = time.perf_counter()
    architecture = Architecture.load(config) if config else Architecture()
    try:
        written = write_checkpoint(out, architecture, dtype=dtype, split=split, seed=seed)
    except InputError as error:
        raise click.ClickException(str(error)) from error
    for file, size in written.items():
        click.echo(f"{file}: {size / 1e9:.2f} GB")
    click.echo(f"{out}: written in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
