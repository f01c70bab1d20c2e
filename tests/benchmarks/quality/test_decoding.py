from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from unibrain_rt import Decoder, Request, open_pool
from unibrain_rt.benchmarks.quality.ablations import (
    FULL,
    ONLY_CI,
    ONLY_Z,
    VARIANTS,
    WITHOUT_CI,
    WITHOUT_Z,
    Ablation,
)
from unibrain_rt.benchmarks.quality.decoding import captions_of, decode_all, pictures_of
from unibrain_rt.errors import InputError
from unibrain_rt.export.phantom.people import held_out
from unibrain_rt.subject import Subject

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
    decoder.decode(scans[1], inputs=ONLY_Z.inputs)  # what ran before leaves nothing behind
    decoder.decode(scans[1], inputs=WITHOUT_Z.inputs)
    full = decoder.decode(scans[0], seed=5, inputs=FULL.inputs)
    plain = Decoder.open(preset=PRESET, threads=1).decode(scans[0], seed=5)
    assert np.array_equal(full.image, plain.image)
    assert full.caption == plain.caption


def test_every_variant_uses_what_it_is_given(decoder: Decoder, scans: Scans) -> None:
    pictures = [decoder.decode(scans[0], inputs=variant.inputs).image for variant in VARIANTS]
    for i, one in enumerate(pictures):
        assert all(not np.array_equal(one, other) for other in pictures[:i])


@pytest.mark.parametrize(
    ("variant", "head"), [(ONLY_CI, "image_latent"), (ONLY_CI, "text_context"), (WITHOUT_CI, "image_context")]
)
def test_what_is_left_out_changes_nothing(
    decoder: Decoder, scans: Scans, variant: Ablation, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = decoder.decode(scans[0], inputs=variant.inputs)
    full = decoder.decode(scans[0])
    predict = Subject.predict

    def other(self: Subject, betas: Scans) -> dict[str, Scans]:
        return {**predict(self, betas), head: predict(self, scans[1][None])[head]}

    monkeypatch.setattr(Subject, "predict", other)
    after = decoder.decode(scans[0], inputs=variant.inputs)
    assert np.array_equal(before.image, after.image)
    assert not np.array_equal(decoder.decode(scans[0]).image, full.image)


def test_the_latent_alone_goes_straight_to_its_decoder(decoder: Decoder, scans: Scans) -> None:
    only = decoder.decode(scans[0], inputs=ONLY_Z.inputs)
    assert np.array_equal(only.latents["image"], only.predictions["image_latent"])
    session = decoder.engine.open(decoder.bundle.graph("autokl_decode"))
    session.write("latent", only.predictions["image_latent"][None])
    session.run()
    picture = session.read("image")[0].transpose(1, 2, 0).clip(0, 1)
    assert np.array_equal(only.image, np.round(picture * 255).astype(np.uint8))


def test_workers_give_what_one_process_gives_in_the_same_order(decoder: Decoder, scans: Scans) -> None:
    requests = [Request(scan, seed=i) for i, scan in enumerate(scans)]
    told: list[str] = []
    with (
        open_pool(decoder.bundle, preset=PRESET, workers=1) as one,
        open_pool(decoder.bundle, preset=PRESET, workers=2) as two,
    ):
        alone = decode_all(one, requests, "alone", lambda line: None)
        together = decode_all(two, requests, "together", told.append)
        again = decode_all(two, requests[::-1], "again", lambda line: None)
    assert captions_of(again) == captions_of(together)[::-1]
    assert captions_of(alone) == captions_of(together)
    assert np.array_equal(pictures_of(alone), pictures_of(together))
    assert told == [f"together: {done} of 12" for done in (3, 6, 9, 12)]


def test_a_bad_scan_is_an_input_error_in_a_worker_too(decoder: Decoder, scans: Scans) -> None:
    requests = [Request(scan) for scan in (*scans, scans[0][:-1])]
    with (
        open_pool(decoder.bundle, preset=PRESET, workers=2) as pool,
        pytest.raises(InputError, match="voxels"),
    ):
        decode_all(pool, requests, "bad", lambda line: None)


def test_a_pool_decodes_for_every_subject_of_its_bundle(decoder: Decoder) -> None:
    bundle = decoder.bundle
    shown = {name: held_out(name, 10, 64)[2] for name in ("sub-01", "sub-05")}
    with open_pool(bundle, preset=PRESET, workers=2) as pool:
        for name, voxels in shown.items():
            results = decode_all(pool, [Request(scan, name) for scan in voxels], name, lambda line: None)
            want = Decoder.open(bundle, subject=name, preset=PRESET, threads=1).decode(voxels[3])
            assert np.array_equal(results[3].image, want.image)
