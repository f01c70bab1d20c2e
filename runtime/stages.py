"""The stages of a decode as two programs: from voxels to a picture, and from a text latent to another.

With all inputs in use, where the engine has a device and the subject a graph for it:

    image program:  ridge ─▶ context ─▶ image loop ─▶ AutoKL
    text program:      └────────┴─────▶ text loop

Heads that the host applies stand before the programs instead of in them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.engines import Call, NotFiniteError, Progress, Session
from unibrain_rt.flows import CONTEXTS, FLOWS, Flow
from unibrain_rt.heads import Float
from unibrain_rt.presets import Preset
from unibrain_rt.samplers import seeded_noise
from unibrain_rt.sessions import Sessions, step_graph
from unibrain_rt.subject import Subject


@dataclass(frozen=True, eq=False)
class _Entrance:
    """An input of a session that the host writes for every scan: a constant, or an output of the heads."""

    session: Session
    name: str
    output: str
    constant: Float | None = None


class Stages:
    """What a decode runs with one preset, one subject's heads and some of the inputs that they give.

    A context that is not used is replaced by the unconditional one. A latent that is not used leaves its flow to start
    from noise alone. Without a context there is nothing to denoise by: predicted latents go straight to their decoders,
    and ``loops`` is empty.
    """

    def __init__(self, sessions: Sessions, subject: Subject, preset: Preset, inputs: Collection[str]) -> None:
        """Raises BundleError, EngineError."""
        self._sessions, self._inputs = sessions, inputs
        self.loops = sessions.loops(preset, inputs) if set(CONTEXTS) & set(inputs) else {}
        self.heads = sessions.heads(subject, {flow: self._start_coefficients(flow) for flow in self.loops})
        self._entrances: list[_Entrance] = []
        program = sessions.engine.program
        self._image = program(self._image_calls())
        self._text = program([self._loop("text")]) if "text" in self.loops else None

    @property
    def in_fp32(self) -> frozenset[str]:
        """The graphs that compute in fp32 instead of half precision."""
        return self._sessions.in_fp32

    @property
    def milliseconds(self) -> dict[str, float]:
        """How long each stage of the last scan took."""
        return {**self._image.milliseconds, **({} if self._text is None else self._text.milliseconds)}

    def begin(self, betas: NDArray[Any], seed: int) -> None:
        """Give the graphs one scan, betas (V,), and the noise of ``seed``. Raises InputError, BundleError."""
        self.heads.begin(
            betas,
            {flow: seeded_noise(seed, FLOWS.index(flow), loop.shape) for flow, loop in self.loops.items()},
        )
        for loop in self.loops.values():
            loop.rewind()
        for entrance in self._entrances:
            value = self.heads.output(entrance.output) if entrance.constant is None else entrance.constant
            entrance.session.write(entrance.name, value)

    @contextmanager
    def running(self, progress: Progress | None) -> Iterator[None]:
        """Run both flows. Nothing is under way any more when this ends, however it ends. Raises EngineError."""
        try:
            # Both are begun before either is awaited: an engine may run them at the same time.
            self._image.start(progress)
            if self._text is not None:
                self._text.start(progress)
            yield
        finally:
            try:
                if self._text is not None:
                    self._text.finish()
            finally:
                self._image.finish()

    def text_latent(self) -> Float:
        """What the text flow ended with, (1, D), as soon as it has. Raises EngineError."""
        if self._text is None:
            self._image.finish()  # the heads are among its calls
            return self.heads.output("text_latent")
        self._text.finish()
        return self._denoised("text")

    def write(self, latent: Float, rng: np.random.Generator) -> tuple[str, list[int]]:
        """The caption, and its tokens, of a text latent (1, D). Raises NotFiniteError."""
        writer = self._sessions.writer
        tokens = writer.tokens(latent, rng)
        return writer.caption(tokens), tokens

    def image_latent(self) -> Float:
        """What the image flow ended with, (1, C, h, w), after `running`. Raises NotFiniteError."""
        return self._denoised("image") if self.loops else self.heads.output("image_latent")

    def picture(self) -> NDArray[np.uint8]:
        """The picture (H, W, 3), after `running`. Raises NotFiniteError."""
        image = self._sessions.autokl.read("image")[0]
        if not np.isfinite(image).all():
            raise NotFiniteError("the image decoder", "autokl_decode")
        pixels: NDArray[np.uint8] = np.round(image.transpose(1, 2, 0).clip(0, 1) * 255).astype(np.uint8)
        return pixels

    def _denoised(self, flow: Flow) -> Float:
        latent = self.loops[flow].latent()
        if not np.isfinite(latent).all():
            raise NotFiniteError(f"the {flow} loop", "unet_context", "unet_time", step_graph(flow))
        return latent

    def _start_coefficients(self, flow: Flow) -> Float:
        signal, spread = self.loops[flow].start_coefficients
        return np.array([signal if f"{flow}_latent" in self._inputs else 0.0, spread], np.float32)

    def _image_calls(self) -> list[Call]:
        calls = [*self.heads.calls]
        autokl = self._sessions.autokl
        if not self.loops:
            taken = self._taken(autokl, "latent", "image_latent")
            return [*calls, Call(autokl, takes=taken, counted=False, name="autokl")]
        context = self._sessions.context
        taken = {}
        for name in CONTEXTS:
            if name in self._inputs:
                taken |= self._taken(context, name, f"guiding_{name}")
            else:
                # A context of weight 0 would still cost a rounding: it is not given at all.
                twice = np.concatenate([self._sessions.unconditional[name]] * 2)
                self._entrances.append(_Entrance(context, name, "", twice))
        calls.append(Call(context, takes=taken, counted=False, name="context"))
        calls.append(self._loop("image"))
        latent = (self._sessions.steps["image"], "next_latent")
        return [*calls, Call(autokl, takes={"latent": latent}, counted=False, name="autokl")]

    def _loop(self, flow: Flow) -> Call:
        session = self._sessions.steps[flow]
        return self.loops[flow].call(f"{flow}_loop", self._taken(session, "latent", f"noised_{flow}_latent"))

    def _taken(self, session: Session, name: str, output: str) -> dict[str, tuple[Session, str]]:
        """An output of the heads as a call takes it; where the host has it, nothing, and `begin` writes it."""
        source = self.heads.source(output)
        if source is None:
            self._entrances.append(_Entrance(session, name, output))
            return {}
        return {name: source}
