"""The volume: every voxel in the mask, every region in its place, labels as NSD writes them."""

from __future__ import annotations

import numpy as np
import pytest

from unibrain_rt.export.phantom.cortex import (
    EARLY,
    HIGH,
    LABEL_TABLES,
    REGIONS,
    Cortex,
    make_cortex,
    mask,
    regions,
    roi_labels,
)


@pytest.mark.parametrize("voxels", [200, 777, 1200])
def test_the_mask_holds_every_voxel_in_c_order(voxels: int) -> None:
    cortex = make_cortex(voxels)
    inside = mask(cortex)
    assert inside.dtype == np.bool_
    assert inside.sum() == voxels == cortex.voxels
    np.testing.assert_array_equal(np.argwhere(inside), cortex.places)
    assert not inside[[0, -1]].any()
    assert not inside[:, [0, -1]].any()
    assert not inside[:, :, [0, -1]].any()
    for region in (*EARLY, *HIGH):
        assert (cortex.region == region).sum() >= 4


def test_regions_have_their_shares(cortex: Cortex) -> None:
    assert set(REGIONS) == {*EARLY, *HIGH}
    for name, share in REGIONS.items():
        assert (cortex.region == name).mean() == pytest.approx(share, abs=0.003)
    assert (cortex.region == "").mean() == pytest.approx(0.16, abs=0.01)


def test_roi_labels_follow_nsd(cortex: Cortex) -> None:
    labels = roi_labels(cortex)
    assert set(labels) == {"prf-visualrois", "floc-faces", "floc-words", "floc-places", "floc-bodies"}
    for file, values in labels.items():
        assert values.dtype == np.int8
        assert values.shape == (cortex.voxels,)
        assert set(values.tolist()) <= set(LABEL_TABLES[file])
    names = [LABEL_TABLES["prf-visualrois"][i] for i in range(1, 8)]
    assert names == ["V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4"]
    for i, name in enumerate(names, start=1):
        np.testing.assert_array_equal(labels["prf-visualrois"] == i, cortex.region == name)
    for region in ("faces", "words", "places", "bodies"):
        np.testing.assert_array_equal(labels[f"floc-{region}"] > 0, cortex.region == region)


def test_regions_part_the_voxels(cortex: Cortex) -> None:
    np.testing.assert_array_equal(np.sum(list(regions(cortex).values()), axis=0), 1)


def test_regions_lie_together(cortex: Cortex) -> None:
    """V1 is at the back, ventral below dorsal."""
    middle = {name: cortex.places[part].mean(axis=0) for name, part in regions(cortex).items()}
    assert middle["V1v"][1] < middle["V2v"][1] < middle["V3v"][1] < middle["LO"][1] < middle["places"][1]
    assert middle["V1v"][2] < middle["V1d"][2]
