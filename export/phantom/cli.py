"""``unibrain-rt phantom``: train the small world's models, and make the bundle that is shipped."""

from __future__ import annotations

import time
from pathlib import Path

import click


@click.group("phantom", short_help="Train the phantom and make its bundle.")
def command() -> None:
    """The phantom: a small world of rendered scenes and simulated subjects, with models trained on it."""


@command.command("train")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder of the run; resumed if it exists."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Cores to use.  [default: all]")
@click.option(
    "--stage",
    type=click.Choice(["all", "autokl", "language", "decoder", "unet"]),
    default="all",
    show_default=True,
    help="autokl and language may run side by side, then decoder and unet.",
)
def train(out: Path, seed: int, threads: int | None, stage: str) -> None:
    """Train AutoKL, CLIP, Optimus and the four-flow UNet from scratch.

    Writes a checkpoint in the published layout. It can be stopped at any moment and started again; the
    weights come out the same.
    """
    import torch

    from unibrain_rt.export.phantom.train import (
        Recipe,
        train_autokl,
        train_decoder,
        train_language,
        train_phantom,
        train_unet,
    )

    if threads is not None:
        torch.set_num_threads(threads)
    start = time.monotonic()

    def report(name: str, step: int, steps: int, loss: float) -> None:
        line = f"{name:<12} {step:>6} / {steps}   loss {loss:.4f}   {time.monotonic() - start:7.0f} s"
        click.echo(f"\r{line}", nl=step == steps, err=True)

    stages = {
        "all": train_phantom,
        "autokl": train_autokl,
        "language": train_language,
        "decoder": train_decoder,
        "unet": train_unet,
    }
    stages[stage](out, Recipe(seed=seed), report)
    if stage == "all":
        click.echo(f"{out}: checkpoint written; next: unibrain-rt phantom bundle {out} --out BUNDLE")


@command.command("bundle")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the new bundle.")
@click.option("--examples", type=click.Path(path_type=Path), help="Also write held-out example scans here.")
@click.option("--overwrite", is_flag=True, help="Replace the bundle if it exists.")
def bundle(checkpoint: Path, out: Path, examples: Path | None, overwrite: bool) -> None:
    """Export a trained phantom, scan its subjects and fit their ridge heads: the bundle that is shipped."""
    from unibrain_rt.bundle import Bundle
    from unibrain_rt.engines import create_engine
    from unibrain_rt.export.phantom.assemble import assemble, write_examples

    start = time.monotonic()

    def report(what: str) -> None:
        click.echo(f"{what:<44} {time.monotonic() - start:6.0f} s", err=True)

    assemble(checkpoint, out, create_engine(), report, overwrite)
    if examples is not None:
        write_examples(examples, Bundle.open(out).architecture["autokl"]["image_size"])
    click.echo(f"{out}: made in {time.monotonic() - start:.0f} s")
