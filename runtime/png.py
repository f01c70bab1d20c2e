"""PNG: a picture and its texts as the bytes of a file, with zlib and numpy alone.

The format is the W3C's Portable Network Graphics (third edition): a signature and chunks, each its length, type,
data and CRC. Pictures are 8-bit RGB, not interlaced, with no colour chunks, which readers show as sRGB.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_RGB = 2
_BYTES = 3  # of a pixel
_BAND_BYTES = 1 << 18  # of the picture that are filtered at a time: filtering takes some forty times as much
_LEVEL = 6  # of zlib; 9 takes three times as long for some 3 % less


def encode_png(image: NDArray[np.uint8], text: Mapping[str, str] | None = None) -> bytes:
    """The file of ``image`` (height, width, 3), with ``text`` as tEXt chunks, or iTXt where it is not Latin-1.

    Raises `ValueError`: the array is not such a picture, or a key is not Latin-1 of 1 to 79 characters.
    """
    check_picture(image)
    height, width, _ = image.shape
    header = struct.pack(">IIBBBBB", width, height, 8, _RGB, 0, 0, 0)
    texts = [_text_chunk(key, value) for key, value in (text or {}).items()]
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_FILTERED)
    packed = b"".join([*(packer.compress(band) for band in _filtered(image)), packer.flush()])
    return b"".join(
        [_SIGNATURE, _chunk(b"IHDR", header), *texts, _chunk(b"IDAT", packed), _chunk(b"IEND", b"")]
    )


def check_picture(image: NDArray[np.uint8]) -> None:
    """Raise `ValueError` unless ``image`` is uint8 (height, width, 3) with pixels in it."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"a picture is uint8 (height, width, 3), not {image.dtype} {image.shape}")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def _text_chunk(key: str, value: str) -> bytes:
    keyword = key.encode("latin-1")
    if not 1 <= len(keyword) <= 79:
        raise ValueError(f"a key of a PNG's texts has 1 to 79 characters, not {len(keyword)}")
    try:
        return _chunk(b"tEXt", keyword + b"\0" + value.encode("latin-1"))
    except UnicodeEncodeError:  # neither compressed nor translated
        return _chunk(b"iTXt", keyword + b"\0\0\0\0\0" + value.encode("utf-8"))


def _filtered(image: NDArray[np.uint8]) -> Iterator[bytes]:
    """Rows with the filter of each before it, some rows at a time."""
    height = len(image)
    rows = np.ascontiguousarray(image).reshape(height, -1)
    step = max(1, _BAND_BYTES // rows.shape[1])
    for start in range(0, height, step):
        above = rows[start - 1] if start else np.zeros_like(rows[0])
        yield _filtered_band(rows[start : start + step], above)


def _filtered_band(rows: NDArray[np.uint8], above: NDArray[np.uint8]) -> bytes:
    """Of each row, the filter whose bytes have the smallest sum as signed numbers: the usual choice."""
    here = rows.astype(np.int16)
    up = np.vstack([above, rows[:-1]]).astype(np.int16)
    left, corner = np.zeros_like(here), np.zeros_like(up)
    left[:, _BYTES:], corner[:, _BYTES:] = here[:, :-_BYTES], up[:, :-_BYTES]
    # Filters 0 to 4 of the format: None, Sub, Up, Average, Paeth. Subtraction is modulo 256.
    predictions = (np.zeros_like(here), left, up, (left + up) // 2, _paeth(left, up, corner))
    candidates = np.stack([(here - prediction).astype(np.uint8) for prediction in predictions])
    sizes = np.abs(candidates.view(np.int8).astype(np.int16)).sum(2, dtype=np.int64)
    best = sizes.argmin(0)
    chosen = np.take_along_axis(candidates, best[None, :, None], 0)[0]
    return np.hstack([best[:, None].astype(np.uint8), chosen]).tobytes()


def _paeth(left: NDArray[np.int16], up: NDArray[np.int16], corner: NDArray[np.int16]) -> NDArray[np.int16]:
    """Whichever of the three neighbours is nearest to ``left + up - corner``; the first named wins a tie."""
    to_left, to_up = np.abs(up - corner), np.abs(left - corner)
    to_corner = np.abs(left + up - 2 * corner)
    nearest = np.where(to_up <= to_corner, up, corner)
    return np.where((to_left <= to_up) & (to_left <= to_corner), left, nearest)
