from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from unibrain_rt import Decoder
from unibrain_rt.benchmarks.quality.ablations import FULL, ONLY_CI, ONLY_Z, VARIANTS, WITHOUT_CI, WITHOUT_Z
from unibrain_rt.benchmarks.quality.decoding import Decoded, DecodingPool, Request, VariantDecoder
from unibrain_rt.errors import InputError
from unibrain_rt.export.phantom.people import held_out

PRESET = "realtime"
Scans = NDArray[np.float32]


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder.open(preset=PRESET, threads=1)


@pytest.fixture(scope="module")
def scans(decoder: Decoder) -> Scans:
    subject = decoder.subject
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((12, subject.voxels), dtype=np.float32)
    return subject.voxel_mean + subject.voxel_std * noise


def test_the_full_variant_is_a_plain_decode(decoder: Decoder, scans: Scans) -> None:
    variants = VariantDecoder(decoder)
    variants.decode(Request(scans[1], ONLY_Z))  # what ran before leaves nothing behind
    variants.decode(Request(scans[1], WITHOUT_Z))
    found = variants.decode(Request(scans[0], FULL, seed=5))
    plain = decoder.decode(scans[0], seed=5)
    assert np.array_equal(found.image, plain.image)
    assert found.caption == plain.caption


def test_every_variant_uses_what_it_is_given(decoder: Decoder, scans: Scans) -> None:
    variants = VariantDecoder(decoder)
    pictures = [variants.decode(Request(scans[0], variant)).image for variant in VARIANTS]
    for i, one in enumerate(pictures):
        assert all(not np.array_equal(one, other) for other in pictures[:i])


@pytest.mark.parametrize(
    ("variant", "head"), [(ONLY_CI, "image_latent"), (ONLY_CI, "text_context"), (WITHOUT_CI, "image_context")]
)
def test_what_is_left_out_changes_nothing(
    decoder: Decoder, scans: Scans, variant: object, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = VariantDecoder(decoder)
    before = variants.decode(Request(scans[0], variant))  # type: ignore[arg-type]
    predict = Decoder.predict

    def other(self: Decoder, voxels: Scans) -> dict[str, Scans]:
        return {**predict(self, voxels), head: predict(self, scans[1])[head]}

    monkeypatch.setattr(Decoder, "predict", other)
    after = variants.decode(Request(scans[0], variant))  # type: ignore[arg-type]
    assert np.array_equal(before.image, after.image)
    full_after = variants.decode(Request(scans[0]))
    monkeypatch.setattr(Decoder, "predict", predict)
    assert not np.array_equal(full_after.image, variants.decode(Request(scans[0])).image)


def test_the_latent_alone_goes_straight_to_its_decoder(decoder: Decoder, scans: Scans) -> None:
    found = VariantDecoder(decoder).decode(Request(scans[0], ONLY_Z))
    assert np.array_equal(found.image, decoder.render(decoder.predict(scans[0])["image_latent"][None]))


def test_flows_that_are_not_asked_for_are_left_out(decoder: Decoder, scans: Scans) -> None:
    variants = VariantDecoder(decoder)
    assert variants.decode(Request(scans[0], flows=("image",))).caption is None
    only_caption = variants.decode(Request(scans[0], flows=("caption",)))
    assert only_caption.image is None
    assert only_caption.caption == decoder.decode(scans[0]).caption


def test_workers_give_what_one_process_gives_in_the_same_order(decoder: Decoder, scans: Scans) -> None:
    requests = [Request(scan, seed=i) for i, scan in enumerate(scans)]
    told: list[tuple[int, int]] = []
    with (
        DecodingPool(decoder.bundle.folder, preset=PRESET, workers=1) as one,
        DecodingPool(decoder.bundle.folder, preset=PRESET, workers=2) as two,
    ):
        alone = one.decode(None, requests)
        together = two.decode(None, requests, lambda *n: told.append(n))
        again = two.decode(None, requests[::-1])
    assert [found.caption for found in again] == [found.caption for found in together][::-1]
    assert [one.caption for one in alone] == [one.caption for one in together]
    assert all(np.array_equal(one.image, other.image) for one, other in zip(alone, together, strict=True))
    assert told[-1] == (12, 12)
    assert all(isinstance(one, Decoded) for one in together)


def test_a_bad_scan_is_an_input_error_in_a_worker_too(decoder: Decoder, scans: Scans) -> None:
    requests = [Request(scan) for scan in (*scans, scans[0][:-1])]
    with (
        DecodingPool(decoder.bundle.folder, preset=PRESET, workers=2) as pool,
        pytest.raises(InputError, match="voxels"),
    ):
        pool.decode(None, requests)


def test_a_pool_decodes_for_every_subject_of_its_bundle(decoder: Decoder) -> None:
    bundle = decoder.bundle
    shown = {name: held_out(name, 10, 64)[2] for name in ("sub-01", "sub-05")}
    with DecodingPool(bundle.folder, preset=PRESET, workers=2) as pool:
        for name, voxels in shown.items():
            found = pool.decode(name, [Request(scan, flows=("image",)) for scan in voxels])
            want = Decoder.open(bundle, subject=name, preset=PRESET, threads=1).decode(voxels[3])
            assert np.array_equal(found[3].image, want.image)
