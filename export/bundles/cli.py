"""``unibrain-rt export``."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import click

from unibrain_rt.bundle import MANIFEST
from unibrain_rt.cli.messages import Command
from unibrain_rt.errors import InputError
from unibrain_rt.export.bundles.precision import Precision

_log = logging.getLogger(__name__)


@click.command("export", cls=Command, short_help="Turn a published checkpoint into a bundle.")
@click.argument("source", metavar="CHECKPOINT_DIR")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the new bundle.")
@click.option("--config", type=click.Path(path_type=Path), help="JSON file with the checkpoint's sizes.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "fp32-half-weights"]),
    default="fp32",
    show_default=True,
    help="Of the graphs; the last computes in fp32 from weights stored in half.",
)
@click.option("--name", help="The bundle's name.  [default: its folder's, or the converted bundle's]")
@click.option("--overwrite", is_flag=True, help="Replace the bundle if it exists.")
def command(
    source: str, out: Path, config: Path | None, precision: Precision, name: str | None, overwrite: bool
) -> None:
    """Export a Versatile Diffusion checkpoint: SHI-Labs' files, a diffusers folder or a name on the hub.

    A folder that holds bundle.json is converted: the same bundle in another precision, which may be any if it is
    not fp16 already. Its subjects stay.
    """
    start = time.monotonic()

    def report(graph: str, number: int, total: int) -> None:
        line = f"[{number}/{total}] {graph}"
        _log.info("%-28s %6.0f s", line, time.monotonic() - start)

    if (Path(source) / MANIFEST).is_file():
        if config is not None:
            raise InputError(f"{source}: a bundle knows its sizes; leave out --config")
        from unibrain_rt.export.bundles.conversion import convert_bundle

        convert_bundle(Path(source), out, precision=precision, name=name, overwrite=overwrite, report=report)
        click.echo(f"{out}: converted in {time.monotonic() - start:.0f} s")
        return
    # torch and its kin take seconds to load, and a conversion does without them.
    from unibrain_rt.export.bundles.checkpoint import open_checkpoint
    from unibrain_rt.export.bundles.writer import write_bundle

    opened = open_checkpoint(source, config)
    write_bundle(opened, out, precision=precision, name=name, overwrite=overwrite, report=report)
    if "gpt2" not in opened.tokenizers:
        _log.warning(
            "note: %s writes no captions: no vocabulary was found; put GPT-2's vocab.json and merges.txt into "
            "%s/tokenizers/gpt2 and export again",
            out,
            source,
        )
    elif not opened.has_captions:
        _log.warning("note: %s writes no captions: the checkpoint has no Optimus (optimus-vae.pth)", out)
    click.echo(f"{out}: exported in {time.monotonic() - start:.0f} s")
