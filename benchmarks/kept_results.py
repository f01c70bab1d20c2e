"""Results of benchmarks in files: parts that are kept between runs, and what is written at the end."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from unibrain_rt.files import write_files

_log = logging.getLogger(__name__)


class KeptResults:
    """A folder with a JSON file a part: what is there is not measured again, until its file is deleted.

    A run that is killed goes on from there, since a file appears whole or not at all.
    """

    def __init__(self, folder: Path, prefix: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._prefix = folder, prefix

    def path(self, name: str) -> Path:
        return self.folder / f"{self._prefix}{name}.json"

    def there(self, name: str) -> bool:
        return self.path(name).exists()

    def read(self, name: str) -> Any:
        """What was kept of a part; None if nothing was."""
        return json.loads(self.path(name).read_text(encoding="utf-8")) if self.there(name) else None

    def keep(self, name: str, result: Any) -> None:
        write_files({self.path(name): json.dumps(result, indent=1) + "\n"})

    def once(self, name: str, measure: Callable[[], Any]) -> Any:
        """A part's result, measured now if it is not there."""
        if self.there(name):
            _log.info("%s: measured before, kept", name)
            return self.read(name)
        _log.info("%s: running", name)
        begun = time.perf_counter()
        self.keep(name, measure())
        _log.info("%s: done in %.0f s", name, time.perf_counter() - begun)
        return self.read(name)


def write_results(path: Path, results: Mapping[str, Any], page: str, picture: str | None = None) -> None:
    """Write results as JSON beside their page in Markdown, and a picture if there is one; ``path`` has no suffix."""
    texts = {".json": json.dumps(results, indent=1) + "\n", ".md": page, ".svg": picture}
    files = {path.with_suffix(suffix): text for suffix, text in texts.items() if text is not None}
    write_files(files)
    click.echo(f"{', '.join(str(file) for file in files)} written")


out_option = click.option(
    "--out", type=click.Path(path_type=Path), default=Path("benchmarks/results"), show_default=True,
    help="Folder for the results.",
)  # fmt: skip
result_option = click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Results: this with .json and .md."
)
