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

from unibrain_rt import Bundle, Decoder
from unibrain_rt.benchmarks.quality.ablations import FULL, Variant
from unibrain_rt.engines import EngineError
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


class DecodingPool:
    """Worker processes that decode with one bundle, and stay for one call of ``decode`` after another.

    Use it in a ``with`` statement. The processes are started when they are first needed.
    """

    def __init__(
        self, bundle: Path, *, preset: str = "paper", engine: str = "auto", workers: int | None = None
    ) -> None:
        """``workers``: processes; by default one for each core this process may run on. 1 stays in this process."""
        self._settings = (bundle, preset, engine)
        self._count = workers or len(os.sched_getaffinity(0))
        self._pool: ProcessPoolExecutor | None = None
        self._own: Decoders | None = None

    def __enter__(self) -> DecodingPool:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def decode(
        self,
        subject: str | None,
        requests: Sequence[Request],
        report: Callable[[int, int], None] | None = None,
    ) -> list[Decoded]:
        """Decode every request, in their order; the result does not depend on the number of workers.

        Args:
            subject: whose scans they are; may be left out as in ``Decoder.open``.
            report: called with how many are done and how many there are.

        Raises:
            InputError, BundleError, EngineError: as ``Decoder`` does, or a worker was killed.
        """
        if self._count == 1 or len(requests) <= _CHUNK:
            return self._decode_here(subject, requests, report)
        if self._pool is None:
            # A forked copy of a process with threads may hang: workers start afresh.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(
                self._count, context, initializer=_start, initargs=self._settings
            )
        chunks = [requests[start : start + _CHUNK] for start in range(0, len(requests), _CHUNK)]
        try:
            futures = [self._pool.submit(_decode_chunk, subject, chunk) for chunk in chunks]
            _follow(futures, chunks, report)
        except BrokenProcessPool as error:
            raise EngineError(
                "a decoding process was killed, perhaps for memory; use fewer workers"
            ) from error
        return [decoded for future in futures for decoded in future.result()]

    def _decode_here(
        self,
        subject: str | None,
        requests: Sequence[Request],
        report: Callable[[int, int], None] | None,
    ) -> list[Decoded]:
        if self._own is None:
            self._own = Decoders(*self._settings, threads=None if self._count > 1 else 1)
        decoder = self._own.of(subject)
        results: list[Decoded] = []
        for request in requests:
            results.append(decoder.decode(request))
            if report is not None:
                report(len(results), len(requests))
        return results


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


class Decoders:
    """A decoder a subject, all on the same graphs in memory."""

    def __init__(self, bundle: Path, preset: str, engine: str, threads: int | None) -> None:
        self._bundle = Bundle.open(bundle)
        self._options: dict[str, Any] = {"preset": preset, "engine": engine, "threads": threads}
        self._first: Decoder | None = None
        self._by_subject: dict[str | None, VariantDecoder] = {}

    def of(self, subject: str | None) -> VariantDecoder:
        """Raises InputError, BundleError, EngineError."""
        if subject not in self._by_subject:
            if self._first is None:
                decoder = self._first = Decoder.open(self._bundle, subject=subject, **self._options)
            else:
                decoder = self._first.reading(self._bundle.subject(subject))
            self._by_subject[subject] = VariantDecoder(decoder)
        return self._by_subject[subject]


_worker: Decoders | None = None


def _start(bundle: Path, preset: str, engine: str) -> None:
    global _worker
    _worker = Decoders(bundle, preset, engine, threads=1)


def _decode_chunk(subject: str | None, requests: Sequence[Request]) -> list[Decoded]:
    assert _worker is not None
    decoder = _worker.of(subject)
    return [decoder.decode(request) for request in requests]
