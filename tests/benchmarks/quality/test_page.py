from __future__ import annotations

import base64
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unibrain_rt.benchmarks.quality.intervals import Interval
from unibrain_rt.benchmarks.quality.page import (
    Page,
    Picture,
    Pictures,
    Section,
    Table,
    Text,
    check_report,
    write_report,
)
from unibrain_rt.errors import InputError

NASTY = '<script>alert("1")</script> & co'
IMAGE = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)


@pytest.fixture
def page() -> Page:
    table = Table(
        f"table {NASTY}",
        ("name", "value", "word"),
        (("one", Interval(0.5, 0.25, 0.75, 20), "a|b"), ("two", 1.0, NASTY)),
        note=NASTY,
    )
    pictures = Pictures(NASTY, ((Picture(IMAGE, NASTY, f'alt "{NASTY}"'), Picture(IMAGE, "b", "c")),))
    return Page(f"page {NASTY}", (Section(f"section {NASTY}", (Text(NASTY), table, pictures)),))


class Reader(HTMLParser):
    """Checks that every tag is closed in order, and gathers what was found."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def read(page: Page) -> Reader:
    reader = Reader()
    reader.feed(page.html())
    reader.close()
    return reader


def test_the_page_is_well_formed_and_nothing_given_becomes_markup(read: Reader) -> None:
    assert not read.open
    assert "script" not in {tag for tag, _ in read.tags}
    assert read.text.count(NASTY) >= 7


def test_nothing_is_loaded_from_elsewhere(read: Reader) -> None:
    for tag, attributes in read.tags:
        source = attributes.get("src") or attributes.get("href") or ""
        assert source.startswith(("data:image/png;base64,", "#")) or not source, tag
        assert tag not in ("link", "iframe", "object")


def test_pictures_are_there_pixel_by_pixel_with_their_words(read: Reader) -> None:
    images = [attributes for tag, attributes in read.tags if tag == "img"]
    assert len(images) == 2
    assert [image["alt"] for image in images] == [f'alt "{NASTY}"', "c"]
    data = base64.b64decode((images[0]["src"] or "").split(",")[1])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), IMAGE)
    assert (images[0]["width"], images[0]["height"]) == ("12", "8")


def test_tables_are_tables(read: Reader) -> None:
    kinds = [tag for tag, _ in read.tags]
    assert kinds.count("table") == kinds.count("caption") == 1
    assert [attributes["scope"] for tag, attributes in read.tags if tag == "th"] == ["col"] * 3 + ["row"] * 2
    assert "0.500 [0.250, 0.750]" in read.text
    assert "(n = 20)" in read.text


def test_markdown_keeps_the_columns_of_its_tables(page: Page) -> None:
    lines = [line for line in page.markdown().splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert {line.replace("\\|", "").count("|") for line in lines} == {4}
    assert "0.500 [0.250, 0.750]" in lines[2]


def test_the_record_holds_numbers(page: Page) -> None:
    record = json.loads(json.dumps(page.record(), allow_nan=False))
    rows = record["sections"][0]["blocks"][1]["rows"]
    assert rows[0]["value"] == {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 20}
    assert rows[1]["value"] == 1.0
    assert record["sections"][0]["blocks"][2]["captions"] == [[NASTY, "b"]]


def test_a_report_is_written_whole_and_not_twice(page: Page, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    write_report(out, page)
    assert {path.name for path in out.iterdir()} == {"report.html", "report.md", "report.json"}
    with pytest.raises(InputError, match="exists already"):
        check_report(out)
    with pytest.raises(InputError, match="exists already"):
        write_report(out, page)
    write_report(out, page, overwrite=True)


def test_a_file_in_the_folder_s_place_is_an_input_error(page: Page, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="a file stands"):
        write_report(tmp_path / "out", page, overwrite=True)
    assert (tmp_path / "out").read_text() == "mine"


def test_a_row_that_does_not_fit_its_table_is_refused() -> None:
    with pytest.raises(ValueError, match="1 cells under 2 columns"):
        Table("t", ("a", "b"), (("x",),))
