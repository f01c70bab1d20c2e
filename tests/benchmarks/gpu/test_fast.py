"""The measurement of whole decodes, on a CPU: every part of its path but the card."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from unibrain_rt.benchmarks.gpu.fast import PRESETS, main
from unibrain_rt.benchmarks.gpu.fast_page import fast_page
from unibrain_rt.benchmarks.gpu.scan import Decoded, compare
from unibrain_rt.benchmarks.gpu.variant_worker import WORKS
from unibrain_rt.benchmarks.gpu.variants import STAGES
from unibrain_rt.engines import probe
from unibrain_rt.flows import FLOWS

pytestmark = pytest.mark.slow


def test_it_goes_the_whole_way_on_a_cpu(pack: Path, tmp_path: Path) -> None:
    words = ["--pack", pack, "--out", tmp_path, "--device", "cpu", "--rounds", "2", "--budget-s", "500"]
    variants = "torch eager,,onnxruntime,,torch.compile, dry"
    done = CliRunner().invoke(main, [*map(str, words), "--variants", variants])
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "fast.json").read_text("utf-8"))
    assert not [one["error"] for one in results["variants"].values() if "error" in one]
    assert set(results["presets"]) == set(results["bounds"]) == set(PRESETS)
    for found in results["presets"].values():
        assert len(found["rounds"]) == 2
        for one in found["rounds"]:
            assert all(set(one[work]) == {"torch eager", "onnxruntime"} for work in WORKS)
            assert all(spent > 0 for work in WORKS for spent in one[work].values())
        assert all(set(one) == set(STAGES) for rounds in found["stages"].values() for one in rounds)
    assert set(results["stages"]["torch.compile, dry"][0]) == {"image_loop"}
    parity = results["parity"]["variants"]["onnxruntime"]
    # Torch computes in fp32 here, the graphs in half.
    assert parity["psnr_db"] > 30
    assert parity["finite"]
    assert max(parity[f"{flow}_latent_error"] for flow in FLOWS) < 0.05
    bounds = results["bounds"]["paper"]
    assert (bounds["image_loop"]["runs"], bounds["tokens"]["runs"]) == (37, 20)
    assert all(bound["limit_ms"] > 0 for bound in bounds.values())
    page = fast_page(results)
    assert "our torch modules, eager, fp16" in page
    assert [path.name for path in tmp_path.iterdir()] == ["fast.json"]


@pytest.mark.skipif(probe("cuda").usable, reason="there is a GPU")
def test_without_a_gpu_it_is_one_line(pack: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["--pack", str(pack), "--out", str(tmp_path)])
    assert done.exit_code == 1
    assert len(done.output.splitlines()) == 1
    assert "engine cuda: " in done.output
    assert not list(tmp_path.iterdir())


def test_an_unknown_variant_is_named(pack: Path, tmp_path: Path) -> None:
    words = [
        "--pack",
        str(pack),
        "--out",
        str(tmp_path),
        "--device",
        "cpu",
        "--variants",
        "torch eager,,tensorflow",
    ]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert "unknown 'tensorflow'" in done.output


def test_decodes_are_compared() -> None:
    def decoded(offset: float = 0.0, tokens: tuple[int, ...] = (1, 2)) -> Decoded:
        latents = {flow: np.ones((1, 4), np.float32) + offset for flow in FLOWS}
        return Decoded(latents, np.full((1, 3, 2, 2), 0.5, np.float32) + offset, [*tokens])  # type: ignore[arg-type]

    same = compare(decoded(), decoded())
    assert same == {
        "psnr_db": 200,
        "image_latent_error": 0,
        "text_latent_error": 0,
        "same_tokens": True,
        "finite": True,
    }
    other = compare(decoded(0.1, (1, 3)), decoded())
    assert other["psnr_db"] == pytest.approx(20, abs=1e-3)
    assert other["image_latent_error"] == pytest.approx(0.1, abs=1e-6)
    assert other["same_tokens"] is False
    assert compare(decoded(float("nan")), decoded())["finite"] is False
