"""A training loop that can be stopped at any moment and ends with the same weights as one that was not.

Every random number of a step comes from a generator keyed by (seed, step), and weights, optimiser and
averages are saved together, so a run resumed from any checkpoint repeats exactly what the uninterrupted run
would have done.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from unibrain_rt.files import whole_file

LossFunction = Callable[[np.random.Generator, int], Tensor]


@dataclass(frozen=True)
class Stage:
    """One model to train: ``loss`` draws a batch with the generator it is given and returns a scalar.

    It is also told the step, from 0, for what changes in the course of the training.

    ``parameters`` are what is learned, where that is not all of the module.
    """

    name: str
    module: nn.Module
    loss: LossFunction
    steps: int
    learning_rate: float
    weight_decay: float = 0.0
    average: float = 0.0
    parameters: tuple[nn.Parameter, ...] = ()


def train(
    stage: Stage,
    folder: Path,
    seed: int,
    report: Callable[[str, int, int, float], None],
    save_every_s: float = 30.0,
) -> None:
    """Train ``stage.module`` in place, resuming from ``folder/<name>.pt`` if it is there.

    The weights left in the module are the exponential average if ``stage.average`` is set. Losses are
    appended to ``folder/<name>.jsonl``; ``report`` gets (name, step, steps, mean loss) about every second.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stage.name}.pt"
    parameters = list(stage.parameters or stage.module.parameters())
    optimiser = torch.optim.AdamW(
        parameters, lr=stage.learning_rate, betas=(0.9, 0.99), weight_decay=stage.weight_decay
    )
    averaged = [p.detach().clone() for p in parameters]
    step = 0
    if path.is_file():
        state = torch.load(path, weights_only=True)
        with torch.no_grad():
            for own, saved in zip(parameters, state["weights"], strict=True):
                own.copy_(saved)
        averaged = state["averaged"]
        optimiser.load_state_dict(state["optimiser"])
        step = int(state["step"])

    stage.module.train()
    losses: list[float] = []
    saved_at = reported_at = time.monotonic()
    while step < stage.steps:
        for group in optimiser.param_groups:
            group["lr"] = stage.learning_rate * _schedule(step, stage.steps)
        torch.manual_seed(seed * 1_000_003 + step)  # dropout inside the modules
        generator = np.random.Generator(np.random.Philox(key=[seed, step]))
        loss = stage.loss(generator, step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        step += 1
        if stage.average:
            # A short memory at first, so that the average does not keep the random start.
            decay = min(stage.average, (1 + step) / (10 + step))
            torch._foreach_lerp_(averaged, [p.detach() for p in parameters], 1 - decay)
        losses.append(float(loss.detach()))
        now = time.monotonic()
        if now - reported_at > 1 or step == stage.steps:
            mean = sum(losses) / len(losses)
            with (folder / f"{stage.name}.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps({"step": step, "loss": round(mean, 6)}) + "\n")
            report(stage.name, step, stage.steps, mean)
            losses, reported_at = [], now
        if now - saved_at > save_every_s or step == stage.steps:
            _save(path, parameters, averaged, optimiser, step)
            saved_at = time.monotonic()
    if stage.average:
        with torch.no_grad():
            for own, mean_weights in zip(parameters, averaged, strict=True):
                own.copy_(mean_weights)
    stage.module.eval()


def _schedule(step: int, steps: int) -> float:
    warm_up = min(200, steps // 10 + 1)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def _save(
    path: Path,
    parameters: list[nn.Parameter],
    averaged: list[Tensor],
    optimiser: torch.optim.Optimizer,
    step: int,
) -> None:
    state = {
        "weights": [p.detach() for p in parameters],
        "averaged": averaged,
        "optimiser": optimiser.state_dict(),
        "step": step,
    }
    with whole_file(path) as part:
        torch.save(state, part)
