"""All that travels to a machine with a GPU and no network: ``python -m unibrain_rt.benchmarks.gpu.pack --out PACK``."""

from __future__ import annotations

import json
import lzma
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import click
import numpy as np
from safetensors.numpy import save_file

from unibrain_rt import __version__
from unibrain_rt.benchmarks.gpu.filling import PLACES
from unibrain_rt.benchmarks.gpu.hollow import HollowFile, decode_graphs, hollow, save_hollow
from unibrain_rt.benchmarks.gpu.reference import write_reference
from unibrain_rt.benchmarks.gpu.wheel import unpack_pruned
from unibrain_rt.benchmarks.random_checkpoint import SPECIAL, write_vocabulary
from unibrain_rt.bundle import CONSTANTS, SCHEMA_VERSION, UNCONDITIONAL
from unibrain_rt.export.bundles.architecture import Architecture
from unibrain_rt.export.bundles.bundle_folder import write_manifest
from unibrain_rt.export.bundles.costs import operator_counts
from unibrain_rt.export.bundles.cuda import CUDA, cuda_flavour
from unibrain_rt.export.bundles.graph_folder import FLAVOURED, GRAPHS, describe
from unibrain_rt.export.bundles.precision import Precision, set_precision
from unibrain_rt.files import whole_folder
from unibrain_rt.presets import PRESETS

WHEEL, PEER = "onnxruntime-gpu==1.31.1", "diffusers==0.39.0"
PYTHON = "3.12"
SITE, PUBLISHED, REFERENCE = "site", "published", "reference.npz"
CARRIED = "carry.tar.xz"


def write_published(folder: Path, sizes: Architecture, *, precision: Precision = "fp16") -> None:
    """A bundle of these sizes without its weights: those are `filling`'s to write, on the device."""
    graphs, places, records = folder / GRAPHS, {}, {}
    graphs.mkdir(parents=True)
    for graph, tags in decode_graphs(sizes):
        model, parts = hollow(graph, tags)
        weights = HollowFile(graphs / f"{graph.name}.weights")
        own = cuda_flavour(model) if precision == "fp16" and graph.name in FLAVOURED else None
        set_precision(model, precision)
        save_hollow(model, parts, graphs / f"{graph.name}.onnx", weights)
        record = describe(model, graph.feedback, [weights.path.name])
        if own is not None:
            save_hollow(own, parts, graphs / f"{graph.name}.{CUDA}.onnx", weights)
            record["flavours"] = {CUDA: f"{GRAPHS}/{graph.name}.{CUDA}.onnx"}
            record["flavour_operators"] = {CUDA: operator_counts(own)}
        records[graph.name] = record
        places[f"{GRAPHS}/{weights.path.name}"] = weights.close()
        click.echo(
            f"{graph.name}: {places[f'{GRAPHS}/{weights.path.name}']['bytes'] / 1e9:.2f} GB of weights to draw"
        )
    write_manifest(folder, _manifest(folder, sizes, precision, records))
    for name in places:
        (folder / name).unlink()
    (folder / PLACES).write_text(json.dumps(places), encoding="utf-8")


def _manifest(
    folder: Path, sizes: Architecture, precision: Precision, records: dict[str, Any]
) -> dict[str, Any]:
    """Also writes what else a bundle holds."""
    rng, clip = np.random.default_rng(0), sizes.clip
    shapes = [(1, tokens, sizes.unet.context_dim) for tokens in (clip.image_tokens, clip.text_tokens)]
    unconditional = dict(
        zip(UNCONDITIONAL, (rng.standard_normal(shape).astype(np.float32) for shape in shapes), strict=True)
    )
    save_file(unconditional, folder / CONSTANTS)
    write_vocabulary(folder / "tokenizers" / "gpt2", int(sizes.optimus.decoder["vocab_size"]) - SPECIAL)
    return {
        "schema_version": SCHEMA_VERSION,
        "name": "random",
        "precision": precision,
        "architecture": sizes.to_mapping(),
        "graphs": records,
        "presets": {key: preset.to_mapping() for key, preset in PRESETS.items()},
        "subjects": [],
        "tokenizers": {"gpt2": "tokenizers/gpt2"},
        "provenance": {"unibrain_rt": __version__},
    }


def download(requirement: str, folder: Path) -> Path:
    """A wheel for the other machine, from the package index."""
    folder.mkdir(parents=True, exist_ok=True)
    name = requirement.partition("==")[0].replace("-", "_")
    if not (there := sorted(folder.glob(f"{name}-*.whl"))):
        words = [
            "download",
            "-q",
            "--no-deps",
            "--only-binary=:all:",
            "--python-version",
            PYTHON,
            "-d",
            str(folder),
        ]
        tags = [
            word for tag in ("2_28", "2_27", "2_17") for word in ("--platform", f"manylinux_{tag}_x86_64")
        ]
        subprocess.run([sys.executable, "-m", "pip", *words, *tags, requirement], check=True)
        there = sorted(folder.glob(f"{name}-*.whl"))
    return there[0]


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option(
    "--wheels", type=click.Path(path_type=Path), help="Folder of wheels that were downloaded before."
)
@click.option(
    "--architecture", type=int, default=90, show_default=True, help="Compute capability of the GPU."
)
@click.option(
    "--config", type=click.Path(path_type=Path), help="JSON file with the sizes.  [default: published]"
)
def main(out: Path, wheels: Path | None, architecture: int, config: Path | None) -> None:
    """Prepare the folder OUT; what is there already is kept."""
    out.mkdir(parents=True, exist_ok=True)
    wheels = wheels or out.with_name(f"{out.name}-wheels")
    if not (out / SITE).exists():
        with whole_folder(out / SITE) as folder:
            unpack_pruned(download(WHEEL, wheels), folder, architecture)
            with zipfile.ZipFile(download(PEER, wheels)) as peer:
                peer.extractall(folder)
    if not (out / PUBLISHED).exists():
        with whole_folder(out / PUBLISHED) as folder:
            write_published(folder, Architecture.load(config) if config else Architecture())
    if not (out / REFERENCE).exists():
        write_reference(out / REFERENCE)
    with lzma.open(out / CARRIED, "wb", preset=9) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for name in (SITE, PUBLISHED, REFERENCE):
            tar.add(out / name, name)
    click.echo(f"{out / CARRIED}: {(out / CARRIED).stat().st_size / 2**20:.1f} MiB to carry")


if __name__ == "__main__":
    main()
