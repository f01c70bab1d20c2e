from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unibrain_rt.export.phantom.training import Stage, train


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
