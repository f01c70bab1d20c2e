"""Tables and sizes as commands print them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from unibrain_rt.errors import one_line

_UNITS = ("bytes", "kB", "MB", "GB", "TB")
_CELL = 48  # characters of a cell, at most


def table(rows: Sequence[Sequence[str]], right: Iterable[int] = ()) -> Iterable[str]:
    """Rows of cells in columns two blanks apart, those of ``right`` aligned to the right."""
    aligned = set(right)
    cells = [[cell_text(cell) for cell in row] for row in rows]
    widths = [max(len(row[n]) for row in cells if len(row) > n) for n in range(max(map(len, cells)))]
    for row in cells:
        padded = (c.rjust(widths[n]) if n in aligned else c.ljust(widths[n]) for n, c in enumerate(row))
        yield "  ".join(padded).rstrip()


def cell_text(value: str) -> str:
    """What a manifest says, fit for a terminal."""
    return one_line(value, _CELL)


def size_text(size_bytes: float) -> str:
    """A number of bytes with three digits and a unit."""
    for unit in _UNITS:
        if size_bytes < 1000 or unit == _UNITS[-1]:
            break
        size_bytes /= 1000
    return f"{size_bytes:.3g} {unit}" if unit != "bytes" else f"{size_bytes} bytes"
