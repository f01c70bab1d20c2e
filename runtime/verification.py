"""Fidelity: a bundle's graphs, run through an engine, against recorded outputs of the reference.

A golden file is a safetensors file of named inputs and outputs, such as ``clip.text.context``. What a decode runs is
run by the decoder's own parts, so that agreement vouches for decodes: `Sessions`, `DenoisingLoop`, `CaptionWriter`,
and, where a file has whole decodes (``decode.<preset>.<subject>.<what>``), `Decoder` itself. Predicted noise comes out
of a loop of one step whose sampler row makes "the next latent" the noise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.bundle import MANIFEST, Bundle
from unibrain_rt.captions import CaptionOptions
from unibrain_rt.decoder import Decoder
from unibrain_rt.engines import Call, Engine, EngineError, NotFiniteError
from unibrain_rt.errors import InputError
from unibrain_rt.flows import CONTEXTS, FLOWS, INPUTS, Flow
from unibrain_rt.heads import Float
from unibrain_rt.json_file import Fields
from unibrain_rt.loops import DenoisingLoop
from unibrain_rt.manifest import broken
from unibrain_rt.presets import Preset
from unibrain_rt.samplers import COLUMNS, SamplerTable
from unibrain_rt.sessions import Sessions, step_graph
from unibrain_rt.tensor_file import map_tensors

Golden = Mapping[str, NDArray[Any]]
# Relative L2 errors: one pass through a graph in fp32, and the final latent of a whole sampling loop.
RTOL = 1e-4
# (A loop in fp32 is as exact as a pass; wider than this, and a wrong value of its contexts would not be seen.)
LOOP_FACTOR = 2
# One wrong element in a large tensor hardly moves its norm; it stands out against the tensor's usual size.
ELEMENT_FACTOR = 10
# Pixels are rounded to 8 bits: some may be rounded to the neighbouring value, none further.
PIXEL_ERROR, PIXEL_STEP = 1e-3, 1.5
_OTHER_CHECKPOINT = "verify a bundle with the outputs recorded from its own checkpoint"


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
        self._sessions = Sessions(bundle, engine, CaptionOptions())

    def run(self) -> Iterator[Row]:
        parts: dict[str, Callable[[], Iterator[Row]]] = {
            "clip.text.": self._clip_text,
            "clip.image.": self._clip_image,
            "autokl.": self._autokl,
            "optimus.encoder.": self._optimus_encoder,
            "optimus.decoder.": self._optimus_decoder,
            "unet.": self._unet,
            "ddim.": self._ddim,
            "decode.": self._decodes,
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
        error, element_error = self._errors(name, computed)[:2]
        limit = self._rtol * factor
        return Row(name, error, limit, element_error, limit * ELEMENT_FACTOR)

    def _errors(self, name: str, computed: NDArray[Any]) -> tuple[float, float, float]:
        """Relative L2 error, largest error in units of the reference's RMS, and that RMS."""
        reference = self._take(name).astype(np.float64)
        if reference.shape != computed.shape:
            raise InputError(
                f"{name} has shape {reference.shape} in the golden file, "
                f"but this bundle gives {computed.shape}; {_OTHER_CHECKPOINT}"
            )
        with np.errstate(all="ignore"):  # what is not finite is off
            difference = computed.astype(np.float64) - reference
            norm = float(np.linalg.norm(reference)) or 1.0
            rms = float(np.sqrt(np.mean(reference**2))) or 1.0
            error = float(np.linalg.norm(difference)) / norm
            element_error = float(np.abs(difference).max(initial=0.0)) / rms
        return error, element_error, rms

    def _exact(self, name: str, computed: NDArray[Any]) -> Row:
        reference = self._take(name)
        same = reference.shape == computed.shape and bool((reference == computed).all())
        return Row(name, 0.0 if same else float("inf"), 0.0, 0.0 if same else float("inf"), 0.0)

    def _encode(self, graph: str, values: NDArray[Any]) -> NDArray[Any]:
        """Run a graph with a free batch axis on all of ``values``."""
        session = self._engine.open(self._bundle.graph(graph), free=len(values))
        session.write(session.graph.inputs[0].name, values)
        with _ids_of_the_file() if values.dtype.kind == "i" else nullcontext():
            session.run()
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
        sizes = Fields(self._bundle.architecture, f"{self._bundle.folder / MANIFEST}: architecture", broken)
        scale = sizes.object("autokl").take("scale_factor", float)
        with np.errstate(all="ignore"):  # a scale of 0 is off
            yield self._row("autokl.posterior_mean", latent / np.float32(scale))
        yield self._row("autokl.scaled_latent", latent)
        session = self._sessions.autokl
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
        writer = self._sessions.writer
        latents = self._given("optimus.decoder.latent", (None, *self._shape("optimus_decode", "latent")))
        ids = self._given("optimus.decoder.input_ids", (len(latents), None), "i")
        first, last, tokens = [], [], []
        for latent, row in zip(latents, ids, strict=True):
            with _ids_of_the_file():
                logits = list(writer.logits(latent[None], row))
            first.append(logits[0])
            last.append(logits[-1])
            tokens.append(self._greedy_tokens(latent[None]))
        yield self._row("optimus.decoder.logits_first_position", np.stack(first))
        yield self._row("optimus.decoder.logits_last_position", np.stack(last))
        yield self._exact("optimus.decoder.greedy_tokens", np.stack(tokens))

    def _greedy_tokens(self, latent: NDArray[Any]) -> NDArray[np.int64]:
        """A caption as golden files have it: -1 stands after its end."""
        tokens = np.full(CaptionOptions.max_tokens, -1, np.int64)
        with suppress(NotFiniteError):  # the logits' rows show it
            written = self._sessions.writer.tokens(latent, np.random.default_rng(0))
            tokens[: len(written)] = written
        return tokens

    def _contexts(self, prefix: str, count: int | None) -> dict[str, NDArray[Any]]:
        return {
            name: self._given(
                f"{prefix}.{name.removesuffix('_context')}", (count, *self._shape("unet_context", name))
            )
            for name in CONTEXTS
        }

    def _unet(self) -> Iterator[Row]:
        timesteps = self._given("unet.timesteps", (None,), "i")
        contexts = self._contexts("unet.context", len(timesteps))
        for flow in FLOWS:
            shape = self._shape(step_graph(flow), "latent")
            latents = self._given(f"unet.{flow}.x", (len(timesteps), *shape))
            prefix = f"unet.{flow}.eps."
            for name in sorted(name for name in self._golden if name.startswith(prefix)):
                ratio = _ratio(name.removeprefix(prefix))
                noise = []
                for sample, timestep in enumerate(timesteps):
                    # Both guidance branches under one context and no guidance: the noise of that context.
                    one = slice(sample, sample + 1)
                    same = {key: np.repeat(value[one], 2, axis=0) for key, value in contexts.items()}
                    noise.append(
                        self._denoised(flow, same, _one_prediction(timestep, ratio), latents[one])[0]
                    )
                yield self._row(name, np.stack(noise))

    def _ddim(self) -> Iterator[Row]:
        preset = self._bundle.presets.get("paper", Preset())
        unconditional = self._contexts("ddim.uncond", 1)
        contexts = self._contexts("unet.context", None)
        yield self._exact("ddim.timesteps", np.sort(preset.table(self._bundle.schedule, "image").timesteps))
        for flow in FLOWS:
            if f"ddim.{flow}.x0" not in self._golden:
                continue
            shape = (1, *self._shape(step_graph(flow), "latent"))
            start, noise = (self._given(f"ddim.{flow}.{what}", shape) for what in ("x0", "noise"))
            ratio = float(self._given(f"ddim.{flow}.image_ratio", ()))
            if not 0.0 <= ratio <= 1.0:
                raise InputError(
                    f"ddim.{flow}.image_ratio is {ratio:g} in the golden file, not a share from 0 to 1"
                )
            table = replace(preset, image_ratio=ratio, caption_image_ratio=ratio).table(
                self._bundle.schedule, flow
            )
            guiding = {key: np.concatenate([unconditional[key], contexts[key][:1]]) for key in contexts}
            yield self._row(
                f"ddim.{flow}.output", self._denoised(flow, guiding, table, start, noise), LOOP_FACTOR
            )

    def _denoised(
        self,
        flow: Flow,
        contexts: Mapping[str, NDArray[Any]],
        table: SamplerTable,
        start: NDArray[Any],
        noise: Float | float = 0.0,
    ) -> NDArray[Any]:
        """What a flow's loop makes of ``start`` under contexts (2, L, D), the first of them unconditional."""
        step = self._sessions.steps[flow]
        loop = DenoisingLoop(step, table, self._sessions.modulations({flow: table})[flow])
        for name, value in contexts.items():
            self._sessions.context.write(name, value)
        loop.load(start, noise)
        program = self._engine.program([Call(self._sessions.context), loop.call("loop")])
        program.start()
        program.finish()
        return loop.latent()

    def _decodes(self) -> Iterator[Row]:
        """Every ``decode.<preset>.<subject>.voxels`` (voxels,), and what is recorded of its decode."""
        for name in sorted(name for name in self._golden if re.fullmatch(r"decode\.[^.]+\..+\.voxels", name)):
            prefix = name.removesuffix("voxels")
            preset, subject = prefix.removeprefix("decode.").removesuffix(".").split(".", 1)
            voxels = self._given(name, (None,))
            seed = int(self._given(f"{prefix}seed", (), "i"))
            decoder = Decoder(
                self._bundle, self._bundle.subject(subject), self._engine, preset, CaptionOptions()
            )
            result = decoder.decode(voxels, seed=seed)
            for head in INPUTS:
                yield self._row(f"{prefix}{head}", result.predictions[head])
            for flow, latent in result.latents.items():
                yield self._row(f"{prefix}denoised_{flow}_latent", latent, LOOP_FACTOR)
            error, element_error, rms = self._errors(f"{prefix}image", result.image)
            yield Row(f"{prefix}image", error, PIXEL_ERROR, element_error, PIXEL_STEP / rms)
            if result.caption is not None:
                yield self._exact(f"{prefix}tokens", np.array(result.tokens))
                yield self._exact(f"{prefix}caption", np.frombuffer(result.caption.encode(), np.uint8))


def _one_prediction(timestep: int, image_ratio: float) -> SamplerTable:
    """A table of one row: begin with the latent as it is, and end with the noise that is predicted of it."""
    row = {"guidance_scale": 1.0, "image_ratio": image_ratio, "x0_from_noise": 1.0, "next_from_x0": 1.0}
    coefficients = np.array([[row.get(column, 0.0) for column in COLUMNS]])
    return SamplerTable(np.array([timestep]), int(timestep), 1.0, 1, coefficients)


@contextmanager
def _ids_of_the_file() -> Iterator[None]:
    """Run on recorded ids; those that the bundle's vocabulary does not have are the golden file's mistake."""
    try:
        yield
    except EngineError as error:
        raise InputError(
            f"the golden file holds ids that do not fit ({error}); {_OTHER_CHECKPOINT}"
        ) from error


def _ratio(what: str) -> float:
    """Weight of the image context in ``context_image``, ``context_text`` or ``dual_image_ratio_R``."""
    if what in ("context_image", "context_text"):
        return 1.0 if what == "context_image" else 0.0
    match = re.fullmatch(r"dual_image_ratio_(\d+(?:\.\d+)?)", what)
    if match is None:
        raise InputError(f"the golden file holds {what}, which no comparison covers; is it of this version?")
    return float(match[1])
