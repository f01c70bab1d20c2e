"""``unibrain-rt subjects``."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

import click
import numpy as np

from unibrain_rt.bundle import Bundle
from unibrain_rt.cli.messages import Command
from unibrain_rt.errors import input_error
from unibrain_rt.export.bundles.bundle_folder import add_subject, check_subject
from unibrain_rt.export.option_groups import grouped
from unibrain_rt.export.progress import Watch
from unibrain_rt.export.subjects.ridge.basis import VoxelScale
from unibrain_rt.export.subjects.ridge.dense import DenseHead
from unibrain_rt.export.subjects.storage_options import STORAGE_OPTIONS
from unibrain_rt.export.subjects.subject_writer import StorageOptions, write_subject
from unibrain_rt.flows import INPUTS

_path = click.Path(path_type=Path)
_SHAPES = {
    "image_latent": ("unet_image_step", "latent"),
    "text_latent": ("unet_text_step", "latent"),
    "image_context": ("unet_context", "image_context"),
    "text_context": ("unet_context", "text_context"),
}


@click.group("subjects", short_help="Bring in subjects that were fitted elsewhere.")
def command() -> None:
    """Bring in subjects that were fitted elsewhere."""


@command.command("import", cls=Command)
@click.option("--bundle", type=_path, required=True, help="Bundle the subject is put into.")
@click.option("--subject", required=True, help="The subject's name.")
@click.option(
    "--head",
    "heads",
    type=(click.Choice(INPUTS), _path),
    multiple=True,
    help="A head and its file, .npz with weight (..., voxels) and bias, or .npy; once for each of the four.",
)
@click.option(
    "--scans", type=_path, required=True, help="Betas (scans, voxels) that the heads were fitted on, .npy."
)
@click.option("--beta-scale", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True,
              help="What stored int16 betas are multiplied by; 1/300 in NSD.")  # fmt: skip
@grouped(STORAGE_OPTIONS, StorageOptions, "stored")
@click.option("--overwrite", is_flag=True, help="Replace the subject.")
def import_command(
    bundle: Path,
    subject: str,
    heads: tuple[tuple[str, Path], ...],
    scans: Path,
    beta_scale: float,
    stored: StorageOptions,
    overwrite: bool,
) -> None:
    """Bring regression weights, such as Brain-Diffuser's, into the form that decode reads.

    Weights are for z-scored voxels: means and deviations (ddof 1) are taken from --scans, and the factors keep what
    predictions for those scans need. Predictions are shrunken as ridge leaves them, unless a file has an array
    ``calibration``, a factor for each target. Pickles are not read.
    """
    if sorted(name for name, _ in heads) != sorted(INPUTS):
        raise click.UsageError(f"Give --head once for each of {', '.join(INPUTS)}.")
    watch = Watch()
    opened = Bundle.open(bundle)
    check_subject(opened.folder, subject, overwrite=overwrite)
    try:
        betas = np.load(scans, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise input_error(scans, f"cannot be read ({error}): give betas as .npy") from error
    basis = VoxelScale.of(betas, np.ones(len(betas) if betas.ndim else 0))
    dense = {}
    for name, path in heads:
        graph, tensor = _SHAPES[name]
        shape = tuple(int(size) for size in opened.graph(graph).tensor(tensor).shape[1:])
        dense[name] = DenseHead(path, shape, basis, betas)
    write = partial(
        write_subject,
        name=subject,
        heads=dense,
        beta_scale=beta_scale,
        **asdict(stored),
        encoders=opened.encoders,
        provenance={"imported": True},
        report=watch.say,
    )
    add_subject(opened.folder, write, subject, overwrite=overwrite)
    click.echo(f"{opened.folder}: {subject} imported, {basis.voxels:,} voxels")
