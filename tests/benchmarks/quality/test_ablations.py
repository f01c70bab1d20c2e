from __future__ import annotations

import numpy as np
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
    Ablation,
)
from unibrain_rt.flows import CONTEXTS, FLOWS, INPUTS, Flow, checked_inputs
from unibrain_rt.presets import Preset
from unibrain_rt.samplers import SamplerTable, Schedule

PAPER = Preset()


def test_the_tables_of_the_paper_have_a_row_for_every_variant() -> None:
    names = [variant.name for variant in VARIANTS]
    assert len(set(names)) == len(VARIANTS) == 7
    assert list(PAPER_IMAGES) == list(PAPER_CAPTIONS) == names
    best = max(PAPER_IMAGES, key=lambda name: PAPER_IMAGES[name]["PixCorr"])
    assert best == ONLY_Z.name
    assert max(PAPER_IMAGES, key=lambda name: PAPER_IMAGES[name]["CLIP"]) == FULL.name


def table(variant: Ablation, flow: Flow) -> SamplerTable:
    return PAPER.table(Schedule(), flow, variant.inputs)


@pytest.mark.parametrize("flow", FLOWS)
def test_the_full_variant_is_the_preset_itself(flow: Flow) -> None:
    np.testing.assert_array_equal(table(FULL, flow).coefficients, PAPER.table(Schedule(), flow).coefficients)
    assert FULL.inputs == INPUTS


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize(
    ("variant", "ratio"), [(ONLY_CI, 1.0), (WITHOUT_CT, 1.0), (ONLY_CT, 0.0), (WITHOUT_CI, 0.0)]
)
def test_a_context_that_is_left_out_has_no_weight(variant: Ablation, ratio: float, flow: Flow) -> None:
    assert (table(variant, flow).column("image_ratio") == ratio).all()
    assert variant in SINGLE_CONTEXT


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("variant", [ONLY_CI, ONLY_CT, WITHOUT_Z])
def test_without_a_latent_the_loop_starts_from_noise_alone(variant: Ablation, flow: Flow) -> None:
    whole = table(variant, flow)
    assert len(whole.timesteps) == PAPER.steps > len(table(FULL, flow).timesteps)


def test_only_what_has_a_context_is_denoised() -> None:
    assert [variant for variant in VARIANTS if not {*CONTEXTS} & {*variant.inputs}] == [ONLY_Z]
    assert (table(WITHOUT_Z, "image").column("image_ratio") == PAPER.image_ratio).all()


def test_a_latent_is_left_out_of_both_flows() -> None:
    for variant in VARIANTS:
        assert ("image_latent" in variant.inputs) == ("text_latent" in variant.inputs)
        assert checked_inputs(variant.inputs, FLOWS) == variant.inputs
