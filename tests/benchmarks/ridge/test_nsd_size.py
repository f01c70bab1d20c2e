"""The benchmark of heads at NSD's size, run small: it measures what it says, and goes on after a break."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from unibrain_rt.benchmarks.ridge import nsd_size as ridge_nsd
from unibrain_rt.flows import INPUTS


def test_a_small_run(tmp_path: Path) -> None:
    words = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--scale", "0.01"]
    for _ in range(2):
        CliRunner().invoke(
            ridge_nsd.main,
            [*words, "--budget", "0.99", "--budget", "0.8", "--max-mb", "1"],
            catch_exceptions=False,
        )
    found = json.loads((tmp_path / "out" / "ridge-nsd.json").read_text())
    assert set(found["curve"][0]["heads"]) == set(INPUTS)
    stored, best, worse = found["curve"]
    assert stored["correlation"] > best["correlation"] > 0.985 > worse["correlation"]
    assert 1e6 > stored["size_bytes"] > best["size_bytes"] > worse["size_bytes"]
    assert found["seconds"]["fit"] > 0 < found["peak_rss_bytes"]
    for head in best["heads"].values():
        assert head["identification_dense"] > 60
        assert abs(head["identification_dense"] - head["identification_stored"]) < 1
    assert "| image_context |" in (tmp_path / "out" / "ridge-nsd.md").read_text()
    assert (tmp_path / "out" / "ridge-nsd.png").stat().st_size > 1000
