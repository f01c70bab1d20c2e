"""Applying heads, timed on a shipped subject: every variant in every round, and nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from unibrain_rt.benchmarks.ridge import apply as ridge_apply
from unibrain_rt.bundle import Bundle


def test_every_variant_is_timed(tmp_path: Path) -> None:
    words = [str(Bundle.open().subject("sub-01").folder), "--out", str(tmp_path / "apply")]
    done = CliRunner().invoke(
        ridge_apply.main, [*words, "--rounds", "2", "--dense-mb", "8"], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "apply.json").read_text("utf-8"))
    assert set(found["milliseconds"]) == set(ridge_apply.LABELS)
    assert all(len(each) == 2 and min(each) > 0 for each in found["milliseconds"].values())
    assert found["dense_bytes"] > found["bytes"]
    assert "times copying" in (tmp_path / "apply.md").read_text("utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["apply.json", "apply.md"]
