"""The ridge heads as the beginning of a decode: on the host or on the engine's device, behind one interface.

What a decode takes of them has the names of the ridge graph's outputs (`unibrain_rt.ridge_graph`): of both flows
``<flow>_latent``, ``noised_<flow>_latent`` and ``guiding_<flow>_context``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.engines import Call, Session
from unibrain_rt.flows import Flow
from unibrain_rt.subject import Subject

Float = NDArray[np.float32]


class Heads(ABC):
    """One subject's heads. ``calls`` are what a program runs before it uses what they give."""

    calls: tuple[Call, ...] = ()

    @abstractmethod
    def begin(self, betas: NDArray[Any], noise: Mapping[Flow, Float]) -> None:
        """Take a scan, betas (V,), and the noise of each flow, shaped as its latent.

        Raises:
            InputError: the betas are not this subject's, or are far from any that a scan gives.
            BundleError: a head is damaged.
        """

    def source(self, output: str) -> tuple[Session, str] | None:
        """Where a later call reads ``output``; None where the host has it (`output`) and writes it to the call."""
        return None

    @abstractmethod
    def output(self, name: str) -> Float:
        """What the heads made of the scan, on the host."""

    @abstractmethod
    def predictions(self) -> dict[str, Float]:
        """The latents and contexts of the scan, without a batch axis, once `calls` have run.

        Raises:
            InputError: something is not finite, and the betas are far from the subject's.
            BundleError: something is not finite, and the heads are at fault.
        """


class HostHeads(Heads):
    """Heads that numpy applies."""

    def __init__(
        self, subject: Subject, unconditional: Mapping[str, Float], start_coefficients: Mapping[Flow, Float]
    ) -> None:
        """``unconditional``: both contexts (1, L, D); ``start_coefficients``: of each flow (2,), signal and noise."""
        self._subject, self._unconditional = subject, unconditional
        self._start_coefficients = start_coefficients
        self._predictions: dict[str, Float] = {}
        self._noise: Mapping[Flow, Float] = {}

    def begin(self, betas: NDArray[Any], noise: Mapping[Flow, Float]) -> None:
        self._predictions = {name: head[0] for name, head in self._subject.predict(betas).items()}
        self._noise = noise

    def output(self, name: str) -> Float:
        if name.startswith("guiding_"):
            context = name.removeprefix("guiding_")
            return np.concatenate([self._unconditional[context], self._predictions[context][None]])
        if not name.startswith("noised_"):
            return self._predictions[name][None]
        start = self._predictions[name.removeprefix("noised_")][None]
        flow: Flow = "image" if name == "noised_image_latent" else "text"
        signal, spread = self._start_coefficients[flow]
        noised: Float = signal * start + spread * self._noise[flow]
        return noised

    def predictions(self) -> dict[str, Float]:
        return self._predictions


class DeviceHeads(Heads):
    """Heads that the engine applies: voxels and noise go to its device, and what comes of them stays there."""

    def __init__(self, subject: Subject, session: Session, start_coefficients: Mapping[Flow, Float]) -> None:
        """``session`` is that of the subject's graph, with the unconditional contexts written to it."""
        self._subject, self._session = subject, session
        tables = {f"{flow}_start_coefficients": row[None] for flow, row in start_coefficients.items()}
        self.calls = (Call(session, tables=tables, counted=False, name="ridge"),)
        self._z: Float = np.zeros((1, 0), np.float32)

    def begin(self, betas: NDArray[Any], noise: Mapping[Flow, Float]) -> None:
        self._z = self._subject.z_scores(betas)
        self._session.write("voxels", self._z)
        for flow, values in noise.items():
            self._session.write(f"{flow}_noise", values)

    def source(self, output: str) -> tuple[Session, str] | None:
        return self._session, output

    def output(self, name: str) -> Float:
        return self._session.read(name)

    def predictions(self) -> dict[str, Float]:
        predictions = {}
        for name in self._subject.heads:
            context = name.endswith("_context")
            values = self.output(f"guiding_{name}" if context else name)[-1:]
            self._subject.check_prediction(name, self._z, values)
            predictions[name] = values[0]
        return predictions
