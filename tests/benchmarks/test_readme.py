"""The README's section on latency is what the committed results give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unibrain_rt.benchmarks import readme


def test_the_readme_is_as_the_results_say(repository: Path) -> None:
    text = (repository / "README.md").read_text("utf-8")
    written = readme.section(repository / "benchmarks" / "results")
    assert readme.replaced(text, written) == text, f"run {readme.COMMAND}"


def test_published_results_become_a_table(tmp_path: Path) -> None:
    seconds = {
        "diffusers": {"image loop": 800.0, "caption": 60.0, "picture": 20.0, "decode": 880.0},
        "onnxruntime": {"image loop": 400.0, "caption": 30.0, "picture": 10.0, "decode": 440.0},
        "openvino-fp32": {"image loop": 390.0},
    }
    found = {"summary": {"seconds": {"paper": seconds}}}
    (tmp_path / readme.CONTEST).write_text(json.dumps(found), encoding="utf-8")
    written = readme.section(tmp_path)
    assert "| **unibrain-rt, ONNX Runtime fp32** | 400.0 s | 30.0 s | 10.0 s | 440.0 s | 2.00 |" in written
    assert "| **unibrain-rt, OpenVINO fp32** | 390.0 s | – | – | – | – |" in written


def test_marks_that_are_gone_are_noticed() -> None:
    with pytest.raises(ValueError, match="are not there"):
        readme.replaced("no marks", "new")
