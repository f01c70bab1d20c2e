"""``unibrain-rt phantom``: train the small world's models and make the bundle that is shipped.

`unibrain_rt.benchmarks.experiments.cli` adds the command that reports on it.
"""

from __future__ import annotations

from pathlib import Path

import click

from unibrain_rt.cli.messages import Command
from unibrain_rt.export.progress import Watch


@click.group("phantom", short_help="Train the phantom and make its bundle.")
def command() -> None:
    """The phantom: a small world of rendered scenes and simulated subjects, with models trained on it."""


@command.command("train", cls=Command)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder of the run; resumed if it exists."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Cores to use.  [default: all]")
@click.option(
    "--stage",
    type=click.Choice(["all", "autokl", "clip", "optimus", "unet"]),
    default="all",
    show_default=True,
    help="autokl, clip and optimus may run side by side; then unet; all ends it.",
)
def train(out: Path, seed: int, threads: int | None, stage: str) -> None:
    """Train AutoKL, CLIP, Optimus and the four-flow UNet from scratch.

    Writes a checkpoint in the published layout, and losses.png. It can be stopped at any moment and started
    again; the weights come out the same.
    """
    import torch

    from unibrain_rt.export.phantom.learning.loss_plot import plot_losses
    from unibrain_rt.export.phantom.learning.recipe import Recipe, Run

    if threads is not None:
        torch.set_num_threads(threads)
    run = Run(out, Recipe(seed=seed), Watch().step)
    getattr(run, "checkpoint" if stage == "all" else stage)()
    click.echo(f"{plot_losses(out)}: the losses so far")
    if stage == "all":
        click.echo(f"{out}: checkpoint written; next: unibrain-rt phantom bundle {out} --out BUNDLE")


@command.command("bundle", cls=Command)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the new bundle.")
@click.option("--examples", type=click.Path(path_type=Path), help="Also write held-out example scans here.")
@click.option("--overwrite", is_flag=True, help="Replace the bundle if it exists.")
def bundle(checkpoint: Path, out: Path, examples: Path | None, overwrite: bool) -> None:
    """Export a trained phantom, scan its subjects and fit their ridge heads: the bundle that is shipped."""
    from unibrain_rt.bundle import Bundle
    from unibrain_rt.engines import create_engine
    from unibrain_rt.export.phantom.assemble import assemble, write_examples

    watch = Watch()
    assemble(checkpoint, out, create_engine(), watch.say, overwrite)
    if examples is not None:
        write_examples(examples, Bundle.open(out).architecture["autokl"]["image_size"])
    click.echo(f"{out}: made in {watch.elapsed:.0f} s")


@command.command("scan", cls=Command)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the new recording.")
@click.option("--subject", "subjects", multiple=True, help="Whom to scan; may be repeated.  [default: all]")
@click.option(
    "--scans",
    type=click.IntRange(1),
    default=10_000,
    show_default=True,
    help="Stimuli that each subject sees, three times each; a multiple of 250. A tenth are shown to all: the test set.",
)
@click.option("--overwrite", is_flag=True, help="Replace the recording if it exists.")
def scan(out: Path, subjects: tuple[str, ...], scans: int, overwrite: bool) -> None:
    """Scan the phantom's subjects and write pictures, captions and betas in NSD's own folders.

    What is written is read like NSD: unibrain-rt fit --nsd OUT --subject sub-01 --out BUNDLE.
    """
    from unibrain_rt.export.phantom.people import SUBJECTS
    from unibrain_rt.export.phantom.recording import record

    watch = Watch()
    record(out, subjects or tuple(SUBJECTS), scans, overwrite=overwrite, report=watch.say)
    click.echo(f"{out}: recorded in {watch.elapsed:.0f} s")


@command.command("judge", cls=Command)
@click.option(
    "--run",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of its training; resumed if it exists.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder for judge.onnx and judge.json."
)
@click.option("--threads", type=click.IntRange(1), help="Cores to use.  [default: all]")
def judge(run: Path, out: Path, threads: int | None) -> None:
    """Train the judge, a feature network apart from everything the decoder uses, for `report` and `evaluate`."""
    import torch

    from unibrain_rt.export.phantom.learning.judge import train_judge, write_judge

    if threads is not None:
        torch.set_num_threads(threads)
    click.echo(f"{write_judge(out, train_judge(run, Watch().step).judge)}: written")
