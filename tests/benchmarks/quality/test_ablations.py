from __future__ import annotations

import pytest

from unibrain_rt.benchmarks.quality.ablations import (
    FULL,
    ONLY_CI,
    ONLY_CT,
    ONLY_Z,
    PAPER_CAPTIONS,
    PAPER_IMAGES,
    SINGLE_CONTEXT,
    VARIANTS,
    WITHOUT_CI,
    WITHOUT_CT,
    WITHOUT_Z,
    Variant,
)
from unibrain_rt.presets import Preset

PAPER = Preset()


def test_the_tables_of_the_paper_have_a_row_for_every_variant() -> None:
    names = [variant.name for variant in VARIANTS]
    assert len(set(names)) == len(VARIANTS) == 7
    assert list(PAPER_IMAGES) == list(PAPER_CAPTIONS) == names
    best = max(PAPER_IMAGES, key=lambda name: PAPER_IMAGES[name]["PixCorr"])
    assert best == ONLY_Z.name
    assert max(PAPER_IMAGES, key=lambda name: PAPER_IMAGES[name]["CLIP"]) == FULL.name


def test_the_full_variant_is_the_preset_itself() -> None:
    assert FULL.preset(PAPER) == PAPER


@pytest.mark.parametrize(
    ("variant", "ratio"), [(ONLY_CI, 1.0), (WITHOUT_CT, 1.0), (ONLY_CT, 0.0), (WITHOUT_CI, 0.0)]
)
def test_a_context_that_is_left_out_has_no_weight(variant: Variant, ratio: float) -> None:
    settings = variant.preset(PAPER)
    assert (settings.image_ratio, settings.caption_image_ratio) == (ratio, ratio)
    assert variant in SINGLE_CONTEXT


@pytest.mark.parametrize("variant", [ONLY_CI, ONLY_CT, WITHOUT_Z])
def test_without_a_latent_the_loop_starts_from_noise_alone(variant: Variant) -> None:
    settings = variant.preset(PAPER)
    assert settings.strength == 1.0
    assert settings.steps == PAPER.steps


def test_only_what_has_a_context_is_denoised() -> None:
    assert [variant for variant in VARIANTS if not variant.denoised] == [ONLY_Z]
    assert WITHOUT_Z.preset(PAPER).image_ratio == PAPER.image_ratio
