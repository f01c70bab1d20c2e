"""Fidelity: a bundle's graphs, run through an engine, against recorded outputs of the reference.

A golden file is a safetensors file of named inputs and outputs (``component.what``). What the recorded flows
need is computed by the graphs a decode uses: predicted noise, for one, comes out of a step graph whose
sampler row is set so that "the next latent" is the noise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.bundle import MANIFEST, Bundle
from unibrain_rt.engines import Engine, EngineError, Session
from unibrain_rt.errors import InputError
from unibrain_rt.loops import DenoisingLoop
from unibrain_rt.manifest import Fields
from unibrain_rt.presets import Preset
from unibrain_rt.samplers import COLUMNS, SamplerTable
from unibrain_rt.tensor_file import map_tensors

Golden = Mapping[str, NDArray[Any]]
# Relative L2 errors: one pass through a graph in fp32, and the final latent of a whole sampling loop.
RTOL = 1e-4
# (A loop in fp32 is as exact as a pass; wider than this, and a wrong value of its contexts would not be seen.)
LOOP_FACTOR = 2
# One wrong element in a large tensor hardly moves its norm; it stands out against the tensor's usual size.
ELEMENT_FACTOR = 10
CAPTION_TOKENS = 30
_OTHER_CHECKPOINT = "verify a bundle with the outputs recorded from its own checkpoint"
BOS_OFFSET, EOS_OFFSET = 2, 1
"""<BOS> and <EOS> are the last but one and the last id of Optimus' vocabulary."""


@dataclass(frozen=True)
class Row:
    """One compared tensor: relative L2 error, largest error over the reference's RMS, and their limits."""

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
    if not path.is_file():  # a pipe would be waited for
        raise InputError(f"{path}: no such file; name the recorded outputs")
    try:
        return map_tensors(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: not a readable safetensors file ({error}); name the recorded outputs"
        ) from error


def verify(bundle: Bundle, golden: Golden, engine: Engine, rtol: float = RTOL) -> Iterator[Row]:
    """Compare everything in ``golden`` that this bundle can compute, yielding a row as soon as it is known.

    Args:
        rtol: limit of the relative L2 error of a single pass; a whole loop may reach twice that.

    Raises:
        InputError: a tensor that a comparison needs is missing or of a shape that the bundle does not take,
            or the file holds tensors that no comparison covers.
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
            names = ", ".join(left[:5])
            raise InputError(
                f"the golden file holds {names}, which no comparison covers; is it of this version?"
            )
        if not self._golden:
            raise InputError("the golden file is empty; name the recorded outputs of a checkpoint")

    def _take(self, name: str) -> NDArray[Any]:
        if name not in self._golden:
            raise InputError(f"the golden file has no {name}; record it again")
        self._used.add(name)
        return self._golden[name]

    def _given(self, name: str, shape: Sequence[int | None], kind: str = "f") -> NDArray[Any]:
        """A recorded input, of that shape (None is any size above 0) and kind of type, "f" or "i"."""
        array = self._take(name)
        fits = array.ndim == len(shape) and array.dtype.kind == kind
        if not fits or any(
            there < 1 or wanted not in (None, there) for there, wanted in zip(array.shape, shape, strict=True)
        ):
            sizes = " × ".join("N" if size is None else str(size) for size in shape) or "a single number"
            raise InputError(
                f"{name} is {array.dtype} {array.shape} in the golden file, but this bundle takes {sizes} "
                f"({'whole numbers' if kind == 'i' else 'floating point'}); {_OTHER_CHECKPOINT}"
            )
        return array

    def _shape(self, graph: str, tensor: str) -> tuple[int, ...]:
        """Shape of a graph's tensor without the first axis."""
        return self._bundle.graph(graph).tensor(tensor).sized(1)[1:]

    def _row(self, name: str, computed: NDArray[Any], factor: float = 1.0) -> Row:
        reference = self._take(name).astype(np.float64)
        if reference.shape != computed.shape:
            raise InputError(
                f"{name} has shape {reference.shape} in the golden file, "
                f"but this bundle gives {computed.shape}; {_OTHER_CHECKPOINT}"
            )
        limit = self._rtol * factor
        with np.errstate(all="ignore"):  # what is not finite is off
            difference = computed.astype(np.float64) - reference
            norm = float(np.linalg.norm(reference)) or 1.0
            rms = float(np.sqrt(np.mean(reference**2))) or 1.0
            error = float(np.linalg.norm(difference)) / norm
            element_error = float(np.abs(difference).max(initial=0.0)) / rms
        return Row(name, error, limit, element_error, limit * ELEMENT_FACTOR)

    def _exact(self, name: str, computed: NDArray[Any]) -> Row:
        reference = self._take(name)
        same = reference.shape == computed.shape and bool((reference == computed).all())
        return Row(name, 0.0 if same else float("inf"), 0.0, 0.0 if same else float("inf"), 0.0)

    def _encode(self, graph: str, values: NDArray[Any]) -> NDArray[Any]:
        """Run a graph with a free batch axis on all of ``values``."""
        session = self._engine.open(self._bundle.graph(graph), free=len(values))
        session.write(session.graph.inputs[0].name, values)
        _run(session, values)
        return session.read(session.graph.outputs[0].name)

    def _clip_text(self) -> Iterator[Row]:
        ids = self._given("clip.text.input_ids", (None, *self._shape("clip_text", "input_ids")), "i")
        yield self._row("clip.text.context", self._encode("clip_text", ids))

    def _clip_image(self) -> Iterator[Row]:
        pixels = self._given("clip.image.pixel_values", (None, *self._shape("clip_image", "pixel_values")))
        yield self._row("clip.image.context", self._encode("clip_image", pixels))

    def _autokl(self) -> Iterator[Row]:
        images = self._given("autokl.image", (None, *self._shape("autokl_encode", "image")))
        latent = self._encode("autokl_encode", images)
        sizes = Fields(self._bundle.architecture, f"{self._bundle.folder / MANIFEST}: architecture")
        scale = sizes.object("autokl").take("scale_factor", float)
        with np.errstate(all="ignore"):  # a scale of 0 is off
            yield self._row("autokl.posterior_mean", latent / np.float32(scale))
        yield self._row("autokl.scaled_latent", latent)
        session = self._engine.open(self._bundle.graph("autokl_decode"))
        decoded = []
        for recorded in self._given("autokl.scaled_latent", (None, *self._shape("autokl_decode", "latent"))):
            session.write("latent", recorded[None])
            session.run()
            decoded.append(session.read("image")[0])
        yield self._row("autokl.decoded_from_scaled_latent", np.stack(decoded))

    def _optimus_encoder(self) -> Iterator[Row]:
        ids = self._given("optimus.encoder.input_ids", (None, None), "i")
        # Shorter captions than the graph takes are padded, with 0 as BERT's are.
        missing = self._shape("optimus_encode", "input_ids")[0] - ids.shape[1]
        if missing < 0:
            raise InputError(f"optimus.encoder.input_ids has {-missing} tokens more than this bundle takes")
        padded = np.pad(ids, ((0, 0), (0, missing)))
        yield self._row("optimus.encoder.latent_mean", self._encode("optimus_encode", padded))

    def _optimus_decoder(self) -> Iterator[Row]:
        session = self._engine.open(self._bundle.graph("optimus_decode"))
        latents = self._given("optimus.decoder.latent", (None, *self._shape("optimus_decode", "latent")))
        ids = self._given("optimus.decoder.input_ids", (len(latents), None), "i")
        first, last, tokens = [], [], []
        for latent, row in zip(latents, ids, strict=True):
            logits = list(_feed(session, latent, row))
            first.append(logits[0])
            last.append(logits[-1])
            tokens.append(_greedy(session, latent))
        yield self._row("optimus.decoder.logits_first_position", np.stack(first))
        yield self._row("optimus.decoder.logits_last_position", np.stack(last))
        yield self._exact("optimus.decoder.greedy_tokens", np.stack(tokens))

    def _contexts(self, prefix: str, count: int | None) -> dict[str, NDArray[Any]]:
        return {
            flow: self._given(f"{prefix}.{flow}", (count, *self._shape("unet_context", f"{flow}_context")))
            for flow in ("image", "text")
        }

    def _unet(self) -> Iterator[Row]:
        timesteps = self._given("unet.timesteps", (None,), "i")
        contexts = self._contexts("unet.context", len(timesteps))
        for flow in ("image", "text"):
            latent_shape = self._shape(f"unet_{flow}_step", "latent")
            latents = self._given(f"unet.{flow}.x", (len(timesteps), *latent_shape))
            runner = _StepRunner(self._bundle, self._engine, flow, timesteps)
            prefix = f"unet.{flow}.eps."
            for name in sorted(name for name in self._golden if name.startswith(prefix)):
                ratio = _ratio(name.removeprefix(prefix))
                noise = []
                for sample, latent in enumerate(latents):
                    # Both guidance branches under one context and no guidance: the noise of that context.
                    one = slice(sample, sample + 1)
                    runner.set_contexts(
                        {key: np.repeat(value[one], 2, axis=0) for key, value in contexts.items()}
                    )
                    noise.append(runner.predicted_noise(latent[None], sample, ratio)[0])
                yield self._row(name, np.stack(noise))

    def _ddim(self) -> Iterator[Row]:
        preset = self._bundle.presets.get("paper", Preset())
        table = preset.table(self._bundle.schedule, "image")
        yield self._exact("ddim.timesteps", np.sort(table.timesteps))
        nothing = self._contexts("ddim.uncond", 1)
        contexts = self._contexts("unet.context", None)
        for flow in ("image", "text"):
            if f"ddim.{flow}.x0" not in self._golden:
                continue
            shape = (1, *self._shape(f"unet_{flow}_step", "latent"))
            start, noise = (self._given(f"ddim.{flow}.{what}", shape) for what in ("x0", "noise"))
            ratio = float(self._given(f"ddim.{flow}.image_ratio", ()))
            runner = _StepRunner(self._bundle, self._engine, flow, table.timesteps)
            runner.set_contexts({key: np.concatenate([nothing[key], contexts[key][:1]]) for key in nothing})
            yield self._row(f"ddim.{flow}.output", runner.sample(table, start, noise, ratio), LOOP_FACTOR)


class _StepRunner:
    """A flow's step graph with its contexts and time modulations."""

    def __init__(self, bundle: Bundle, engine: Engine, flow: str, timesteps: NDArray[Any]) -> None:
        self._engine = engine
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
        self._step.rewind()
        self._step.write("latent", latent)
        self._step.write("previous_x0", 0.0)
        self._step.write("coefficients", np.array([row.get(column, 0.0) for column in COLUMNS]))
        self._step.write("modulation", self._modulation[step][None])
        self._step.run()
        return self._step.read("next_latent")

    def sample(
        self, table: SamplerTable, start: NDArray[Any], noise: NDArray[Any], image_ratio: float
    ) -> NDArray[Any]:
        rows = table.coefficients.copy()
        rows[:, COLUMNS.index("image_ratio")] = image_ratio
        loop = DenoisingLoop(self._step, replace(table, coefficients=rows), self._modulation)
        loop.load(start, noise)
        program = self._engine.program([loop.call])
        program.start()
        program.finish()
        return loop.latent()


def _run(session: Session, ids: NDArray[Any]) -> None:
    """Run on recorded ids; those that the bundle's vocabulary does not have are the golden file's mistake."""
    try:
        session.run()
    except EngineError as error:
        if ids.dtype.kind != "i":
            raise
        raise InputError(
            f"the golden file holds ids that do not fit ({error}); {_OTHER_CHECKPOINT}"
        ) from error


def _feed(session: Session, latent: NDArray[Any], ids: NDArray[Any]) -> Iterator[NDArray[Any]]:
    _restart(session, latent)
    for token in ids:
        session.write("token", int(token))
        _run(session, ids)
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
    """Weight of the image context in ``context_image``, ``context_text`` or ``dual_image_ratio_R``."""
    if what in ("context_image", "context_text"):
        return 1.0 if what == "context_image" else 0.0
    match = re.fullmatch(r"dual_image_ratio_(\d+(?:\.\d+)?)", what)
    if match is None:
        raise InputError(f"the golden file holds {what}, which no comparison covers; is it of this version?")
    return float(match[1])
