"""What a decode leaves behind: PNG and JSON, written whole or not at all, and a contact sheet.

A file is first written under a temporary name in its own folder, then renamed, so that no reader ever sees
half of it. What the system refuses (no space, no permission) is an `InputError` of one line. Only the contact
sheet, which has letters in it, needs Pillow.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.errors import InputError, input_error, one_line
from unibrain_rt.png import check_picture, encode_png

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

SHEET_NAME = "contact_sheet"
SHEET_TILES = 300  # more would make a picture that few programs open

_ADVICE = {
    errno.ENOSPC: "free some space or write elsewhere with --out",
    errno.EDQUOT: "free some space or write elsewhere with --out",
    errno.ENOTDIR: "a file stands where a folder is needed, write elsewhere with --out",
    errno.EEXIST: "a file stands where a folder is needed, write elsewhere with --out",
    errno.EISDIR: "a folder stands where the file would go, write elsewhere with --out",
    errno.ENAMETOOLONG: "shorten the scan's name",
}


@dataclass(frozen=True)
class Output:
    """The pair of files of one scan; ``existing`` are those that were there when the plan was made."""

    stem: str
    png: Path
    json: Path
    existing: tuple[Path, ...]


@dataclass(frozen=True)
class OutputPlan:
    """Which scans to decode (``todo``) and which to leave because an output of theirs is there (``kept``)."""

    out: Path
    todo: tuple[Output, ...]
    kept: tuple[Output, ...]

    @property
    def wanted(self) -> frozenset[str]:
        """Stems to decode."""
        return frozenset(output.stem for output in self.todo)

    @property
    def incomplete(self) -> tuple[Output, ...]:
        """Kept although one file of the pair is missing: it is not ours to guess who wrote the other."""
        return tuple(output for output in self.kept if len(output.existing) == 1)

    @property
    def contact_sheet(self) -> Path:
        return self.out / f"{SHEET_NAME}.png"


def plan_outputs(
    out: Path,
    stems: Sequence[str],
    overwrite: bool,
    *,
    sources: Sequence[str | os.PathLike[str]] | None = None,
) -> OutputPlan:
    """Decide what to write before anything is decoded: ``<out>/<stem>.png`` and ``.json`` for every stem.

    ``sources`` are the stems' inputs, for messages. A scan is kept if either of its files is there and not
    ``overwrite``. Raises `InputError` if two scans would write the same files, if a stem cannot be a file's
    name, or if ``out`` cannot be written to.
    """
    out = Path(out)
    origin = [os.fspath(source) for source in sources] if sources is not None else list(stems)
    _check_folder(out)
    seen: dict[str, str] = {}
    todo: list[Output] = []
    kept: list[Output] = []
    for stem, source in zip(stems, origin, strict=True):
        if not stem or Path(stem).name != stem or "\0" in stem or stem == "..":
            raise input_error(source, f"'{stem}' cannot name an output: rename the scan")
        if len(os.fsencode(f"{stem}.json")) > 255:
            raise input_error(source, "its name is too long for an output: shorten it")
        if stem == SHEET_NAME:
            raise input_error(source, f"{SHEET_NAME}.png is the name of the contact sheet: rename the scan")
        png, record = out / f"{stem}.png", out / f"{stem}.json"
        key = os.path.normcase(stem)
        if key in seen:
            first, second = one_line(seen[key], 80), one_line(source, 80)
            if seen[key] == source:
                raise input_error(png, f"'{first}' would be written twice: give every scan once")
            problem = f"both '{first}' and '{second}' would be written there"
            raise input_error(png, f"{problem}: rename one, or decode them apart, each with its own --out")
        seen[key] = source
        existing = tuple(path for path in (png, record) if os.path.lexists(path))
        for path in existing:
            if path.is_dir():
                raise input_error(path, "a folder stands where the file would go: write elsewhere with --out")
        (kept if existing and not overwrite else todo).append(Output(stem, png, record, existing))
    return OutputPlan(out, tuple(todo), tuple(kept))


def write_png(path: Path, image: NDArray[np.uint8], *, text: Mapping[str, str] | None = None) -> None:
    """Write ``image`` (height, width, 3) with ``text`` as PNG text chunks. Raises `InputError`."""
    _write([(Path(path), encode_png(image, _encodable(text)))])


def write_json(path: Path, mapping: Mapping[str, Any]) -> None:
    """Write strict JSON in UTF-8; NumPy values and paths are converted. Raises `InputError`."""
    _write([(Path(path), _json_bytes(mapping))])


def write_text(path: Path, text: str) -> None:
    """Write ``text`` in UTF-8. Raises `InputError`."""
    _write([(Path(path), text.encode("utf-8", "backslashreplace"))])


def write_texts(files: Mapping[Path, str]) -> None:
    """Write several texts in UTF-8, all or (where none was there) none. Raises `InputError`."""
    _write([(Path(path), text.encode("utf-8", "backslashreplace")) for path, text in files.items()])


def write_pair(
    output: Output,
    image: NDArray[np.uint8],
    record: Mapping[str, Any],
    *,
    text: Mapping[str, str] | None = None,
) -> None:
    """Write a scan's picture and record, both or (where neither was there) none. Raises `InputError`."""
    picture = encode_png(image, _encodable(text))
    _write([(output.png, picture), (output.json, _json_bytes(record))])


def _encodable(text: Mapping[str, str] | None) -> dict[str, str]:
    """``text`` with lone surrogates, which stand for undecodable bytes of file names, in their backslash form."""
    return {
        key: value.encode("utf-8", "backslashreplace").decode("utf-8") for key, value in (text or {}).items()
    }


def _json_bytes(mapping: Mapping[str, Any]) -> bytes:
    text = json.dumps(dict(mapping), indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    # A file name may hold undecodable bytes as lone surrogates; their backslash form is JSON's own for them.
    return f"{text}\n".encode("utf-8", "backslashreplace")


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _write(files: Sequence[tuple[Path, bytes]]) -> None:
    """Put all files in place or, if any of them fails, none; temporary files never stay."""
    temporary: list[Path] = []
    placed: list[Path] = []
    path = files[0][0]
    try:
        for path, data in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            part = path.with_name(f".{os.urandom(8).hex()}.tmp")
            temporary.append(part)
            # Not tempfile: it makes files that only their owner can read, and labs share folders.
            with open(part, "xb") as stream:
                stream.write(data)
        for (path, _), part in zip(files, temporary, strict=True):
            if not os.path.lexists(path):
                placed.append(path)
            os.replace(part, path)
    except BaseException as error:  # an interrupt must not leave half a pair either
        for leftover in (*temporary, *placed):
            try:
                leftover.unlink(missing_ok=True)
            except OSError:
                continue  # the folder itself may be gone; the first error is the one to show
        if isinstance(error, OSError):
            raise _cannot_write(path, error) from error
        raise


def _cannot_write(path: Path, error: OSError) -> InputError:
    advice = _ADVICE.get(error.errno or 0, "write to a folder of yours with --out")
    return input_error(path, f"cannot be written ({error.strerror or type(error).__name__}): {advice}")


def _check_folder(out: Path) -> None:
    """Raise early what would make every write fail."""
    if "\0" in os.fspath(out):
        raise input_error(out, "cannot be a folder's name: give another --out")
    try:
        nearest = next((folder for folder in (out, *out.parents) if os.path.lexists(folder)), Path())
        if not nearest.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _cannot_write(out, error) from error


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
    Raises `ImportError` where Pillow is not installed.
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
