"""What the ridge heads learn to predict: a stimulus' latents and contexts, by the bundle's own encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import Engine
from unibrain_rt.errors import InputError
from unibrain_rt.export.pixels import CLIP_MEAN, CLIP_STD
from unibrain_rt.export.tokenization import bert_ids, clip_ids

Float = NDArray[np.float32]
BATCH = 16
Prepare = Callable[[NDArray[Any], int], Float]


def encode_targets(
    bundle: Bundle, engine: Engine, images: NDArray[np.uint8], captions: Sequence[str]
) -> dict[str, Float]:
    """The four heads' targets of stimuli.

    Args:
        images: (N, H, W, 3); resized to what each encoder takes.
        captions: one a stimulus.

    Returns:
        ``image_latent`` (N, C, s, s), ``text_latent`` (N, D), ``image_context`` and ``text_context``
        (N, L, D).

    Raises:
        InputError: numbers of images and captions differ, or the bundle has no vocabularies.
    """
    if len(images) != len(captions):
        raise InputError(f"{len(images)} images, but {len(captions)} captions: give one caption an image")
    for name in ("clip", "bert"):
        if name not in bundle.tokenizers:
            raise InputError(
                f"{bundle.folder}: no tokenizers/{name}; export the checkpoint with its vocabularies"
            )
    text = bundle.graph("clip_text").inputs[0].shape[1]
    sentence = bundle.graph("optimus_encode").inputs[0].shape[1]
    assert isinstance(text, int), "captions are padded to a fixed length"
    assert isinstance(sentence, int)
    return {
        "image_latent": _encode(bundle, engine, "autokl_encode", images, _pixels),
        "text_latent": _encode(
            bundle, engine, "optimus_encode", bert_ids(bundle.tokenizers["bert"], captions, sentence)
        ),
        "image_context": image_contexts(bundle, engine, images),
        "text_context": _encode(
            bundle, engine, "clip_text", clip_ids(bundle.tokenizers["clip"], captions, text)
        ),
    }


def image_contexts(bundle: Bundle, engine: Engine, images: NDArray[np.uint8]) -> Float:
    """CLIP contexts (N, L, D) of images (N, H, W, 3)."""
    mean, std = (np.array(values, np.float32).reshape(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return _encode(
        bundle, engine, "clip_image", images, lambda batch, side: (_pixels(batch, side) - mean) / std
    )


def _encode(
    bundle: Bundle, engine: Engine, graph: str, values: NDArray[Any], prepare: Prepare | None = None
) -> Float:
    """Run a graph with a free batch axis over all values, a batch at a time; the last one is filled up.

    ``prepare`` turns a batch of values into the graph's input, given the size of its last axis.
    """
    session = engine.open(bundle.graph(graph), free=BATCH)
    source, output = session.graph.inputs[0], session.graph.outputs[0]
    result = np.empty((len(values), *output.sized(BATCH)[1:]), np.float32)
    for start in range(0, len(values), BATCH):
        batch = values[start : start + BATCH]
        count = len(batch)
        batch = np.concatenate([batch, np.repeat(batch[-1:], BATCH - count, axis=0)])
        session.write(source.name, batch if prepare is None else prepare(batch, source.sized(BATCH)[-1]))
        session.run()
        result[start : start + count] = session.read(output.name)[:count]
    return result


def _pixels(images: NDArray[np.uint8], side: int) -> Float:
    """Images (N, H, W, 3) → (N, 3, side, side) in [0, 1]."""
    if images.shape[1:3] != (side, side):
        resized = [Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC) for image in images]
        images = np.stack([np.asarray(image) for image in resized])
    return images.transpose(0, 3, 1, 2).astype(np.float32) / 255
