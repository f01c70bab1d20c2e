"""The benchmark of whole decodes on a GPU, as far as a CPU can tell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from unibrain_rt.benchmarks.gpu.comparison import run  # noqa: E402
from unibrain_rt.benchmarks.gpu.page import page  # noqa: E402
from unibrain_rt.benchmarks.gpu.rounds import WORKS, compare, summarise  # noqa: E402
from unibrain_rt.benchmarks.whole_decodes import FLOWS, Decoded, EngineVariant, Scan  # noqa: E402
from unibrain_rt.bundle import Bundle  # noqa: E402
from unibrain_rt.engines import EngineError, create_engine, probe  # noqa: E402


def decoded(offset: float = 0.0, tokens: tuple[int, ...] = (1, 2)) -> Decoded:
    latents: Any = {flow: np.ones((1, 4), np.float32) + offset for flow in FLOWS}
    return Decoded(latents, np.full((1, 3, 2, 2), 0.5, np.float32) + offset, [*tokens])


def test_a_dry_run_goes_the_whole_way(golden_dir: Path, golden_bundle: Path) -> None:
    results = run(
        golden_dir,
        Bundle.open(golden_bundle),
        config=golden_dir / "config.json",
        preset="realtime",
        rounds=2,
        tokens=3,
        dry=True,
        say=lambda line: None,
    )
    text = page(json.loads(json.dumps(results, allow_nan=False)))
    assert "A dry run on a CPU" in text
    names = {"onnxruntime", "torch eager", "torch.compile"}
    assert set(results["parity"]) == set(results["milliseconds"]["decode"]) == names
    for parity in results["parity"].values():
        assert parity["psnr_db"] > 60
        assert max(parity["image_latent_error"], parity["text_latent_error"]) < 1e-3
        assert parity["same_tokens"]
    bounds = results["roofline"]
    assert bounds["unet_image_step"]["runs"] == results["steps"]["image"] > 1
    assert bounds["optimus_decode"]["runs"] == 3
    assert all(entry["weights_bytes"] > 0 and entry["milliseconds"] > 0 for entry in bounds.values())
    assert all(entry["flops"] > 0 for name, entry in bounds.items() if name != "optimus_decode")


def test_the_phantom_decodes_too(phantom_bundle: Path) -> None:
    bundle = Bundle.open(phantom_bundle)
    scan = Scan.random(bundle, "realtime", tokens=4, seed=0)
    variant = EngineVariant(create_engine("onnxruntime"), bundle, scan.tables)
    first, again = variant.decode(scan), variant.decode(scan)
    assert first.image.shape == (1, 3, 64, 64)
    np.testing.assert_array_equal(first.image, again.image)
    assert first.tokens == again.tokens == variant.caption(scan)
    assert len(first.tokens) == 5


def test_decodes_are_compared() -> None:
    same = compare(decoded(), decoded())
    assert same == {"psnr_db": 200, "image_latent_error": 0, "text_latent_error": 0, "same_tokens": True}
    other = compare(decoded(0.1, (1, 3)), decoded())
    assert other["psnr_db"] == pytest.approx(20, abs=1e-3)
    assert other["image_latent_error"] == pytest.approx(0.1, abs=1e-6)
    assert other["same_tokens"] is False


def test_the_page_of_a_gpu_has_every_ratio() -> None:
    names = ("cuda", "cuda, no graphs", "torch eager", "torch.compile")
    one = {work: {name: 100.0 * (place + 1) for place, name in enumerate(names)} for work in WORKS}
    summary = summarise([one, one])
    assert {name: spread["median"] for name, spread in summary["ratios"].items()} == {
        "over torch eager": 3,
        "over torch.compile": 4,
        "CUDA graphs": 2,
        "CUDA graphs, caption flow": 2,
    }


def test_without_a_gpu_it_is_one_line(tmp_path: Path, tiny_template: Path, repository: Path) -> None:
    if probe("cuda").usable:
        pytest.skip("there is a GPU")
    unmeasured = partial(run, config=None, preset="paper", rounds=1, tokens=1, say=print)
    with pytest.raises(EngineError, match="--dry-run checks this benchmark on a CPU"):
        unmeasured(tmp_path, Bundle.open(tiny_template), dry=False)
    script = repository / "benchmarks" / "gpu.sh"
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(
        ["sh", script, tmp_path / "work"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "onnxruntime-gpu is not installed" in done.stderr or "NVIDIA" in done.stderr
    assert not (tmp_path / "work").exists()


def test_the_script_says_how_it_is_called(tmp_path: Path, repository: Path) -> None:
    done = subprocess.run(["sh", repository / "benchmarks" / "gpu.sh"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
