"""Many decodes behind one interface: requests go in, results come out in their order, wherever they are made.

A `LocalPool` decodes in this process, a `ProcessPool` in several. What is asked and answered are `Request` and
`Reconstruction`: arrays, numbers and names, which any other transport can carry, too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from numpy.typing import NDArray

from unibrain_rt.decoder import Decoder
from unibrain_rt.errors import InputError
from unibrain_rt.flows import INPUTS
from unibrain_rt.reconstruction import Reconstruction

Result: TypeAlias = "Reconstruction | InputError"
"""A request that cannot be decoded has the error as its result; the others go on."""
StepProgress: TypeAlias = Callable[[int, int], None]
"""Called with the number of denoising steps just done, and how many the whole decode has."""


@dataclass(frozen=True, eq=False)
class Request:
    """One decode, as `Decoder.decode` takes it.

    Attributes:
        voxels: betas (voxels,) in % signal change.
        subject: whose scan it is; None is the subject that the pool was opened for.
        seed: of the noise.
        inputs: which of the four predictions are used.
    """

    voxels: NDArray[Any]
    subject: str | None = None
    seed: int = 0
    inputs: tuple[str, ...] = INPUTS


class DecoderPool(ABC):
    """Decodes requests. Use it in a ``with`` statement, at whose end nothing that it started is left running."""

    @abstractmethod
    def decode(self, requests: Iterable[Request], progress: StepProgress | None = None) -> Iterator[Result]:
        """Decode every request and give the results one by one, in the order of the requests.

        Requests are taken when they are needed and results are given when they are there, a few at a time, so that
        any number of either fits in memory. A result depends on its request alone, not on how many processes or
        threads there are. A pool has one such stream at a time; one that is left before its end is given up.

        Args:
            requests: any number of them; an iterator may make each when it is taken.
            progress: told of the steps of the request that was taken last, by pools that decode in this process.

        Raises:
            InputError: the bundle does not have what the pool was opened for.
            BundleError, EngineError: as `Decoder.open` and `Decoder.decode`, or a process was killed.
        """

    def close(self) -> None:  # noqa: B027 - a pool may have nothing to end
        """End what was started. What is under way is given up."""

    def __enter__(self) -> DecoderPool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class LocalPool(DecoderPool):
    """Decodes in this process, one request after another."""

    def __init__(self, opened: Callable[[], Decoder]) -> None:
        """``opened`` gives the decoder, at the first request. Other subjects are read on its graphs in memory."""
        self._open = opened
        self._decoders: dict[str | None, Decoder] = {}

    def decode(self, requests: Iterable[Request], progress: StepProgress | None = None) -> Iterator[Result]:
        return (self.answer(request, progress) for request in requests)

    def answer(self, request: Request, progress: StepProgress | None = None) -> Result:
        """The result of one request."""
        if not self._decoders:
            first = self._open()
            self._decoders = {None: first, first.subject.name: first}
        try:
            decoder = self._decoder_of(request.subject)
            steps = decoder.steps
            return decoder.decode(
                request.voxels,
                seed=request.seed,
                inputs=request.inputs,
                progress=None if progress is None else lambda done: progress(done, steps),
            )
        except InputError as error:
            return error

    def _decoder_of(self, subject: str | None) -> Decoder:
        if subject not in self._decoders:
            first = self._decoders[None]
            self._decoders[subject] = first.reading(first.bundle.subject(subject))
        return self._decoders[subject]
