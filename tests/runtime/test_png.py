"""PNG files: other programs read the same pixels and texts, and they are as small as Pillow's."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unibrain_rt import png
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
    image = pytest.importorskip("PIL.Image")
    with image.open(io.BytesIO(file)) as opened:
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


@pytest.mark.parametrize("band_bytes", [1, 500, 1 << 18])
@pytest.mark.parametrize("image", list(pictures()))
def test_pixels_come_back(image: Picture, band_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encode_png(image)
    monkeypatch.setattr(png, "_BAND_BYTES", band_bytes)
    file = encode_png(image)
    assert file == whole
    np.testing.assert_array_equal(pixels(file), image)


def test_every_filter_is_used_and_read() -> None:
    rng = np.random.default_rng(1)
    rows: list[Any] = [rng.choice([0, 1, 255], (1, 300, 3))]  # None
    rows.append(np.arange(0, 1500, 5)[None, :, None] + np.array([3, 90, 7]))  # Sub
    rows.append(rng.integers(0, 256, (1, 300, 3)))
    rows.append(rows[-1] + 1)  # Up
    average, above = np.zeros((1, 300, 3), np.int64), rows[-1] % 256
    for column in range(300):
        average[0, column] = (average[0, column - 1] * (column > 0) + above[0, column]) // 2
    rows.append(average)
    rows += [
        np.add.outer(np.arange(2), rng.integers(0, 256, 300) * 2)[..., None] + np.zeros(3, np.int64)
        for _ in range(2)
    ]
    photo = np.cumsum(np.cumsum(rng.normal(size=(60, 300, 3)), 0), 1)
    image = np.concatenate([*rows, photo.astype(np.int64)]).astype(np.uint8)
    file = encode_png(image)
    data = zlib.decompress(dict(chunks(file))[b"IDAT"])
    assert set(data[:: 1 + 900]) == {0, 1, 2, 3, 4}
    np.testing.assert_array_equal(pixels(file), image)


def test_chunks_and_texts_are_those_that_pillow_wrote() -> None:
    pillow, writer = pytest.importorskip("PIL.Image"), pytest.importorskip("PIL.PngImagePlugin")
    texts = {"Description": "a dog", "Software": "unibrain-rt", "Überschrift": "ein Hund – 犬", "Empty": ""}
    image = np.random.default_rng(2).integers(0, 256, (8, 9, 3), np.uint8)
    info, buffer = writer.PngInfo(), io.BytesIO()
    for key, value in texts.items():
        info.add_text(key, value)
    pillow.fromarray(image).save(buffer, "PNG", pnginfo=info)
    ours, theirs = chunks(encode_png(image, texts)), chunks(buffer.getvalue())
    assert [chunk for chunk in ours if chunk[0] != b"IDAT"] == [
        chunk for chunk in theirs if chunk[0] != b"IDAT"
    ]
    assert [kind for kind, _ in ours] == [b"IHDR", b"tEXt", b"tEXt", b"iTXt", b"tEXt", b"IDAT", b"IEND"]


@pytest.mark.parametrize("key", ["", "x" * 80, "犬"])
def test_keys_that_no_reader_takes(key: str) -> None:
    with pytest.raises(ValueError, match="."):
        encode_png(np.zeros((2, 2, 3), np.uint8), {key: "text"})


def test_files_are_about_as_small_as_pillows(repository: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    sizes = np.zeros(2, int)
    for path in sorted((repository / "examples" / "stimuli").glob("*.png")):
        image, buffer = np.asarray(pillow.open(path).convert("RGB")), io.BytesIO()
        pillow.fromarray(image).save(buffer, "PNG")
        ours, theirs = len(encode_png(image)), len(buffer.getvalue())
        assert ours < 1.1 * theirs, path.name
        sizes += ours, theirs
    assert 0 < sizes[0] < 1.05 * sizes[1]
