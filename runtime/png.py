"""PNG: a picture and its texts as the bytes of a file. Pillow writes it, and is imported only then."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray


def encode_png(image: NDArray[np.uint8], text: Mapping[str, str] | None = None) -> bytes:
    """The file of ``image`` (height, width, 3), with ``text`` as tEXt chunks, or iTXt where it is not Latin-1.

    Raises `ValueError`: the array is not such a picture.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    check_picture(image)
    texts, file = PngInfo(), io.BytesIO()
    for key, value in (text or {}).items():
        # A file name may hold undecodable bytes as lone surrogates; they are written in their backslash form.
        texts.add_text(key, value.encode("utf-8", "backslashreplace").decode("utf-8"))
    Image.fromarray(np.ascontiguousarray(image)).save(file, "PNG", pnginfo=texts)
    return file.getvalue()


def check_picture(image: NDArray[np.uint8]) -> None:
    """Raise `ValueError` unless ``image`` is uint8 (height, width, 3) with pixels in it."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"a picture is uint8 (height, width, 3), not {image.dtype} {image.shape}")
