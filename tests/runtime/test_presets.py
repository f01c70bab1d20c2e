"""Presets: read from a manifest, checked, and turned into tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unibrain_rt.errors import BundleError
from unibrain_rt.json_file import Fields
from unibrain_rt.manifest import broken
from unibrain_rt.presets import PRESETS, Preset
from unibrain_rt.samplers import Schedule

GIVEN: dict[str, Any] = Preset().to_mapping()


def read(**changes: Any) -> Preset:
    return Preset.from_fields("mine", Fields({**GIVEN, **changes}, "bundle.json: presets.mine", broken))


def test_the_papers_preset_is_the_papers() -> None:
    """UniBrain: DDIM, 50 steps of which 37 run, guidance 7.5, weights 0.6 and 0.9 of the image context."""
    paper = PRESETS["paper"]
    assert (paper.sampler, paper.steps, paper.strength, paper.guidance_scale) == ("ddim", 50, 0.75, 7.5)
    for flow, ratio in (("image", 0.6), ("text", 0.9)):
        table = paper.table(Schedule(), flow)  # type: ignore[arg-type]
        assert len(table.timesteps) == 37
        assert table.timesteps[0] == 721
        assert table.noise_timestep == 741
        np.testing.assert_array_equal(table.column("image_ratio"), ratio)
        np.testing.assert_array_equal(table.column("guidance_scale"), 7.5)


def test_quicker_presets_run_fewer_steps_from_less_noise() -> None:
    tables = [PRESETS[name].table(Schedule(), "image") for name in ("paper", "fast", "realtime")]
    assert [len(table.timesteps) for table in tables] == [37, 5, 3]
    noises = [table.noise_timestep for table in tables]
    assert noises == sorted(noises, reverse=True)
    assert noises[0] == 741


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_the_manifest(name: str) -> None:
    mapping = PRESETS[name].to_mapping()
    assert Preset.from_fields(name, Fields(mapping, "here", broken)) == PRESETS[name]


def test_an_interval_limits_guidance() -> None:
    preset = read(guidance_interval=[0.2, 0.5])
    assert preset.guidance_interval == (0.2, 0.5)
    assert read(guidance_interval=None).guidance_interval is None
    table = preset.table(Schedule(), "image")
    share = table.timesteps / 1000
    inside = (share >= 0.2) & (share <= 0.5)
    assert inside.any()
    assert not inside.all()
    np.testing.assert_array_equal(table.column("guidance_scale"), np.where(inside, 7.5, 1.0))
    # An interval that went through JSON is a list again.
    assert (
        Preset.from_fields("x", Fields({**preset.to_mapping(), "guidance_interval": [0.2, 0.5]}, "x", broken))
        == preset
    )


@pytest.mark.parametrize("key", [key for key in GIVEN if key != "guidance_interval"])
def test_every_setting_has_to_be_there(key: str) -> None:
    with pytest.raises(BundleError, match=f"{key} is missing"):
        Preset.from_fields(
            "mine", Fields({name: GIVEN[name] for name in GIVEN if name != key}, "here", broken)
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"sampler": "magic"},
        {"sampler": 3},
        {"steps": 10.5},
        {"steps": "50"},
        {"steps": True},
        {"strength": "all"},
        {"guidance_interval": [0.5]},
        {"guidance_interval": [0, 1, 2]},
        {"guidance_interval": ["low", "high"]},
        {"guidance_interval": 0.5},
        {"guidance_interval": [True, False]},
        {"guidance_interval": [0, 10**400]},
    ],
    ids=str,
)
def test_what_cannot_be_read_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match=r"bundle\.json: presets\.mine"):
        read(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"steps": -1},
        {"steps": 10**400},
        {"steps": 600},
        {"strength": 0.0},
        {"strength": 1.5},
        {"strength": 0.001},
        {"strength": float("nan")},
        {"guidance_scale": -1.0},
        {"guidance_scale": float("inf")},
        {"guidance_scale": 1e30},
        {"image_ratio": 1.5},
        {"image_ratio": float("nan")},
        {"guidance_interval": [0.5, 0.2]},
        {"guidance_interval": [-1, 2]},
    ],
    ids=str,
)
def test_what_makes_no_sense_makes_no_table(changes: dict[str, Any]) -> None:
    preset = read(**changes)
    with pytest.raises(BundleError, match="preset"):
        preset.table(Schedule(), "image")


def test_each_flow_has_its_own_ratio() -> None:
    preset = read(caption_image_ratio=7.0)
    preset.table(Schedule(), "image")
    with pytest.raises(BundleError, match="image ratio"):
        preset.table(Schedule(), "caption")
