"""What came back, as pages for people.

``python -m unibrain_rt.benchmarks.gpu.pages FOLDER --out benchmarks/results``: FOLDER holds ``correct.json``,
``fast.json`` or both, as the machine with the GPU wrote them; each becomes ``gpu-<name>.json`` and ``gpu-<name>.md``.
"""

from __future__ import annotations

from pathlib import Path

import click

from unibrain_rt.benchmarks.gpu.correct_page import correct_page
from unibrain_rt.benchmarks.gpu.fast_page import fast_page
from unibrain_rt.benchmarks.gpu.parts import read, write

PAGES = {"correct": correct_page, "fast": fast_page}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results"), show_default=True)
@click.option(
    "--notes", type=click.Path(path_type=Path, exists=True), help="Folder of <name>.md, put under the title."
)
def main(folder: Path, out: Path, notes: Path | None) -> None:
    """Write the pages of what is in FOLDER."""
    for name, page in PAGES.items():
        if not (results := read(folder / f"{name}.json")):
            continue
        if notes is not None and (note := notes / f"{name}.md").is_file():
            results["notes"] = note.read_text(encoding="utf-8").strip()
        write(out / f"gpu-{name}.json", results)
        (out / f"gpu-{name}.md").write_text(page(results), encoding="utf-8")
        click.echo(f"{out / f'gpu-{name}.md'}")


if __name__ == "__main__":
    main()
