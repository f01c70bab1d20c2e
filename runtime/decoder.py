"""From voxels to an image and a caption: the main flow, one line a stage."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.bundle import Bundle
from unibrain_rt.captions import CaptionOptions, Detokenizer
from unibrain_rt.engines import Engine, EngineError, Session, create_engine
from unibrain_rt.errors import BundleError, InputError
from unibrain_rt.loops import CaptionWriter, DenoisingLoop, Float, Progress, check_feedback, shape_of
from unibrain_rt.presets import Flow, Preset
from unibrain_rt.samplers import SamplerTable, seeded_noise
from unibrain_rt.subject import Subject

_FLOW_NAME: dict[Flow, str] = {"image": "image", "caption": "text"}
"""What a flow is called in graphs and tensors."""
NOISE_STREAM: dict[Flow, int] = {"image": 0, "caption": 1}
CAPTION_STREAM = 2
STEP_INPUTS = frozenset({"latent", "previous_x0", "modulation", "coefficients"})
STEP_FEEDBACK = {"next_latent": "latent", "x0": "previous_x0"}


@dataclass(frozen=True)
class Reconstruction:
    """What one scan decodes to.

    ``image`` is uint8 (H, W, 3); ``caption`` is None where the bundle cannot write captions. ``timings_ms`` is wall
    time per stage. ``predictions`` are the latents and contexts that the ridge heads gave, without a batch axis.
    """

    image: NDArray[np.uint8]
    caption: str | None
    seed: int
    preset: str
    engine: str
    bundle: str
    subject: str
    timings_ms: dict[str, float]
    predictions: dict[str, Float]
    tokens: tuple[int, ...]

    def record(self) -> dict[str, Any]:
        """What is written beside the picture as JSON."""
        return {
            "caption": self.caption,
            "seed": self.seed,
            "preset": self.preset,
            "engine": self.engine,
            "bundle": self.bundle,
            "subject": self.subject,
            "image_size": [self.image.shape[1], self.image.shape[0]],
            "timings_ms": {stage: round(value, 3) for stage, value in self.timings_ms.items()},
        }


class Decoder:
    """A bundle's graphs, loaded once, and a subject's ridge heads: decodes any number of scans."""

    def __init__(
        self, bundle: Bundle, subject: Subject, engine: Engine, preset_name: str, captions: CaptionOptions
    ) -> None:
        self.bundle, self.subject, self.engine = bundle, subject, engine
        self.preset_name = preset_name
        self._context = engine.open(bundle.graph("unet_context"))
        self._unconditional = dict(
            zip(("image_context", "text_context"), bundle.unconditional_contexts(), strict=True)
        )
        self._steps = self._open_steps()
        self._loops = self._make_loops(bundle.preset(preset_name))
        self._autokl = engine.open(bundle.graph("autokl_decode"))
        if shape_of(self._autokl.graph, "image", 4)[:2] != (1, 3):
            raise BundleError(
                "graph autokl_decode: does not give one picture of 3 colours; export the bundle again"
            )
        self._writer = None
        if bundle.has_captions:
            detokenizer = Detokenizer.load(bundle.tokenizers["gpt2"])
            self._writer = CaptionWriter(engine.open(bundle.graph("optimus_decode")), detokenizer, captions)
        self._check_heads()

    @classmethod
    def open(
        cls,
        bundle: str | Path | Bundle | None = None,
        *,
        subject: str | None = None,
        preset: str = "paper",
        engine: str = "auto",
        threads: int | None = None,
        captions: CaptionOptions | None = None,
    ) -> Decoder:
        """Load everything a decode needs.

        Args:
            bundle: a bundle or its folder; by default the phantom shipped with this package.
            subject: whose ridge heads; may be left out where the bundle has one subject.
            preset: a preset of the bundle, such as ``paper``, ``fast`` or ``realtime``.
            engine: a back end, or ``auto``.
            threads: cores to use; by default all that this process may run on.
            captions: how tokens are chosen; by default the likeliest.

        Raises:
            InputError: a name that the bundle does not have.
            BundleError: the bundle is damaged.
            EngineError: the back end cannot be used.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        opened.preset(preset)
        chosen = opened.subject(subject)
        return cls(opened, chosen, create_engine(engine, threads), preset, captions or CaptionOptions())

    @property
    def steps(self) -> int:
        """Denoising steps of one scan, both flows together; what a progress bar counts."""
        return sum(len(loop) for loop in self._loops.values())

    @property
    def unconditional(self) -> dict[str, Float]:
        """The contexts, without a batch axis, of the black image and of the empty caption."""
        return {name: nothing[0] for name, nothing in self._unconditional.items()}

    def sampling(self, preset: Preset, name: str) -> Decoder:
        """This decoder with other sampler settings, called ``name``.

        Both have the same graphs in the same memory: let one finish a scan before the other begins.
        """
        other = copy.copy(self)
        other.preset_name, other._loops = name, self._make_loops(preset)
        return other

    def decode(
        self, voxels: NDArray[Any], *, seed: int = 0, progress: Progress | None = None
    ) -> Reconstruction:
        """Decode one scan.

        The result depends on the scan, the seed, the preset and the bundle alone: a scan decodes the same by itself
        as among a thousand.

        Args:
            voxels: betas (voxels,) in % signal change, in the order of the subject's mask.
            seed: of the noise and of sampled captions.

        Raises:
            InputError: the voxels do not fit the subject or are not finite.
            EngineError: a graph gave numbers that are not finite.
        """
        clock = _Clock()
        with clock("ridge"):
            predictions = self.predict(voxels)
        with clock("context"):
            self.guide(predictions)
        with clock("image_loop"):
            image_latent = self.denoise("image", predictions["image_latent"], seed, progress)
        with clock("autokl"):
            image = self.render(image_latent)
        caption: str | None = None
        tokens: list[int] = []
        if self._writer is not None:
            with clock("caption_loop"):
                text_latent = self.denoise("caption", predictions["text_latent"], seed, progress)
            with clock("caption"):
                caption, tokens = self.describe(text_latent, seed)
        return Reconstruction(
            image=image,
            caption=caption,
            seed=seed,
            preset=self.preset_name,
            engine=self.engine.name,
            bundle=self.bundle.name,
            subject=self.subject.name,
            timings_ms=clock.finished(),
            predictions=predictions,
            tokens=tuple(tokens),
        )

    def predict(self, voxels: NDArray[Any]) -> dict[str, Float]:
        """The ridge heads' latents and contexts, without a batch axis, of betas (voxels,); see ``decode``."""
        betas = np.asarray(voxels)
        if betas.ndim != 1:
            raise InputError(
                f"voxels must be one scan, (voxels,), found shape {betas.shape}; decode scans one by one"
            )
        if betas.dtype.kind != "f":
            problem = f"voxels must be floating point, in % signal change, not {betas.dtype}"
            raise InputError(f"{problem}; scale stored integers first, as unibrain_rt.read_scans does")
        if not np.isfinite(betas).all():
            raise InputError("voxels must be finite; leave out scans with NaN or Inf")
        return {name: head[0] for name, head in self.subject.predict(betas[None]).items()}

    def guide(self, contexts: Mapping[str, Float]) -> None:
        """Let ``image_context`` and ``text_context`` guide what is denoised from now on."""
        for name, nothing in self._unconditional.items():
            self._context.write(name, np.concatenate([nothing, contexts[name][None]]))
        self._context.run()

    def denoise(self, flow: Flow, start: Float, seed: int, progress: Progress | None = None) -> Float:
        """One flow's latent, (1, …), from the predicted one ``start`` (…) under the contexts of ``guide``."""
        loop = self._loops[flow]
        noise = seeded_noise(seed, NOISE_STREAM[flow], loop.shape)
        latent = loop.run(start[None], noise, progress)
        if not np.isfinite(latent).all():
            raise EngineError(
                f"the {flow} loop gave numbers that are not finite; try another engine or precision"
            )
        return latent

    def render(self, latent: Float) -> NDArray[np.uint8]:
        """The image (H, W, 3) of an image latent (1, C, h, w)."""
        self._autokl.write("latent", latent)
        self._autokl.run()
        image = self._autokl.read("image")[0]
        if not np.isfinite(image).all():
            raise EngineError(
                "the image decoder gave numbers that are not finite; try another engine or precision"
            )
        pixels: NDArray[np.uint8] = np.round(image.transpose(1, 2, 0).clip(0, 1) * 255).astype(np.uint8)
        return pixels

    def describe(self, latent: Float, seed: int) -> tuple[str, list[int]]:
        """The caption, and its tokens, of a text latent (1, D). Only where the bundle has captions."""
        if self._writer is None:
            raise InputError(f"{self.bundle.name} writes no captions: export it with Optimus' vocabulary")
        rng = np.random.Generator(np.random.Philox(key=[seed, CAPTION_STREAM]))
        tokens = self._writer.tokens(latent, rng)
        return self._writer.caption(tokens), tokens

    def _open_steps(self) -> dict[Flow, Session]:
        flows: tuple[Flow, ...] = ("image", "caption") if self.bundle.has_captions else ("image",)
        graphs = {flow: self.bundle.graph(f"unet_{_FLOW_NAME[flow]}_step") for flow in flows}
        keys_values = {spec.name: self._context.buffer(spec.name) for spec in self._context.graph.outputs}
        for graph in graphs.values():
            check_feedback(graph, STEP_FEEDBACK)
            if {spec.name for spec in graph.inputs} != STEP_INPUTS | keys_values.keys():
                raise BundleError(
                    f"graph {graph.name}: takes other inputs than a decode gives; export the bundle again"
                )
        return {flow: self.engine.open(graph, shared=keys_values) for flow, graph in graphs.items()}

    def _make_loops(self, preset: Preset) -> dict[Flow, DenoisingLoop]:
        tables = {flow: preset.table(self.bundle.schedule, flow) for flow in self._steps}
        modulations = self._time_modulations(tables)
        return {
            flow: DenoisingLoop(session, tables[flow], modulations[flow])
            for flow, session in self._steps.items()
        }

    def _time_modulations(self, tables: Mapping[Flow, SamplerTable]) -> dict[Flow, NDArray[Any]]:
        """Of every step of every flow, (steps, width): one run of one graph."""
        timesteps = np.concatenate([table.timesteps for table in tables.values()])
        session = self.engine.open(self.bundle.graph("unet_time"), free=len(timesteps))
        session.write("timesteps", timesteps)
        session.run()
        ends = np.cumsum([len(table.timesteps) for table in tables.values()])
        return {
            flow: session.read(f"{_FLOW_NAME[flow]}_modulation")[end - len(table.timesteps) : end]
            for (flow, table), end in zip(tables.items(), ends, strict=True)
        }

    def _check_heads(self) -> None:
        wanted = {name: nothing.shape for name, nothing in self.unconditional.items()}
        latents: dict[Flow, str] = {"image": "image_latent", "caption": "text_latent"}
        wanted |= {latents[flow]: loop.shape[1:] for flow, loop in self._loops.items()}
        for head, shape in wanted.items():
            found = self.subject.head_shape(head)
            if tuple(found) != tuple(shape):
                raise BundleError(
                    f"subject {self.subject.name}: head {head} predicts {tuple(found)}, but this bundle takes "
                    f"{tuple(shape)}; fit the subject on this bundle"
                )


class _Clock:
    """Wall time of named stages, in milliseconds."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._stages: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self._stages[stage] = (time.perf_counter() - begun) * 1000

    def finished(self) -> dict[str, float]:
        return {**self._stages, "total": (time.perf_counter() - self._start) * 1000}
