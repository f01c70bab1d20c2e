"""Many decodes at a glance: captioned pictures on one sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.png import check_picture

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

SHEET_TILES = 300  # more would make a picture that few programs open


@dataclass(frozen=True, eq=False)
class Tile:
    """Pictures (height, width, 3) shown side by side over one caption."""

    images: tuple[NDArray[np.uint8], ...]
    caption: str


_INK, _SOFT, _RULE, _PAPER = (34, 34, 34), (110, 110, 110), (216, 216, 216), (255, 255, 255)
_MARGIN, _GUTTER, _JOIN = 24, 22, 6  # px: around the sheet, between tiles, between the pictures of a tile
_SMALLEST, _LARGEST = 128, 256  # px of the squares that pictures are fitted into
_HEADER_WIDTH = 420  # px, what a header needs at least
_SHEET_WIDTH = 1600  # px, what a row aims to stay under


class _Type:
    """Text of one size and colour."""

    def __init__(self, size: int, ink: tuple[int, int, int]) -> None:
        from PIL import ImageFont

        self.font = ImageFont.load_default(size=size)
        self.leading = round(size * 1.35)
        self.ink = ink

    def draw(self, on: ImageDraw.ImageDraw, x: int, y: int, text: str, anchor: str = "la") -> None:
        on.text((x, y), text, fill=self.ink, font=self.font, anchor=anchor)

    def wrap(self, text: str, width: int, most: int = 3) -> list[str]:
        """Break ``text`` into at most ``most`` lines of ``width`` px, words longer than a line anywhere."""
        words = "".join(c if c.isprintable() else " " for c in text[:2000]).split()
        lines: list[str] = []
        line = ""
        while words and len(lines) <= most:
            word = words.pop(0)
            joined = f"{line} {word}" if line else word
            if self.font.getlength(joined) <= width:
                line = joined
                continue
            if line:
                words.insert(0, word)
            else:
                line = word[:1]
                while len(line) < len(word) and self.font.getlength(line + word[len(line)]) <= width:
                    line += word[len(line)]
                words[:0] = filter(None, [word[len(line) :]])
            lines.append(line)
            line = ""
        lines += filter(None, [line])
        if len(lines) > most:
            last = lines[most - 1]
            while last and self.font.getlength(f"{last}…") > width:
                last = last[:-1]
            lines[most - 1 :] = [f"{last.rstrip(' ,.;:')}…"]
        return lines or [""]


def contact_sheet(
    tiles: Sequence[Tile],
    columns: int | None = None,
    *,
    header: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
) -> NDArray[np.uint8]:
    """A sheet (height, width, 3) of captioned pictures on white.

    Pictures are fitted into squares of 128 to 256 px, by the largest of them. ``header`` is a title and more
    lines; ``labels`` name the pictures of a tile ("shown", "decoded") above each column. Captions wrap and
    end in an ellipsis after three lines. Tiles beyond `SHEET_TILES` are left out, and the sheet says so.
    """
    from PIL import Image, ImageDraw

    if not tiles or not all(tile.images for tile in tiles) or (columns is not None and columns < 1):
        raise ValueError("a contact sheet needs tiles, every tile a picture, and at least one column")
    for picture in (picture for tile in tiles for picture in tile.images):
        check_picture(picture)
    lines = list(header or ())
    if len(tiles) > SHEET_TILES:
        lines = [*(lines or ["Contact sheet"]), f"the first {SHEET_TILES:,} of {len(tiles):,}"]
        tiles = tiles[:SHEET_TILES]

    cell = max(max(picture.shape[:2]) for tile in tiles for picture in tile.images)
    cell = min(max(cell, _SMALLEST), _LARGEST)
    size = 14 if cell < 200 else 16
    title, note, body = _Type(size + 8, _INK), _Type(size, _SOFT), _Type(size, _INK)
    tile_width = max(len(tile.images) for tile in tiles) * (cell + _JOIN) - _JOIN
    columns = min(columns or _columns(len(tiles), tile_width, cell + 2 * body.leading), len(tiles))
    width = 2 * _MARGIN + columns * (tile_width + _GUTTER) - _GUTTER
    width = max(width, _HEADER_WIDTH if lines else 0)
    captions = [body.wrap(tile.caption, tile_width) for tile in tiles]
    starts = range(0, len(tiles), columns)
    text_heights = [8 + max(map(len, captions[n : n + columns])) * body.leading for n in starts]
    kinds = [title] + [note] * len(lines)
    heading = [(kind, text) for kind, line in zip(kinds, lines, strict=False)
               for text in kind.wrap(line, width - 2 * _MARGIN)]  # fmt: skip
    heading_height = sum(kind.leading for kind, _ in heading) + (_GUTTER if heading else 0)
    label_height = note.leading if labels else 0
    rows_height = sum(text_heights) + len(starts) * (cell + _GUTTER) - _GUTTER
    height = 2 * _MARGIN + heading_height + label_height + rows_height

    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    y = _MARGIN
    for kind, text in heading:
        kind.draw(draw, _MARGIN, y, text)
        y += kind.leading
    y = _MARGIN + heading_height + label_height
    for start, text_height in zip(starts, text_heights, strict=True):
        for column, tile in enumerate(tiles[start : start + columns]):
            x = _MARGIN + column * (tile_width + _GUTTER)
            for place, picture in enumerate(tile.images):
                left = x + place * (cell + _JOIN)
                _paste(sheet, draw, picture, left, y, cell)
                if labels and start == 0 and place < len(labels):
                    note.draw(draw, left + cell // 2, y - 8, note.wrap(labels[place], cell, 1)[0], "ms")
            for number, text in enumerate(captions[start + column]):
                body.draw(draw, x, y + cell + 8 + number * body.leading, text)
        y += cell + text_height + _GUTTER
    return np.array(sheet)


def _paste(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, picture: NDArray[np.uint8], x: int, y: int, cell: int
) -> None:
    """Fit a picture into the middle of a square; a hairline gives white pictures an edge."""
    from PIL import Image

    height, width = picture.shape[:2]
    ratio = cell / max(height, width)
    fitted = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    how = Image.Resampling.BICUBIC if ratio > 1 else Image.Resampling.LANCZOS
    scaled = Image.fromarray(np.ascontiguousarray(picture)).resize(fitted, how)
    left, upper = x + (cell - fitted[0]) // 2, y + (cell - fitted[1]) // 2
    sheet.paste(scaled, (left, upper))
    draw.rectangle((left - 1, upper - 1, left + fitted[0], upper + fitted[1]), outline=_RULE)


def _columns(count: int, tile_width: int, tile_height: int) -> int:
    """As many columns as make the sheet about 3:2, no wider than it should be, with rows filled evenly."""
    across, down = tile_width + _GUTTER, tile_height + _GUTTER
    columns = round(math.sqrt(1.5 * count * down / across))
    columns = max(1, min(columns, count, (_SHEET_WIDTH - 2 * _MARGIN + _GUTTER) // across))
    rows = -(-count // columns)
    return -(-count // rows)
