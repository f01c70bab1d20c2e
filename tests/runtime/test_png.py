"""PNG files: the same picture gives the same bytes, and its pixels and texts come back."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unibrain_rt.png import encode_png

Picture = np.ndarray[Any, np.dtype[np.uint8]]


def pictures() -> Iterator[Any]:
    rng = np.random.default_rng(0)
    for height, width in [(1, 1), (1, 7), (7, 1), (2, 3), (64, 64), (33, 130)]:
        noise = rng.integers(0, 256, (height, width, 3), np.uint8)
        yield pytest.param(noise, id=f"noise {height} x {width}")
        slope = np.add.outer(np.arange(height), 3 * np.arange(width))[..., None] + np.arange(3)
        yield pytest.param(slope.astype(np.uint8), id=f"slope {height} x {width}")
    yield pytest.param(np.zeros((40, 40, 3), np.uint8), id="black")
    yield pytest.param(rng.integers(0, 2, (40, 40, 3), np.uint8) * 255, id="black and white")
    yield pytest.param(rng.integers(0, 256, (20, 30, 3), np.uint8)[::-1, ::2], id="of strides")


def pixels(file: bytes) -> Picture:
    with Image.open(io.BytesIO(file)) as opened:
        assert (opened.format, opened.mode) == ("PNG", "RGB")
        opened.load()
        return np.asarray(opened)


def chunks(file: bytes) -> list[tuple[bytes, bytes]]:
    assert file.startswith(b"\x89PNG\r\n\x1a\n")
    found, place = [], 8
    while place < len(file):
        (length,) = struct.unpack_from(">I", file, place)
        kind, data = file[place + 4 : place + 8], file[place + 8 : place + 8 + length]
        assert struct.unpack_from(">I", file, place + 8 + length) == (zlib.crc32(kind + data),)
        found.append((kind, data))
        place += 12 + length
    return found


@pytest.mark.parametrize("image", list(pictures()))
def test_pixels_come_back(image: Picture) -> None:
    file = encode_png(image)
    assert file == encode_png(image.copy())
    np.testing.assert_array_equal(pixels(file), image)


def test_texts_stand_before_the_picture_in_the_chunk_that_holds_them() -> None:
    texts = {"Description": "a dog", "Software": "unibrain-rt", "Überschrift": "ein Hund – 犬", "Empty": ""}
    file = encode_png(np.random.default_rng(2).integers(0, 256, (8, 9, 3), np.uint8), texts)
    assert [kind for kind, _ in chunks(file)] == [
        b"IHDR", b"tEXt", b"tEXt", b"iTXt", b"tEXt", b"IDAT", b"IEND",
    ]  # fmt: skip
    assert chunks(file)[1][1] == b"Description\0a dog"
    with Image.open(io.BytesIO(file)) as opened:
        assert opened.text == texts  # type: ignore[attr-defined]
