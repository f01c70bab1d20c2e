"""The benchmark's command line: ``python -m unibrain_rt.benchmarks.gpu``."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import click

from unibrain_rt.benchmarks.gpu.comparison import run
from unibrain_rt.benchmarks.gpu.page import page
from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import EngineError

NAME = "gpu"


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results"), show_default=True)
@click.option("--config", type=click.Path(path_type=Path), help="JSON file with the checkpoint's sizes.")
@click.option("--preset", default="paper", show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=10, show_default=True)
@click.option("--tokens", type=click.IntRange(1), default=20, show_default=True, help="Of the caption.")
@click.option("--dry-run", is_flag=True, help="On the CPU, to check this benchmark.")
def main(
    checkpoint: Path,
    bundle: Path,
    out: Path,
    config: Path | None,
    preset: str,
    rounds: int,
    tokens: int,
    dry_run: bool,
) -> None:
    """Measure whole decodes of the CHECKPOINT folder's model and of the BUNDLE made of it."""
    try:
        results = run(
            checkpoint,
            Bundle.open(bundle, verify=False),
            config=config,
            preset=preset,
            rounds=rounds,
            tokens=tokens,
            dry=dry_run,
            say=partial(click.echo, err=True),
        )
    except EngineError as error:
        raise click.ClickException(str(error)) from error
    name = f"{NAME}-dry-run" if dry_run else NAME
    out.mkdir(parents=True, exist_ok=True)
    _write(out / f"{name}.json", json.dumps(results, indent=1) + "\n")
    _write(out / f"{name}.md", page(results))
    click.echo(f"{out / name}.json and .md written")


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


if __name__ == "__main__":
    main()
