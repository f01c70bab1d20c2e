"""The cost of building plans, measured on a bundle that builds in seconds, with the real compiler."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from unibrain_rt.benchmarks import plan_building
from unibrain_rt.engines import probe


@pytest.fixture(autouse=True)
def compiler() -> None:
    if probe("tensorrt-rtx").version is None:
        pytest.skip("TensorRT-RTX is not installed")


def test_both_builds_are_measured(tiny_template: Path, tmp_path: Path) -> None:
    out = tmp_path / "plans"
    words = [str(tiny_template), "--out", str(out), "--target", "sm89", "--preset", "realtime"]
    done = CliRunner().invoke(plan_building.main, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    results: dict[str, Any] = json.loads(out.with_suffix(".json").read_text("utf-8"))
    assert not any(plan["hit"] for plan in results["first"]["plans"])
    assert all(plan["hit"] for plan in results["again"]["plans"])
    assert {plan["target"] for plan in results["first"]["plans"]} == {"sm89"}
    assert all(plan["size_bytes"] > 0 for plan in results["first"]["plans"])
    assert results["version"]
    page = out.with_suffix(".md").read_text("utf-8")
    assert "unet_image_step" in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plans.json", "plans.md"]


def test_a_build_that_fails_says_why(tiny_template: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"build exited \d+:\n(.|\n)*sm12345"):
        plan_building.measure_build(tiny_template, "tensorrt-rtx", "sm12345", ("paper",), tmp_path)
