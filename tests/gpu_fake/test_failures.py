"""Libraries that are missing and memory that does not suffice: one line each, and ``auto`` goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LIBRARIES = "onnxruntime-gpu[cuda,cudnn]"
CASES = {
    "libcudnn.so.9": ("cuDNN is unavailable", LIBRARIES),
    "libcublas.so.13": ("libcublas.so.13: cannot open", LIBRARIES),
    "libcublasLt.so.13": ("libcublasLt.so.13: cannot open", LIBRARIES),
    "libcudart.so.13": ("does not run here", LIBRARIES),
    "libcurand.so.10": ("libcurand.so.10: cannot open", LIBRARIES),
    "libcuda.so.1": ("there is no NVIDIA driver", "install NVIDIA's driver"),
}


@pytest.mark.parametrize("missing", CASES)
def test_a_library_that_is_missing_is_one_line(
    run: Callable[..., Any], repository: Path, tmp_path: Path, missing: str
) -> None:
    problem, cure = CASES[missing]
    scan = repository / "examples" / "scan.npy"
    ran = run("decode", scan, "--engine", "cuda", "--out", tmp_path / "cuda", without=[missing])
    (line,) = ran.err.splitlines()
    assert ran.code == 3
    assert line.startswith("unibrain-rt: engine cuda: ")
    assert problem in line
    assert cure in line
    assert not (tmp_path / "cuda").exists()

    found = json.loads(run("doctor", "--json", without=[missing]).out)
    (check,) = [check for check in found["checks"] if check["name"] == "cuda"]
    assert problem in check["text"]
    assert cure in (check["cure"] or "")


@pytest.mark.parametrize("options", [{"without": ["libcudnn.so.9"]}, {"memory_bytes": 1000}])
def test_auto_goes_on_to_the_next_engine(
    run: Callable[..., Any], repository: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    words = ("--engine", "auto", "--preset", "realtime", "--out", tmp_path)
    ran = run("decode", repository / "examples" / "scan.npy", *words, **options)
    (line,) = ran.err.splitlines()
    assert ran.code == 0
    assert line.startswith("passed over cuda: ")
    assert json.loads((tmp_path / "scan.json").read_text())["engine"] == "onnxruntime"


def test_auto_takes_a_gpu_that_works(run: Callable[..., Any], repository: Path, tmp_path: Path) -> None:
    words = ("--engine", "auto", "--preset", "realtime", "--out", tmp_path)
    ran = run("decode", repository / "examples" / "scan.npy", *words)
    assert (ran.code, ran.err) == (0, "")
    assert json.loads((tmp_path / "scan.json").read_text())["engine"] == "cuda"


@pytest.mark.slow
def test_want_of_memory_is_one_line_wherever_it_comes(
    run: Callable[..., Any], half: Path, repository: Path, tmp_path: Path
) -> None:
    """From nothing to what a decode takes: a probe, a graph that is loaded, a buffer, a capture."""
    scan = repository / "examples" / "scan.npy"
    words = ("decode", scan, "--bundle", half, "--engine", "cuda", "--preset", "realtime", "--out", tmp_path)
    peak = run(*words).journal.peak_bytes
    (tmp_path / "scan.png").unlink()
    (tmp_path / "scan.json").unlink()
    lines = set()
    for share in (0.0001, *(number / 12 for number in range(1, 12)), 0.97, 0.99):
        ran = run(*words, memory_bytes=int(peak * share))
        assert ran.journal.of("full"), "the device came to its end"
        if ran.code == 0:  # without graphs it sufficed
            assert all(
                "runs without CUDA graphs (the device is out of memory" in line
                for line in ran.err.splitlines()
            )
            (tmp_path / "scan.png").unlink()
            (tmp_path / "scan.json").unlink()
            continue
        assert ran.code == 3
        (line,) = ran.err.splitlines()
        assert "the device is out of memory" in line
        assert not list(tmp_path.iterdir())
        lines.add(line)
    assert len(lines) >= 4, "it came at different places"
