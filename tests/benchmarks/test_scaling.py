"""Exponents of growth, and the page that tells where time grows faster than work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from click.testing import CliRunner

from unibrain_rt.benchmarks import scaling


def rows(*times: float) -> list[dict[str, object]]:
    return [
        {"size": 2**n, "work": 4**n, "ms": each, "stages": {}, "memory_bytes": 10**6, "scans_per_second": 1.0}
        for n, each in enumerate(times)
    ]


def test_growth_is_the_exponent_from_one_size_to_the_next() -> None:
    found = scaling.growth(rows(1.0, 4.0, 32.0))
    assert [each["ms"] for each in found] == pytest.approx([2.0, 3.0])
    assert [each["work"] for each in found] == pytest.approx([2.0, 2.0])


@pytest.mark.parametrize(("times", "told"), [((1.0, 4.0), False), ((1.0, 5.0), True)])
def test_time_that_grows_faster_than_work_is_explained(
    times: tuple[float, ...], told: bool, tmp_path: Path
) -> None:
    (tmp_path / "scaling-image.json").write_text(json.dumps(rows(*times)), encoding="utf-8")
    words = ["--work", str(tmp_path), "--out", str(tmp_path), "--part", "image"]
    done = CliRunner().invoke(scaling.main, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    page = (tmp_path / "scaling.md").read_text("utf-8")
    assert ("Why time grows faster than work" in page) == told


def test_scans_of_a_file_are_decoded_by_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "SCANS", (1, 2))
    words = ["--work", str(tmp_path), "--out", str(tmp_path), "--part", "scans", "--preset", "realtime"]
    done = CliRunner().invoke(scaling.main, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    one, two = json.loads((tmp_path / "scaling.json").read_text("utf-8"))["parts"]["scans"]
    assert (one["size"], two["size"]) == (1, 2)
    assert two["stages"]["decodes"] > one["stages"]["decodes"] / 2
    assert 0 < one["stages"]["decodes"] < one["ms"]
