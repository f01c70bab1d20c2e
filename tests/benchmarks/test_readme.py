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


def test_results_become_one_table(tmp_path: Path) -> None:
    paper = {
        "diffusers": {"image loop": 800.0, "caption": 60.0, "picture": 20.0, "decode": 880.0},
        "onnxruntime": {"image loop": 400.0, "caption": 3.0, "picture": 10.0, "decode": 440.0},
        "openvino-fp32": {"image loop": 390.0},
        "torch-bf16": {"caption": 2.0},
    }
    fast = {"diffusers": {"decode": 100.0}, "onnxruntime": {"decode": 44.0}}
    found = {"summary": {"seconds": {"paper": paper, "fast": fast}}, "machine": {"cpu": "A", "cores": 2}}
    (tmp_path / readme.CONTESTS["published"]).write_text(json.dumps(found), encoding="utf-8")
    rows = readme.section(tmp_path).splitlines()
    assert "| diffusers, fp32 | `paper` | 800.0 s | 60.0 s | 20.0 s | 880.0 s | 1.00 |" in rows
    assert (
        "| **unibrain-rt, ONNX Runtime fp32** | `paper` | 400.0 s | 3,000 ms | 10.0 s | 440.0 s | 2.00 |"
        in rows
    )
    assert "| **unibrain-rt, OpenVINO fp32** | `paper` | 390.0 s | – | – | – | – |" in rows
    # Against the reference's paper; of the others there is no other preset.
    assert "| **unibrain-rt, ONNX Runtime fp32** | `fast` | – | – | – | 44.0 s | 20.00 |" in rows
    assert sum(row.startswith("| ") for row in rows) == 1 + 1 + 4


def test_a_gpu_has_a_table_of_its_own(tmp_path: Path) -> None:
    rounds = [
        {"decode": {"torch eager": 900.0, "cuda": 300.0}},
        {"decode": {"torch eager": 1000.0, "cuda": 200.0}},
        {"decode": {"torch eager": 1300.0, "cuda": 260.0}},
    ]
    found = {"presets": {"paper": {"rounds": rounds}}, "device": {"name": "A card"}}
    (tmp_path / readme.GPU).write_text(json.dumps(found), encoding="utf-8")
    text = readme.section(tmp_path)
    assert "| our torch modules, fp16 | 1,000 ms | 1.00 |" in text
    # The ratio is the median of the rounds', not that of the medians.
    assert "| **unibrain-rt, engine `cuda`, fp16** | 260 ms | 5.00 |" in text
    assert "A card, random weights" in text


def test_marks_that_are_gone_are_noticed() -> None:
    with pytest.raises(ValueError, match="are not there"):
        readme.replaced("no marks", "new")
