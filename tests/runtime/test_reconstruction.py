"""The face of a result: one line, a notebook's figure, and a pair of files."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unibrain_rt import Decoder, Reconstruction
from unibrain_rt.errors import InputError


@pytest.fixture(scope="module")
def result(tiny: Any, tiny_template: Path) -> Reconstruction:
    return Decoder.open(tiny_template, threads=1, preset="realtime").decode(tiny.scan(), seed=3)


def with_caption(result: Reconstruction, caption: str | None) -> Reconstruction:
    return Reconstruction(**{**vars(result), "caption": caption})


def test_it_prints_in_one_short_line(result: Reconstruction) -> None:
    assert repr(with_caption(result, "a dog")) == "<Reconstruction 8×8, 'a dog', sub-01, realtime, seed 3>"
    assert "no caption" in repr(with_caption(result, None))
    long = repr(with_caption(result, "a very long caption\n" * 50))
    assert "\n" not in long
    assert len(long) < 160


def test_a_notebook_shows_picture_and_caption(result: Reconstruction) -> None:
    page = with_caption(result, "<script>alert('a & b')</script>")._repr_html_()
    assert "<script>" not in page
    assert page.count("&lt;script&gt;") == 2
    match = re.search(r'src="data:image/png;base64,([^"]+)"', page)
    assert match is not None
    shown = np.array(Image.open(io.BytesIO(base64.b64decode(match[1]))))
    np.testing.assert_array_equal(shown, result.image)


def test_it_saves_picture_and_record(result: Reconstruction, tmp_path: Path) -> None:
    png, record = result.save(tmp_path / "dog.png")
    assert (png, record) == (tmp_path / "dog.png", tmp_path / "dog.json")
    with Image.open(png) as image:
        np.testing.assert_array_equal(np.array(image), result.image)
        assert image.info["Description"] == result.caption
    assert json.loads(record.read_text(encoding="utf-8")) == result.record()
    result.save(tmp_path / "dog.png")  # again
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dog.json", "dog.png"]


@pytest.mark.parametrize("name", ["dog.jpg", "dog"])
def test_where_it_cannot_be_saved(result: Reconstruction, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=name):
        result.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_record_names_what_is_out_of_the_ordinary(result: Reconstruction) -> None:
    assert not {"inputs", "fallbacks"} & result.record().keys()
    ablated = Reconstruction(
        **{**vars(result), "inputs": ("image_context",), "fallbacks": ("unet_image_step",)}
    )
    assert ablated.record()["inputs"] == ["image_context"]
    assert ablated.record()["fallbacks"] == ["unet_image_step"]
