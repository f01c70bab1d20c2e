from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import create_engine
from unibrain_rt.errors import InputError
from unibrain_rt.export.phantom.phrases import captions
from unibrain_rt.export.phantom.pictures import stimuli
from unibrain_rt.export.phantom.scenes import scenes
from unibrain_rt.export.subjects.encoders import (
    BATCH,
    BLOCK,
    Encoder,
    TargetEncoder,
    clip_input,
    encode_targets,
)


def test_targets_have_the_heads_shapes_and_do_not_depend_on_the_batch(phantom_bundle: Path) -> None:
    bundle, engine = Bundle.open(phantom_bundle), create_engine()
    shown = scenes("test", BATCH + 3, 0)
    images, texts = stimuli(shown, 64), [captions(scene)[0] for scene in shown]
    together = encode_targets(bundle, engine, images, texts)
    alone = encode_targets(bundle, engine, images[-1:], texts[-1:])
    subject = bundle.subject()
    for head, values in together.items():
        assert values.shape == (len(shown), *subject.head_shape(head))
        np.testing.assert_allclose(values[-1:], alone[head], rtol=1e-3, atol=1e-4)


def test_images_of_any_size_are_resized(phantom_bundle: Path) -> None:
    bundle, engine = Bundle.open(phantom_bundle), create_engine()
    shown = scenes("test", 2, 0)
    texts = [captions(scene)[0] for scene in shown]
    small = encode_targets(bundle, engine, stimuli(shown, 64), texts)["image_latent"]
    large = encode_targets(bundle, engine, stimuli(shown, 128), texts)["image_latent"]
    assert np.corrcoef(small.ravel(), large.ravel())[0, 1] > 0.95


def test_one_caption_an_image(phantom_bundle: Path) -> None:
    bundle = Bundle.open(phantom_bundle)
    with pytest.raises(InputError, match="one caption an image"):
        encode_targets(bundle, create_engine(), np.zeros((2, 64, 64, 3), np.uint8), ["a cup"])


def test_blocks_cover_every_stimulus_once(phantom_bundle: Path) -> None:
    bundle, engine = Bundle.open(phantom_bundle), create_engine()
    shown = scenes("test", BLOCK + 5, 0)
    images, several = stimuli(shown, 64), [captions(scene)[: 1 + n % 3] for n, scene in enumerate(shown)]
    encoder = TargetEncoder(bundle, engine)
    asked: list[tuple[int, slice]] = []

    def pictures(side: int, rows: slice) -> np.ndarray:
        asked.append((side, rows))
        return images[rows]

    blocks = list(encoder.blocks(pictures, several))
    assert [part for part, _ in blocks] == [slice(0, BLOCK), slice(BLOCK, BLOCK + 5)]
    assert asked == [(64, part) for part, _ in blocks]  # once, where both encoders take one size
    for part, found in blocks:
        assert {head: values.shape[1:] for head, values in found.items()} == encoder.shapes
        assert {len(values) for values in found.values()} == {part.stop - part.start}
    each = encode_targets(bundle, engine, images[[2] * 3], list(captions(shown[2])[:3]))
    for head in ("text_latent", "text_context"):
        np.testing.assert_allclose(blocks[0][1][head][2], each[head].mean(axis=0), rtol=1e-3, atol=1e-4)


def test_image_contexts_are_those_of_the_targets(phantom_bundle: Path) -> None:
    bundle, engine = Bundle.open(phantom_bundle), create_engine()
    shown = scenes("test", 3, 0)
    found = Encoder(bundle.graph("clip_image"), engine)(clip_input(stimuli(shown, 64)))
    expected = encode_targets(bundle, engine, stimuli(shown, 64), ["a cup"] * 3)["image_context"]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    white = clip_input(np.full((1, 4, 4, 3), 255, np.uint8))
    np.testing.assert_allclose(white[0, :, 0, 0], (1 - np.array((0.48145466, 0.4578275, 0.40821073)))
                               / np.array((0.26862954, 0.26130258, 0.27577711)), rtol=1e-5)  # fmt: skip
