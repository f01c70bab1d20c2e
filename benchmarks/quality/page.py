"""A report as a page: sections of words, tables and pictures, as one HTML file, as Markdown and as JSON.

The HTML file is whole: pictures lie in it, nothing is loaded from elsewhere, and no script runs.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unibrain_rt.benchmarks.quality.intervals import Interval
from unibrain_rt.errors import InputError
from unibrain_rt.files import write_files

Cell: TypeAlias = "Interval | float | int | str"
HTML, MARKDOWN, RECORD = "report.html", "report.md", "report.json"
DIGITS = 3
LARGEST = 256  # px of a picture's longer side: twice what the page shows, for dense screens


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of cells under the names of the columns; the first cell of a row names it.

    ``best`` names columns whose best cells are set off, and tells whether higher is better there.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    best: Mapping[str, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if wrong := [row for row in self.rows if len(row) != len(self.columns)]:
            raise ValueError(
                f"{self.title}: a row of {len(wrong[0])} cells under {len(self.columns)} columns"
            )
        if unknown := self.best.keys() - set(self.columns):
            raise ValueError(f"{self.title}: there is no column {sorted(unknown)[0]}")

    def winners(self) -> set[tuple[int, int]]:
        """Row and column of the best cells, by what is shown of them: what looks equal wins together."""
        best_cells = set()
        for column, higher in ((self.columns.index(name), higher) for name, higher in self.best.items()):
            shown = {
                row: round(_number(cells[column]), DIGITS)
                for row, cells in enumerate(self.rows)
                if not isinstance(cells[column], str) and math.isfinite(_number(cells[column]))
            }
            best = (max if higher else min)(shown.values(), default=None)
            best_cells |= {(row, column) for row, value in shown.items() if value == best and len(shown) > 1}
        return best_cells


@dataclass(frozen=True, eq=False)
class Picture:
    """An image (H, W, 3) with the words below it; ``alt`` says what it is to those who do not see it."""

    image: NDArray[np.uint8]
    caption: str
    alt: str


@dataclass(frozen=True, eq=False)
class Pictures:
    """Groups of pictures that belong together, side by side: a stimulus and its decode, say."""

    title: str
    groups: tuple[tuple[Picture, ...], ...]


Block: TypeAlias = "Text | Table | Pictures"


@dataclass(frozen=True, eq=False)
class Section:
    """A headline and what stands below it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, eq=False)
class Page:
    """The whole report."""

    title: str
    sections: tuple[Section, ...]

    def html(self) -> str:
        """One self-contained file."""
        links = "".join(
            f'<li><a href="#s{place}">{escape(section.title)}</a></li>'
            for place, section in enumerate(self.sections)
        )
        body = "\n".join(_section(place, section) for place, section in enumerate(self.sections))
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
            f"<h1>{escape(self.title)}</h1>\n<nav><ol>{links}</ol></nav>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
        )

    def markdown(self) -> str:
        """Words and tables; of pictures, their captions."""
        parts = [f"# {_quoted(self.title)}"]
        for section in self.sections:
            parts.append(f"## {_quoted(section.title)}")
            parts += [_markdown(block) for block in section.blocks]
        return "\n\n".join(parts) + "\n"

    def record(self) -> dict[str, Any]:
        """For JSON: words, and tables whose intervals are numbers; of pictures, their captions."""
        return {
            "title": self.title,
            "sections": [
                {"title": section.title, "blocks": [_record(block) for block in section.blocks]}
                for section in self.sections
            ],
        }


def check_report(out: Path, *, overwrite: bool = False) -> None:
    """Raise `InputError` now where `write_report` would: a report is there already, or ``out`` is no folder."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: a file stands where the folder would be; choose another --out")
    for name in (HTML, MARKDOWN, RECORD):
        if os.path.lexists(out / name) and not overwrite:
            raise InputError(f"{out / name}: exists already; choose another --out, or give --overwrite")


def write_report(
    out: Path, page: Page, *, data: Mapping[str, Any] | None = None, overwrite: bool = False
) -> None:
    """Write ``report.html``, ``report.md`` and ``report.json`` into ``out``, all or none.

    Args:
        data: what else the JSON file tells, beside the page's own record.

    Raises:
        InputError: a report is there already, or the files cannot be written.
    """
    check_report(out, overwrite=overwrite)
    record = json.dumps({**page.record(), **(data or {})}, indent=1, ensure_ascii=False, allow_nan=False)
    write_files({out / HTML: page.html(), out / MARKDOWN: page.markdown(), out / RECORD: f"{record}\n"})


_STYLE = """
:root { color-scheme: light dark; --line: #8886; --dim: #666; }
@media (prefers-color-scheme: dark) { :root { --dim: #aaa; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.7rem; } h2 { margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
p { max-width: 48rem; } nav ol { columns: 2 18rem; padding-left: 1.4rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; margin: 1rem 0; font-size: .88rem; }
caption, h3 { text-align: left; font-weight: 600; font-size: 1rem; padding: .4rem 0; margin: .8rem 0 0; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td.word { text-align: left; } tbody th { font-weight: 500; } small { color: var(--dim); }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; } .group { display: flex; gap: .3rem; }
figure { margin: 0; width: 8rem; } figcaption { font-size: .78rem; line-height: 1.25; }
img { width: 8rem; height: auto; display: block; image-rendering: auto; border-radius: 3px; }
"""


def _section(place: int, section: Section) -> str:
    blocks = "\n".join(_html(block) for block in section.blocks)
    return f'<section id="s{place}">\n<h2>{escape(section.title)}</h2>\n{blocks}\n</section>'


def _html(block: Block) -> str:
    if isinstance(block, Text):
        return f"<p>{escape(block.text)}</p>"
    if isinstance(block, Table):
        winners = block.winners()
        head = "".join(f'<th scope="col">{escape(name)}</th>' for name in block.columns)
        rows = "\n".join(
            f'<tr><th scope="row">{escape(_plain(row[0]))}</th>'
            + "".join(_cell(cell, (place, column) in winners) for column, cell in enumerate(row[1:], 1))
            + "</tr>"
            for place, row in enumerate(block.rows)
        )
        note = f"<p><small>{escape(block.note)}</small></p>" if block.note else ""
        title = escape(block.title)
        return (
            f'<div class="wide" role="region" tabindex="0" aria-label="{title}"><table>\n'
            f"<caption>{title}{_count(block)}</caption>\n"
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>{note}"
        )
    groups = "\n".join(f'<div class="group">{"".join(map(_figure, group))}</div>' for group in block.groups)
    return f'<h3>{escape(block.title)}</h3>\n<div class="pictures">\n{groups}\n</div>'


def _cell(cell: Cell, best: bool = False) -> str:
    if isinstance(cell, str):
        return f'<td class="word">{escape(cell)}</td>'
    value, limits = _plain(cell), ""
    if isinstance(cell, Interval):
        value, _, rest = value.partition(" ")
        limits = f" <small>{rest}</small>"
    return f"<td>{f'<strong>{value}</strong>' if best else value}{limits}</td>"


def _figure(picture: Picture) -> str:
    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(picture.image))
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    image.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    width, height = image.size
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{escape(picture.alt)}" width="{width}" '
        f'height="{height}"><figcaption>{escape(picture.caption)}</figcaption></figure>'
    )


def _markdown(block: Block) -> str:
    if isinstance(block, Text):
        return _quoted(block.text)
    title = f"**{_quoted(block.title)}"
    if isinstance(block, Table):
        lines = [tuple(map(_quoted, block.columns)), ("---", *("---:" for _ in block.columns[1:]))]
        winners = block.winners()
        for place, row in enumerate(block.rows):
            cells = [_quoted(_plain(cell)) for cell in row]
            lines.append(
                tuple(f"**{cell}**" if (place, at) in winners else cell for at, cell in enumerate(cells))
            )
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        note = f"\n\n{_quoted(block.note)}" if block.note else ""
        return f"{title}{_count(block)}**\n\n{table}{note}"
    told = "\n".join(f"- {' → '.join(_quoted(one.caption) for one in group)}" for group in block.groups)
    return f"{title}**\n\n{told}"


def _quoted(text: str) -> str:
    """Text on one line in which Markdown sees no tags and no borders of cells."""
    return " ".join(text.split()).replace("<", "&lt;").replace("|", "\\|")


def _record(block: Block) -> dict[str, Any]:
    if isinstance(block, Text):
        return {"text": block.text}
    if isinstance(block, Table):
        rows = [
            {name: _cell_record(cell) for name, cell in zip(block.columns, row, strict=True)}
            for row in block.rows
        ]
        return {"table": block.title, "rows": rows, **({"note": block.note} if block.note else {})}
    return {
        "pictures": block.title,
        "captions": [[picture.caption for picture in group] for group in block.groups],
    }


def _cell_record(cell: Cell) -> Any:
    if isinstance(cell, Interval):
        return cell.record()
    # JSON has no number for what is not finite.
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell


def _plain(cell: Cell) -> str:
    if isinstance(cell, Interval):
        return cell.text(DIGITS)
    if isinstance(cell, float):
        return f"{cell:.{DIGITS}f}" if math.isfinite(cell) else "–"
    return str(cell)


def _number(cell: Cell) -> float:
    return cell.mean if isinstance(cell, Interval) else float(cell)


def _count(block: Table) -> str:
    """``(n = 200)`` where all of the table's intervals are of as many items, else from how many to how many."""
    counts = sorted({cell.n for cell in _intervals(block)})
    if not counts:
        return ""
    return f" (n = {counts[0]})" if len(counts) == 1 else f" (n = {counts[0]} to {counts[-1]})"


def _intervals(block: Table) -> Iterator[Interval]:
    return (cell for row in block.rows for cell in row if isinstance(cell, Interval))
