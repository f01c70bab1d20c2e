"""What the ridge heads learn to predict: a stimulus' latents and contexts, by the bundle's own encoders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import Engine, GraphSpec
from unibrain_rt.errors import InputError
from unibrain_rt.export.bundles.tokenization import bert_ids, clip_ids
from unibrain_rt.export.subjects.datasets.dataset import resized
from unibrain_rt.export.subjects.pixels import CLIP_MEAN, CLIP_STD

Float = NDArray[np.float32]
BATCH = 16
#: Stimuli that are encoded at a time: their pictures are all that is held of the set.
BLOCK = 4 * BATCH
#: Pictures (n, side, side, 3) of the stimuli in a slice, at that side.
Pictures = Callable[[int, slice], NDArray[np.uint8]]


class Encoder:
    """A graph of one input and one output, opened once, that takes any number of rows."""

    def __init__(self, graph: GraphSpec, engine: Engine) -> None:
        self._session = engine.open(graph, free=BATCH)
        self._source, self._output = self._session.graph.inputs[0], self._session.graph.outputs[0]
        self.size = self._source.sized(BATCH)[-1]
        """Side of its pictures, or number of its tokens."""
        self.shape = self._output.sized(BATCH)[1:]
        """Shape of what one row becomes, for example (257, 768) of ``clip_image``."""

    def __call__(self, rows: NDArray[Any]) -> Float:
        """Encode rows (N, ...), a batch at a time; the last batch is filled up."""
        result = np.empty((len(rows), *self.shape), np.float32)
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            count = len(batch)
            batch = np.concatenate([batch, np.repeat(batch[-1:], BATCH - count, axis=0)])
            self._session.write(self._source.name, batch)
            self._session.run()
            result[start : start + count] = self._session.read(self._output.name)[:count]
        return result


class TargetEncoder:
    """A bundle's four encoders, open, and what they make of stimuli.

    Raises `InputError` when made if the bundle has no vocabularies.
    """

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        for name in ("clip", "bert"):
            if name not in bundle.tokenizers:
                raise InputError(
                    f"{bundle.folder}: no tokenizers/{name}; export the checkpoint with its vocabularies"
                )
        self._tokenizers = bundle.tokenizers
        graphs = {
            "image_latent": "autokl_encode",
            "text_latent": "optimus_encode",
            "image_context": "clip_image",
            "text_context": "clip_text",
        }
        self._encoders = {head: Encoder(bundle.graph(graph), engine) for head, graph in graphs.items()}
        self.shapes = {head: encoder.shape for head, encoder in self._encoders.items()}

    def blocks(
        self, pictures: Pictures, captions: Sequence[Sequence[str]], begin: int = 0
    ) -> Iterator[tuple[slice, dict[str, Float]]]:
        """The heads' targets of every stimulus from ``begin`` on, `BLOCK` at a time, with their slice of the stimuli.

        ``captions`` are one or more of each stimulus; where there are several, its text targets are their mean.
        """
        for start in range(begin, len(captions), BLOCK):
            part = slice(start, min(start + BLOCK, len(captions)))
            yield part, {**self._images(pictures, part), **self._texts(captions[part])}

    def _images(self, pictures: Pictures, part: slice) -> dict[str, Float]:
        latent, context = self._encoders["image_latent"], self._encoders["image_context"]
        seen = pictures(latent.size, part)
        small = seen if context.size == latent.size else pictures(context.size, part)
        return {"image_latent": latent(_pixels(seen)), "image_context": context(clip_input(small))}

    def _texts(self, captions: Sequence[Sequence[str]]) -> dict[str, Float]:
        said = [caption for several in captions for caption in several]
        counts = np.array([len(several) for several in captions])
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        targets: dict[str, Float] = {}
        for head, ids, name in (("text_latent", bert_ids, "bert"), ("text_context", clip_ids, "clip")):
            encoder = self._encoders[head]
            each = encoder(ids(self._tokenizers[name], said, encoder.size))
            scale = counts.reshape(-1, *[1] * len(encoder.shape)).astype(np.float32)
            targets[head] = np.asarray(np.add.reduceat(each, starts, axis=0) / scale, np.float32)
        return targets


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
    encoder = TargetEncoder(bundle, engine)
    targets = {head: np.empty((len(images), *shape), np.float32) for head, shape in encoder.shapes.items()}
    each = [(caption,) for caption in captions]
    for part, block in encoder.blocks(lambda side, rows: resized(images[rows], side), each):
        for head, values in block.items():
            targets[head][part] = values
    return targets


def clip_input(images: NDArray[np.uint8]) -> Float:
    """Images (N, side, side, 3) of CLIP's size → what its graph takes, (N, 3, side, side)."""
    mean, std = (np.array(values, np.float32).reshape(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (_pixels(images) - mean) / std


def _pixels(images: NDArray[np.uint8]) -> Float:
    """Images (N, H, W, 3) → (N, 3, H, W) in [0, 1]."""
    return images.transpose(0, 3, 1, 2).astype(np.float32) / 255
