"""Fidelity: a bundle's graphs, run through an engine, against outputs recorded from the reference implementation.

A golden file is a safetensors file of named inputs and outputs (``component.what``). What the recorded flows need is
computed by the graphs a decode uses: predicted noise, for one, comes out of a step graph whose sampler row is set so
that "the next latent" is the noise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import Engine, Session
from unibrain_rt.errors import InputError
from unibrain_rt.presets import Preset
from unibrain_rt.samplers import COLUMNS, SamplerTable

Golden = Mapping[str, NDArray[Any]]
# Relative L2 errors: one pass through a graph in fp32, and the final latent of a whole sampling loop.
RTOL = 1e-4
LOOP_FACTOR = 10
# One wrong element in a large tensor hardly moves its norm; it stands out against the tensor's usual size.
ELEMENT_FACTOR = 10
CAPTION_TOKENS = 30
BOS_OFFSET, EOS_OFFSET = 2, 1
"""<BOS> and <EOS> are the last but one and the last id of Optimus' vocabulary."""


@dataclass(frozen=True)
class Row:
    """One compared tensor: relative L2 error, largest element error over the reference's RMS, and their limits."""

    name: str
    error: float
    limit: float
    element_error: float
    element_limit: float

    @property
    def ok(self) -> bool:
        """Whether both errors are within their limits; NaN is not."""
        return self.error <= self.limit and self.element_error <= self.element_limit


def load_golden(path: Path) -> Golden:
    """Read a golden file.

    Raises:
        InputError: it is missing, damaged, or holds no tensor that can be compared.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: not a readable safetensors file ({reason}); name the recorded outputs") from error


def verify(bundle: Bundle, golden: Golden, engine: Engine, rtol: float = RTOL) -> Iterator[Row]:
    """Compare everything in ``golden`` that this bundle can compute, yielding a row as soon as it is known.

    Args:
        rtol: limit of the relative L2 error of a single pass; a whole loop may reach ten times that.

    Raises:
        InputError: a tensor that a comparison needs is missing or of a shape that the bundle does not take, or the
            file holds tensors that no comparison covers.
    """
    checks = _Checks(bundle, golden, engine, rtol)
    yield from checks.run()


class _Checks:
    def __init__(self, bundle: Bundle, golden: Golden, engine: Engine, rtol: float) -> None:
        self._bundle, self._golden, self._engine, self._rtol = bundle, golden, engine, rtol
        self._used: set[str] = set()

    def run(self) -> Iterator[Row]:
        parts: dict[str, Callable[[], Iterator[Row]]] = {
            "clip.text.": self._clip_text,
            "clip.image.": self._clip_image,
            "autokl.": self._autokl,
            "optimus.encoder.": self._optimus_encoder,
            "optimus.decoder.": self._optimus_decoder,
            "unet.": self._unet,
            "ddim.": self._ddim,
        }
        for prefix, part in parts.items():
            if any(name.startswith(prefix) for name in self._golden):
                yield from part()
        left = sorted(set(self._golden) - self._used)
        if left:
            raise InputError(f"the golden file holds {', '.join(left[:5])}, which no comparison covers; is it of this version?")
        if not self._golden:
            raise InputError("the golden file is empty; name the recorded outputs of a checkpoint")

    def _take(self, name: str) -> NDArray[Any]:
        if name not in self._golden:
            raise InputError(f"the golden file has no {name}; record it again")
        self._used.add(name)
        return self._golden[name]

    def _row(self, name: str, computed: NDArray[Any], factor: float = 1.0) -> Row:
        reference = self._take(name).astype(np.float64)
        if reference.shape != computed.shape:
            raise InputError(
                f"{name} has shape {reference.shape} in the golden file, but this bundle gives {computed.shape}; "
                "verify a bundle with the outputs recorded from its own checkpoint"
            )
        difference = computed.astype(np.float64) - reference
        norm = float(np.linalg.norm(reference)) or 1.0
        rms = float(np.sqrt(np.mean(reference**2))) or 1.0
        limit = self._rtol * factor
        return Row(
            name,
            float(np.linalg.norm(difference)) / norm,
            limit,
            float(np.abs(difference).max()) / rms,
            limit * ELEMENT_FACTOR,
        )

    def _exact(self, name: str, computed: NDArray[Any]) -> Row:
        reference = self._take(name)
        same = reference.shape == computed.shape and bool((reference == computed).all())
        return Row(name, 0.0 if same else float("inf"), 0.0, 0.0 if same else float("inf"), 0.0)

    def _encode(self, graph: str, source: str, values: NDArray[Any]) -> NDArray[Any]:
        """Run a graph with a free batch axis on all of ``values``."""
        session = self._engine.open(self._bundle.graph(graph), free=len(values))
        spec = session.graph.inputs[0]
        wanted = spec.sized(len(values))
        if values.dtype.kind == "i" and values.ndim == 2 and values.shape[1] < wanted[1]:
            # Shorter captions than the graph takes are padded, with 0 as BERT's are.
            values = np.pad(values, ((0, 0), (0, wanted[1] - values.shape[1])))
        if values.shape != wanted:
            raise InputError(f"{source} has shape {values.shape}, but graph {graph} takes {wanted}; wrong golden file?")
        session.write(spec.name, values)
        session.run()
        return session.read(session.graph.outputs[0].name)

    def _clip_text(self) -> Iterator[Row]:
        ids = self._take("clip.text.input_ids")
        yield self._row("clip.text.context", self._encode("clip_text", "clip.text.input_ids", ids))

    def _clip_image(self) -> Iterator[Row]:
        pixels = self._take("clip.image.pixel_values")
        yield self._row("clip.image.context", self._encode("clip_image", "clip.image.pixel_values", pixels))

    def _autokl(self) -> Iterator[Row]:
        latent = self._encode("autokl_encode", "autokl.image", self._take("autokl.image"))
        scale = float(self._bundle.architecture["autokl"]["scale_factor"])
        yield self._row("autokl.posterior_mean", latent / scale)
        yield self._row("autokl.scaled_latent", latent)
        session = self._engine.open(self._bundle.graph("autokl_decode"))
        images = []
        for recorded in self._take("autokl.scaled_latent"):
            session.write("latent", recorded[None])
            session.run()
            images.append(session.read("image")[0])
        yield self._row("autokl.decoded_from_scaled_latent", np.stack(images))

    def _optimus_encoder(self) -> Iterator[Row]:
        ids = self._take("optimus.encoder.input_ids")
        latent = self._encode("optimus_encode", "optimus.encoder.input_ids", ids)
        yield self._row("optimus.encoder.latent_mean", latent)

    def _optimus_decoder(self) -> Iterator[Row]:
        session = self._engine.open(self._bundle.graph("optimus_decode"))
        latents, ids = self._take("optimus.decoder.latent"), self._take("optimus.decoder.input_ids")
        first, last, tokens = [], [], []
        for latent, row in zip(latents, ids, strict=True):
            logits = list(_feed(session, latent, row))
            first.append(logits[0])
            last.append(logits[-1])
            tokens.append(_greedy(session, latent))
        yield self._row("optimus.decoder.logits_first_position", np.stack(first))
        yield self._row("optimus.decoder.logits_last_position", np.stack(last))
        yield self._exact("optimus.decoder.greedy_tokens", np.stack(tokens))

    def _unet(self) -> Iterator[Row]:
        contexts = {flow: self._take(f"unet.context.{flow}") for flow in ("image", "text")}
        timesteps = self._take("unet.timesteps")
        for flow in ("image", "text"):
            latents = self._take(f"unet.{flow}.x")
            runner = _StepRunner(self._bundle, self._engine, flow, timesteps)
            prefix = f"unet.{flow}.eps."
            for name in sorted(name for name in self._golden if name.startswith(prefix)):
                ratio = _ratio(name.removeprefix(prefix))
                noise = []
                for sample, latent in enumerate(latents):
                    # Both guidance branches under the same context and no guidance: the noise of that context.
                    both = {key: np.repeat(value[sample : sample + 1], 2, axis=0) for key, value in contexts.items()}
                    runner.set_contexts(both)
                    noise.append(runner.predicted_noise(latent[None], sample, ratio)[0])
                yield self._row(name, np.stack(noise))

    def _ddim(self) -> Iterator[Row]:
        preset = self._bundle.presets.get("paper", Preset())
        table = preset.table(self._bundle.schedule, "image")
        yield self._exact("ddim.timesteps", np.sort(table.timesteps))
        nothing = {flow: self._take(f"ddim.uncond.{flow}") for flow in ("image", "text")}
        for flow in ("image", "text"):
            if f"ddim.{flow}.x0" not in self._golden:
                continue
            start, noise = self._take(f"ddim.{flow}.x0"), self._take(f"ddim.{flow}.noise")
            ratio = float(self._take(f"ddim.{flow}.image_ratio"))
            runner = _StepRunner(self._bundle, self._engine, flow, table.timesteps)
            conditional = {key: self._golden[f"unet.context.{key}"][:1] for key in nothing}
            runner.set_contexts({key: np.concatenate([nothing[key], conditional[key]]) for key in nothing})
            yield self._row(f"ddim.{flow}.output", runner.sample(table, start, noise, ratio), LOOP_FACTOR)


class _StepRunner:
    """A flow's step graph with its contexts and time modulations."""

    def __init__(self, bundle: Bundle, engine: Engine, flow: str, timesteps: NDArray[Any]) -> None:
        self._context = engine.open(bundle.graph("unet_context"))
        shared = {spec.name: self._context.buffer(spec.name) for spec in self._context.graph.outputs}
        self._step = engine.open(bundle.graph(f"unet_{flow}_step"), shared=shared)
        time = engine.open(bundle.graph("unet_time"), free=len(timesteps))
        time.write("timesteps", timesteps)
        time.run()
        self._modulation = time.read(f"{flow}_modulation")

    def set_contexts(self, contexts: Mapping[str, NDArray[Any]]) -> None:
        for name, value in contexts.items():
            self._context.write(f"{name}_context", value)
        self._context.run()

    def predicted_noise(self, latent: NDArray[Any], step: int, image_ratio: float) -> NDArray[Any]:
        row = {"guidance_scale": 1.0, "image_ratio": image_ratio, "x0_from_noise": 1.0, "next_from_x0": 1.0}
        self._write(latent, np.array([row.get(column, 0.0) for column in COLUMNS]), step)
        self._step.run()
        return self._step.read("next_latent")

    def sample(
        self, table: SamplerTable, start: NDArray[Any], noise: NDArray[Any], image_ratio: float
    ) -> NDArray[Any]:
        alpha = table.alpha_bar_start
        rows = table.coefficients.copy()
        rows[:, COLUMNS.index("image_ratio")] = image_ratio
        self._write(alpha**0.5 * start + (1 - alpha) ** 0.5 * noise, rows[0], 0)
        for step, row in enumerate(rows):
            self._step.write("coefficients", row.astype(np.float32))
            self._step.write("modulation", self._modulation[step][None])
            self._step.run()
        return self._step.read("next_latent")

    def _write(self, latent: NDArray[Any], row: NDArray[Any], step: int) -> None:
        wanted = self._step.graph.tensor("latent").sized(1)
        if latent.shape != wanted:
            raise InputError(f"a recorded latent has shape {latent.shape}, but this bundle takes {wanted}; wrong golden file?")
        self._step.write("latent", latent.astype(np.float32))
        self._step.write("previous_x0", 0.0)
        self._step.write("coefficients", row.astype(np.float32))
        self._step.write("modulation", self._modulation[step][None])


def _feed(session: Session, latent: NDArray[Any], ids: NDArray[Any]) -> Iterator[NDArray[Any]]:
    _restart(session, latent)
    for token in ids:
        session.write("token", int(token))
        session.run()
        yield session.read("logits")[0]


def _greedy(session: Session, latent: NDArray[Any]) -> NDArray[np.int64]:
    vocabulary = session.graph.tensor("logits").sized(1)[-1]
    tokens = [vocabulary - BOS_OFFSET]
    _restart(session, latent)
    while len(tokens) < CAPTION_TOKENS and tokens[-1] != vocabulary - EOS_OFFSET:
        session.write("token", tokens[-1])
        session.run()
        tokens.append(int(session.read("logits")[0].argmax()))
    return np.array(tokens + [-1] * (CAPTION_TOKENS - len(tokens)), dtype=np.int64)


def _restart(session: Session, latent: NDArray[Any]) -> None:
    session.write("latent", latent[None])
    session.write("position", 1)
    session.write("key_cache", 0.0)
    session.write("value_cache", 0.0)


def _ratio(what: str) -> float:
    """The weight of the image context that ``context_image``, ``context_text`` or ``dual_image_ratio_R`` means."""
    if what in ("context_image", "context_text"):
        return 1.0 if what == "context_image" else 0.0
    match = re.fullmatch(r"dual_image_ratio_([0-9.]+)", what)
    if match is None:
        raise InputError(f"the golden file holds {what}, which no comparison covers; is it of this version?")
    return float(match[1])
