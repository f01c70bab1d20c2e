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
from unibrain_rt.export.targets import BATCH, encode_targets


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
