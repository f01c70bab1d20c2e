"""The grid of scenes: every factor varies by itself, and the splits are fixed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from unibrain_rt.export.phantom import scenes as world
from unibrain_rt.export.phantom.scenes import Scene


def test_there_are_a_million_distinct_scenes() -> None:
    tables = (world.KINDS, world.COLOURS, world.POSITIONS, world.SIZES, world.COUNTS, world.BACKGROUNDS)
    cells = np.prod([len(table) for table in (*tables, world.LIGHTINGS)])
    assert cells * world.STYLES * 2 == 1_382_400


def test_factors_vary_independently(sampled: list[Scene]) -> None:
    cells = np.array([scene.cell for scene in sampled])
    for a, b in combinations(range(cells.shape[1]), 2):
        first, second = (np.unique(cells[:, i], return_inverse=True)[1] for i in (a, b))
        table = np.zeros((first.max() + 1, second.max() + 1))
        np.add.at(table, (first, second), 1)
        expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
        chi2 = ((table - expected) ** 2 / expected).sum()
        degrees = (table.shape[0] - 1) * (table.shape[1] - 1)
        assert chi2 < degrees + 5 * np.sqrt(2 * degrees)


def test_the_same_seed_gives_the_same_scenes() -> None:
    assert world.scenes("test", 12, seed=3) == world.scenes("test", 12, seed=3)
    assert world.scenes("test", 12, seed=3) != world.scenes("test", 12, seed=4)


def test_a_longer_draw_begins_with_the_shorter() -> None:
    assert world.scenes("train", 20, seed=1)[:5] == world.scenes("train", 5, seed=1)


def test_splits_are_disjoint_up_to_nuisance(sampled: list[Scene]) -> None:
    cells = {
        part: {scene.cell for scene in world.scenes(part, 100, seed=0)}
        for part in ("train", "validation", "test")
    }
    for a, b in combinations(cells.values(), 2):
        assert not a & b
    for scene in sampled[:50]:
        other = replace(scene, style=(scene.style + 1) % world.STYLES, mirrored=True, tilt=1.0, scale=1.0)
        assert world.split(other) == world.split(scene)


def test_split_shares(sampled: list[Scene]) -> None:
    parts = [world.split(scene) for scene in sampled]
    assert parts.count("train") / len(parts) == pytest.approx(0.90, abs=0.02)
    assert parts.count("test") / len(parts) == pytest.approx(0.05, abs=0.015)


def test_splits_are_the_same_in_another_process(sampled: list[Scene]) -> None:
    program = (
        "import numpy as np; from unibrain_rt.export.phantom import scenes as w;"
        "r = np.random.Generator(np.random.Philox(0));"
        "print(*(w.split(w.sample_scene(r)) for _ in range(80)))"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    here = [world.split(scene) for scene in sampled[:80]]
    assert told.stdout.split() == here
    assert set(here) == {"train", "validation", "test"}


def test_known_splits(plain: Scene) -> None:
    assert world.split(plain) == "train"
    assert world.split(replace(plain, kind="ball")) == "validation"
    assert world.split(replace(plain, kind="word")) == "test"


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="dream"):
        world.scenes("dream", 1, seed=0)  # type: ignore[arg-type]
