"""The whole training, from nothing to a checkpoint, with a few steps of each stage."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from unibrain_rt.export.bundles.checkpoint import check, open_checkpoint
from unibrain_rt.export.phantom.learning.recipe import Recipe, Run

FEW = replace(
    Recipe(), **{field.name: 2 for field in fields(Recipe) if field.name.endswith("_steps")}, scenes=32
)


def ignore(name: str, step: int, steps: int, loss: float) -> None:
    pass


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    Run(folder, FEW, ignore).checkpoint()
    return folder


def test_it_ends_in_a_checkpoint_that_export_reads(run: Path) -> None:
    checkpoint = open_checkpoint(run)
    check(checkpoint)
    assert checkpoint.has_captions
    scale = json.loads((run / "config.json").read_text("utf-8"))["autokl"]["scale_factor"]
    assert scale > 0


def test_every_stage_has_its_log_and_its_steps(run: Path) -> None:
    stages = {path.stem for path in run.glob("*.jsonl")}
    assert len(stages) == sum(field.name.endswith("_steps") for field in fields(Recipe))
    for stage in stages:
        assert torch.load(run / f"{stage}.pt", weights_only=True)["step"] == 2


def test_what_a_run_has_lost_comes_out_the_same_again(run: Path, tmp_path: Path) -> None:
    wanted = load_file(run / "vd-four-flow-v1-0.safetensors")
    again = tmp_path / "again"
    lost = shutil.ignore_patterns("tokenizers", "unet.*", "text.*", "*.safetensors")
    shutil.copytree(run, again, ignore=lost)
    Run(again, FEW, ignore).checkpoint()
    found = load_file(again / "vd-four-flow-v1-0.safetensors")
    assert found.keys() == wanted.keys()
    assert [name for name, value in wanted.items() if not torch.equal(found[name], value)] == []
