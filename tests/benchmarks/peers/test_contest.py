"""Loops and decodes put together of what was measured, and the page: by hand, with round numbers."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from unibrain_rt.benchmarks.peers import contest
from unibrain_rt.benchmarks.peers.peer import Work
from unibrain_rt.presets import PRESETS
from unibrain_rt.samplers import Schedule


def work(**seconds: float) -> dict[str, Any]:
    """What `measure_flow` gives, of medians by variant (``peer__variant``)."""
    named = {name.replace("__", "/"): value for name, value in seconds.items()}
    spreads = {name: {"median": v, "min": v, "max": v, "rounds": 1} for name, v in named.items()}
    return {
        "seconds": spreads,
        "cpu_seconds": spreads,
        "relative_errors": dict.fromkeys(named, 0.0),
        "threads": 2,
        "load_average_before": 0.0,
    }


FOUND = {
    "image": work(
        onnxruntime__partitioned=2.0, onnxruntime__whole=3.0, torch__whole=5.0, diffusers__whole=6.0
    ),
    "text": work(
        onnxruntime__partitioned=0.1, onnxruntime__whole=0.2, torch__whole=0.5, diffusers__whole=1.0
    ),
    "caption": work(onnxruntime__cached=1.0, torch__cached=2.0, torch__recompute=20.0),
    "autokl": work(onnxruntime__whole=4.0, torch__whole=8.0),
}


def test_loops_are_their_steps_and_what_comes_once() -> None:
    parts = contest.loops(FOUND, "onnxruntime", PRESETS["paper"], Schedule())
    # 37 steps, and the contexts once.
    assert parts["image loop"] == pytest.approx(37 * 2 + 1)
    assert parts["caption"] == pytest.approx(37 * 0.1 + 0.1 + 1)
    assert parts["decode"] == pytest.approx(75 + 4.8 + 4)


def test_diffusers_gets_gpt2_as_the_reference_runs_it() -> None:
    parts = contest.loops(FOUND, "diffusers", PRESETS["paper"], Schedule())
    assert parts["caption"] == pytest.approx(37 * 1.0 + 20)
    assert parts["picture"] == 8.0


def test_what_was_not_measured_is_not_made_up() -> None:
    parts = contest.loops({"image": FOUND["image"]}, "onnxruntime", PRESETS["paper"], Schedule())
    assert set(parts) == {"image loop"}


def test_ratios_and_targets() -> None:
    summary = contest.summarise(FOUND, Schedule(), PRESETS)
    faster = summary["times_faster_than_diffusers_fp32"]
    assert faster["image loop of paper"]["onnxruntime"] == pytest.approx(37 * 6 / 75)
    reference = 37 * 6 + 57 + 8
    ours = summary["seconds"]["fast"]["onnxruntime"]["decode"]
    assert faster["whole decode: fast against the reference's paper"]["onnxruntime"] == pytest.approx(
        reference / ours
    )
    found = {**FOUND, "image": {**FOUND["image"], "left_out": {"openvino-bf16": "no bf16 here"}}}
    machine = {
        "cpu": "a processor", "vector_extensions": [], "cores": 2, "memory_gib": 8, "os": "an OS", "kernel": "Linux",
        "python": "3.11", "packages": {},
    }  # fmt: skip
    page = contest.page({"size": "a size", "machine": machine, "works": found, "summary": summary})
    assert "image loop of paper, onnxruntime: 2.96 times, target 1.8: **reached**" in page
    assert "openvino-bf16: target 3: cannot be run on this processor" in page
    assert "Left out: openvino-bf16: no bf16 here." in page


@pytest.mark.parametrize("work", ["image", "autokl"])
def test_torch_is_not_asked_for_convolutions_it_would_take_hours_for(work: Work) -> None:
    reason = contest.impractical("published", work, "torch-bf16-compiled", ["avx2", "fma"])
    assert reason is not None
    assert "bf16" in reason
    for peer, extensions in (
        ("torch-bf16", ["avx512_bf16"]),
        ("torch", ["avx2"]),
        ("openvino-bf16", ["avx2"]),
    ):
        assert contest.impractical("published", work, peer, extensions) is None
    assert contest.impractical("phantom", work, "torch-bf16", ["avx2"]) is None
    assert contest.impractical("published", "text", "torch-bf16", ["avx2"]) is None


def test_the_command_refuses_unknown_peers(tmp_path):
    from click.testing import CliRunner

    arguments = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "o"), "--peers", "jax"]
    done = CliRunner().invoke(contest.main, arguments)
    assert done.exit_code == 2
    assert "unknown jax" in done.output
    assert not (tmp_path / "o").exists()
