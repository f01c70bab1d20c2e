"""Exact heads against compressed ones in decodes, on few scans: what is measured is there, and pairs with itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from unibrain_rt.benchmarks.ridge import compression as ridge_phantom


@pytest.mark.slow
def test_every_way_of_storing_is_decoded_and_compared(tmp_path: Path) -> None:
    words = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "found")]
    few = ["--scans", "4", "--training", "120"]
    done = CliRunner().invoke(ridge_phantom.main, [*words, *few], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    stored = json.loads((tmp_path / "found.json").read_text("utf-8"))["stored"]
    exact, *compressed = stored.values()
    assert len(compressed) == len(ridge_phantom.BUDGETS)
    assert all(value["mean"] == 0 for value in exact["difference"].values())
    assert exact["same_caption"] == 1
    sizes = [each["bytes"] for each in stored.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)
    assert {"PixCorr", "CLIP", "Judge", "caption CLIP", "caption names colour"} <= set(exact["scores"])
    assert "| PixCorr |" in (tmp_path / "found.md").read_text("utf-8")
