"""What is compared with the CPU, tried where the engine is the CPU's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from unibrain_rt.benchmarks.gpu import correct, reference
from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import create_engine, probe

SCANS = 2


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    reference.write_reference(folder / "reference.npz", SCANS)
    return folder


def test_the_cpu_is_as_the_cpu(pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        correct, "PHANTOMS", {"fp32": correct.PHANTOMS["fp32"], "fp16": correct.PHANTOMS["fp16"]}
    )
    correct.phantom(pack, tmp_path, engine="onnxruntime")
    found = json.loads((tmp_path / "phantom.json").read_text("utf-8"))
    assert found["fp32"]["psnr_db"] == {"least": 200, "median": 200}
    assert found["fp32"]["image_latent_error"] == found["fp32"]["text_latent_error"] == 0
    assert found["fp16"]["psnr_db"]["least"] > 40
    assert 0 < found["fp16"]["image_latent_error"] < 0.02
    for one in found.values():
        assert (one["scans"], one["same_captions"], one["fallbacks"], one["told"]) == (SCANS, 1, [], [])
    assert "phantom fp16: 2 scans" in correct.summary(tmp_path)
    assert "| fp16 | 2 |" in _page(tmp_path)


def test_another_picture_and_another_caption_are_noticed(pack: Path) -> None:
    with np.load(pack / "reference.npz", allow_pickle=False) as saved:
        wanted = {name: saved[name] for name in saved.files}
    found = reference.decode_all(Bundle.open(None), create_engine("onnxruntime"), wanted["betas"][::-1])
    compared = reference.compare_all(found, wanted)
    assert compared["psnr_db"]["median"] < 35
    assert compared["same_captions"] < 1
    assert compared["image_latent_error"] > 0.1


def test_an_engine_that_fails_is_part_of_the_results(pack: Path, tmp_path: Path) -> None:
    correct.phantom(pack, tmp_path, engine="none")
    found = json.loads((tmp_path / "phantom.json").read_text("utf-8"))
    assert set(found) == set(correct.PHANTOMS)
    assert all("unknown engine" in one["error"] for one in found.values())
    assert "unknown engine" in correct.summary(tmp_path)


@pytest.mark.skipif(probe("cuda").usable, reason="there is a GPU")
def test_without_a_gpu_it_is_one_line(pack: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(correct.main, ["--pack", str(pack), "--out", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert len(done.output.splitlines()) == 1
    assert "engine cuda: " in done.output


def _page(folder: Path) -> str:
    from unibrain_rt.benchmarks.gpu.correct_page import correct_page
    from unibrain_rt.benchmarks.gpu.parts import read

    return correct_page({"phantom": read(folder / "phantom.json")})
