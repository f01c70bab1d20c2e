"""Sheets of captioned pictures: sizes, rows, captions and what does not fit."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from unibrain_rt import contact_sheet as sheets
from unibrain_rt.contact_sheet import Tile, contact_sheet


def boxes(sheet: np.ndarray[Any, Any], colour: tuple[int, int, int]) -> list[tuple[int, int, int, int]]:
    """Left, top, width and height of the solid boxes of one colour, in reading order."""
    there = (sheet == np.array(colour, np.uint8)).all(axis=2)
    found = []
    while there.any():
        top, left = map(int, np.unravel_index(there.argmax(), there.shape))
        width = int(np.argmin(np.append(there[top, left:], False)))
        height = int(np.argmin(np.append(there[top:, left], False)))
        assert there[top : top + height, left : left + width].all()
        there[top : top + height, left : left + width] = False
        found.append((left, top, width, height))
    return found


def solid(height: int, width: int, colour: tuple[int, int, int]) -> np.ndarray[Any, Any]:
    return np.full((height, width, 3), colour, np.uint8)


RED, BLUE = (250, 10, 20), (20, 10, 250)


@pytest.mark.parametrize(("size", "cell"), [(8, 128), (64, 128), (200, 200), (512, 256)])
def test_pictures_are_128_to_256_px(size: int, cell: int) -> None:
    sheet = contact_sheet([Tile((solid(size, size, RED),), "red")] * 4, columns=2)
    found = boxes(sheet, RED)
    assert [box[2:] for box in found] == [(cell, cell)] * 4
    assert len({box[0] for box in found}) == len({box[1] for box in found}) == 2
    assert sheet.dtype == np.uint8
    assert sheet.flags.writeable
    assert (sheet[0] == 255).all()
    assert (sheet[:, -1] == 255).all()


def test_pictures_keep_their_shape_and_stand_in_the_middle() -> None:
    sheet = contact_sheet([Tile((solid(64, 32, RED), solid(16, 64, BLUE)), "two")])
    ((red_x, red_y, *red),) = boxes(sheet, RED)
    ((blue_x, blue_y, *blue),) = boxes(sheet, BLUE)
    assert (red, blue) == ([64, 128], [128, 32])
    assert blue_y - red_y == 48
    assert blue_x - red_x > 64 + 32


def test_captions_are_below_their_pictures() -> None:
    plain = contact_sheet([Tile((solid(64, 64, RED),), "")])
    captioned = contact_sheet([Tile((solid(64, 64, RED),), "a red square")])
    assert plain.shape == captioned.shape
    ((_, top, _, height),) = boxes(plain, RED)
    changed = np.argwhere((plain != captioned).any(axis=2))
    assert changed[:, 0].min() > top + height


@pytest.mark.parametrize("caption", ["word " * 200, "x" * 5000, "犬" * 300, "one\ntwo\x1b[31m\tthree " * 50])
def test_long_captions_end_after_three_lines(caption: str) -> None:
    two = contact_sheet([Tile((solid(64, 64, RED),), "word " * 5)])
    three = contact_sheet([Tile((solid(64, 64, RED),), "word " * 8)])
    long = contact_sheet([Tile((solid(64, 64, RED),), caption)])
    assert long.shape == three.shape
    assert three.shape[0] > two.shape[0]
    assert (long[:, -20:] == 255).all()


def test_wrapping() -> None:
    kind = sheets._Type(14, (0, 0, 0))
    lines = kind.wrap("the quick brown fox jumps over the lazy dog and runs far away into the woods", 128)
    assert len(lines) == 3
    assert " ".join(lines).startswith("the quick brown fox jumps over")
    assert lines[-1].endswith("…")
    assert all(kind.font.getlength(line) <= 128 for line in lines)
    assert kind.wrap("a b", 128) == ["a b"]
    assert kind.wrap(" \n ", 128) == [""]
    pieces = kind.wrap("w" * 25, 128)
    assert "".join(pieces) == "w" * 25
    assert len(pieces) > 1
    assert kind.wrap("wide", 1, 9) == list("wide")


def test_columns_fill_rows_evenly() -> None:
    for count in (1, 2, 3, 5, 11, 38):
        sheet = contact_sheet([Tile((solid(16, 16, RED),), "")] * count)
        found = boxes(sheet, RED)
        assert len(found) == count
        columns, rows = len({box[0] for box in found}), len({box[1] for box in found})
        assert columns * rows - count < columns
        assert sheet.shape[1] <= 1600
        assert count == 1 or 0.5 < sheet.shape[1] / sheet.shape[0] < 4
    asked = contact_sheet([Tile((solid(16, 16, RED),), "")] * 3, columns=9)
    assert len({box[1] for box in boxes(asked, RED)}) == 1


def test_headers_and_labels_make_room() -> None:
    tiles = [Tile((solid(64, 64, RED), solid(64, 64, BLUE)), "pair")] * 2
    plain, headed = contact_sheet(tiles), contact_sheet(tiles, header=["Title", "note"])
    labelled = contact_sheet(tiles, labels=("shown", "decoded"))
    top = boxes(plain, RED)[0][1]
    assert boxes(headed, RED)[0][1] > top + 30
    assert boxes(labelled, RED)[0][1] > top + 10
    assert (labelled[: top + 10] < 200).any()
    assert contact_sheet([Tile((solid(64, 64, RED),), "")], header=["Title"]).shape[1] >= 400


def test_a_sheet_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheets, "SHEET_TILES", 5)
    tiles = [Tile((solid(16, 16, RED),), "")] * 9
    limited, short = contact_sheet(tiles), contact_sheet(tiles[:5])
    assert len(boxes(limited, RED)) == 5
    assert limited.shape[0] > short.shape[0]


def test_sheets_of_nothing_are_a_mistake_of_ours() -> None:
    for tiles, columns in ([], None), ([Tile((), "x")], None), ([Tile((solid(64, 64, RED),), "x")], 0):
        with pytest.raises(ValueError, match="contact sheet needs"):
            contact_sheet(tiles, columns)
    with pytest.raises(ValueError, match="a picture is"):
        contact_sheet([Tile((np.zeros((4, 4), np.uint8),), "grey")])


def test_pillow_is_imported_when_it_is_needed() -> None:
    code = "import sys, unibrain_rt.outputs, unibrain_rt.contact_sheet; print(sorted({'PIL', 'nibabel', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
