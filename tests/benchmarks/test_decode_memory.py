"""Peak memory of decodes, measured on a bundle of kilobytes: the measuring works, the figures say nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from unibrain_rt.benchmarks import decode_memory


def test_both_ways_of_loading_are_measured_and_decode_the_same(tiny_template: Path, tmp_path: Path) -> None:
    words = [str(tiny_template), "--out", str(tmp_path / "memory")]
    done = CliRunner().invoke(decode_memory.main, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "memory.json").read_text("utf-8"))
    low, all_graphs = results["runs"]
    assert (low["memory"], all_graphs["memory"]) == ("low", "all")
    assert low["mean"] == all_graphs["mean"]
    assert all(run["anonymous_bytes"] > 0 for run in results["runs"])
    assert results["estimate"]["largest_bytes"] < results["estimate"]["weights_bytes"]
    assert "one graph at a time" in (tmp_path / "memory.md").read_text("utf-8")


def test_a_decode_that_fails_says_why(tiny_template: Path) -> None:
    with pytest.raises(RuntimeError, match="no preset 'slow'"):
        decode_memory.measure(tiny_template, "onnxruntime", "slow", "low")
