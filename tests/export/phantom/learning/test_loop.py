from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unibrain_rt.export.phantom.learning.loop import Stage, train


class StoppedError(Exception):
    pass


def make_stage(steps: int, stop_at: int | None = None, told: list[int] | None = None) -> Stage:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1))
    seen = 0

    def loss(rng: np.random.Generator, step: int) -> Tensor:
        nonlocal seen
        if seen == stop_at:
            raise StoppedError
        seen += 1
        if told is not None:
            told.append(step)
        x = torch.from_numpy(rng.standard_normal((16, 4), dtype=np.float32))
        return (module(x) - x.sum(dim=1, keepdim=True)).square().mean()

    return Stage("toy", module, loss, steps, 1e-2, average=0.9)


def ignore(name: str, step: int, steps: int, loss: float) -> None:
    pass


def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = make_stage(60)
    train(whole, tmp_path / "whole", 3, ignore)
    with pytest.raises(StoppedError):
        # Saved after every step, so that the stop loses one step at most.
        train(make_stage(60, stop_at=37), tmp_path / "parts", 3, ignore, save_every_s=0)
    told: list[int] = []
    resumed = make_stage(60, told=told)
    train(resumed, tmp_path / "parts", 3, ignore)
    assert told == list(range(37, 60))
    for ours, theirs in zip(whole.module.parameters(), resumed.module.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_finished_run_is_loaded_without_training(tmp_path: Path) -> None:
    first = make_stage(30)
    train(first, tmp_path, 0, ignore)
    again = make_stage(30, stop_at=0)
    train(again, tmp_path, 0, ignore)
    for ours, theirs in zip(first.module.parameters(), again.module.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_training_learns(tmp_path: Path) -> None:
    losses: list[float] = []
    train(make_stage(300), tmp_path, 1, lambda name, step, steps, loss: losses.append(loss))
    assert losses[-1] < 5
    assert (tmp_path / "toy.jsonl").is_file()


TRAINING = """
import sys
from pathlib import Path
import torch
from torch import nn
from unibrain_rt.export.phantom.learning.loop import Stage, train

torch.manual_seed(0)
module = nn.Sequential(nn.Linear(64, 256), nn.Dropout(0.2), nn.Linear(256, 1))

def loss(rng, step):
    x = torch.from_numpy(rng.standard_normal((256, 64), dtype="float32"))
    return (module(x) - x.sum(dim=1, keepdim=True)).square().mean()

stage = Stage("toy", module, loss, 1500, 1e-2, average=0.9)
train(stage, Path(sys.argv[1]), 3, lambda *told: None, save_every_s=0.05)
"""


@pytest.mark.slow
def test_a_process_killed_at_a_random_moment_and_started_again_ends_with_the_same_weights(
    tmp_path: Path, report: Callable[[str], None]
) -> None:
    def start(folder: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", TRAINING, str(folder)])

    assert start(tmp_path / "whole").wait() == 0
    killed = start(tmp_path / "parts")
    while not (tmp_path / "parts" / "toy.pt").exists():
        assert killed.poll() is None
        time.sleep(0.01)
    moment = random.uniform(0.0, 0.6)
    time.sleep(moment)
    killed.kill()
    interrupted = killed.wait() != 0
    reached = torch.load(tmp_path / "parts" / "toy.pt", weights_only=True)["step"]
    assert start(tmp_path / "parts").wait() == 0
    report(f"killed {moment:.2f} s after the first save, at step {reached} of 1500 or later: {interrupted}")
    whole, parts = (torch.load(tmp_path / name / "toy.pt", weights_only=True) for name in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 1500
    for kind in ("weights", "averaged"):
        assert all(torch.equal(a, b) for a, b in zip(whole[kind], parts[kind], strict=True))
