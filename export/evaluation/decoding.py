"""Many decodes at once: worker processes of one thread each, which small graphs use better than many threads."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt import Decoder
from unibrain_rt.engines import EngineError
from unibrain_rt.export.evaluation.variants import FULL, Variant
from unibrain_rt.presets import Flow

Float = NDArray[np.float32]
BOTH: tuple[Flow, ...] = ("image", "caption")
_CHUNK = 8  # requests a worker takes at a time


@dataclass(frozen=True, eq=False)
class Request:
    """One decode of betas (voxels,) in % signal change."""

    voxels: Float
    variant: Variant = FULL
    seed: int = 0
    flows: tuple[Flow, ...] = BOTH


@dataclass(frozen=True, eq=False)
class Decoded:
    """What a request gave: image (H, W, 3) and caption, None where they were not asked for."""

    image: NDArray[np.uint8] | None
    caption: str | None

    @property
    def picture(self) -> NDArray[np.uint8]:
        """The image of a request that asked for one."""
        assert self.image is not None
        return self.image


class VariantDecoder:
    """A decoder that can leave things out; loops of every variant are made once."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._preset = decoder.bundle.preset(decoder.preset_name)
        self._variants: dict[Variant, Decoder] = {}

    def decode(self, request: Request) -> Decoded:
        variant = request.variant
        if variant not in self._variants:
            self._variants[variant] = self._decoder.sampling(self._preset_of(variant), variant.name)
        decoder = self._variants[variant]
        predictions = decoder.predict(request.voxels)
        if variant.denoised:
            # A context of weight 0 still costs a rounding: it is not given at all.
            used = {"image_context": variant.image_context, "text_context": variant.text_context}
            nothing = decoder.unconditional
            decoder.guide({name: (predictions if use else nothing)[name] for name, use in used.items()})

        def latent(flow: Flow, head: str) -> Float:
            if not variant.denoised:
                return predictions[head][None]
            start = predictions[head] if variant.latent else np.zeros_like(predictions[head])
            return decoder.denoise(flow, start, request.seed)

        image, caption = None, None
        if "image" in request.flows:
            image = decoder.render(latent("image", "image_latent"))
        if "caption" in request.flows and decoder.bundle.has_captions:
            caption, _ = decoder.describe(latent("caption", "text_latent"), request.seed)
        return Decoded(image, caption)

    def _preset_of(self, variant: Variant) -> Any:
        return variant.preset(self._preset)


def decode_all(
    bundle: Path,
    subject: str | None,
    requests: Sequence[Request],
    *,
    preset: str = "paper",
    engine: str = "auto",
    workers: int | None = None,
    report: Callable[[int, int], None] | None = None,
) -> list[Decoded]:
    """Decode every request, in their order; the result does not depend on the number of workers.

    Args:
        workers: processes; by default one for each core this process may run on. 1 stays in this process.
        report: called with how many are done and how many there are.

    Raises:
        InputError, BundleError, EngineError: as ``Decoder`` does, or a worker was killed.
    """
    count = workers or len(os.sched_getaffinity(0))
    settings = (bundle, subject, preset, engine)
    results: list[Decoded] = []
    if count == 1 or len(requests) <= _CHUNK:
        decoder = _open(*settings, threads=None if count > 1 else 1)
        for request in requests:
            results.append(decoder.decode(request))
            if report is not None:
                report(len(results), len(requests))
        return results
    chunks = [requests[start : start + _CHUNK] for start in range(0, len(requests), _CHUNK)]
    # A forked copy of a process with threads may hang: workers start afresh.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, context, initializer=_start, initargs=settings) as pool:
        futures = [pool.submit(_decode_chunk, chunk) for chunk in chunks]
        try:
            _follow(futures, chunks, report)
        except BrokenProcessPool as error:
            raise EngineError(
                "a decoding process was killed, perhaps for memory; use fewer workers"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        return [decoded for future in futures for decoded in future.result()]


def _follow(
    futures: Sequence[Future[list[Decoded]]],
    chunks: Sequence[Sequence[Request]],
    report: Callable[[int, int], None] | None,
) -> None:
    sizes: Mapping[Any, int] = {future: len(chunk) for future, chunk in zip(futures, chunks, strict=True)}
    done = 0
    for future in as_completed(futures):
        future.result()
        done += sizes[future]
        if report is not None:
            report(done, sum(sizes.values()))


def _open(bundle: Path, subject: str | None, preset: str, engine: str, threads: int | None) -> VariantDecoder:
    return VariantDecoder(
        Decoder.open(bundle, subject=subject, preset=preset, engine=engine, threads=threads)
    )


_worker: VariantDecoder | None = None


def _start(bundle: Path, subject: str | None, preset: str, engine: str) -> None:
    global _worker
    _worker = _open(bundle, subject, preset, engine, threads=1)


def _decode_chunk(requests: Sequence[Request]) -> list[Decoded]:
    assert _worker is not None
    return [_worker.decode(request) for request in requests]
