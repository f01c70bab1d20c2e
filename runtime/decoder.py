"""From voxels to an image and a caption: the main flow, one line a stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.bundle import Bundle
from unibrain_rt.captions import CaptionOptions, Detokenizer, greedy, remove_duplicates, sample
from unibrain_rt.engines import Engine, EngineError, GraphSpec, Session, create_engine
from unibrain_rt.errors import BundleError, InputError
from unibrain_rt.presets import Flow, Preset
from unibrain_rt.samplers import SamplerTable, seeded_noise
from unibrain_rt.subject import Subject

Float = NDArray[np.float32]
Progress = Callable[[int], None]
"""Called with the number of denoising steps just done."""
_FLOW_NAME: dict[Flow, str] = {"image": "image", "caption": "text"}
"""What a flow is called in graphs and tensors."""
NOISE_STREAM: dict[Flow, int] = {"image": 0, "caption": 1}
CAPTION_STREAM = 2
STEP_INPUTS = frozenset({"latent", "previous_x0", "modulation", "coefficients"})
STEP_FEEDBACK = {"next_latent": "latent", "x0": "previous_x0"}
CAPTION_FEEDBACK = {
    "next_key_cache": "key_cache",
    "next_value_cache": "value_cache",
    "next_position": "position",
}


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


class DenoisingLoop:
    """One flow's step graph and the table it runs through. Nothing is computed on the host between steps."""

    def __init__(self, session: Session, table: SamplerTable, modulation: NDArray[Any]) -> None:
        self._session = session
        self._table = table
        self._rows = table.coefficients.astype(np.float32)
        self._modulation = modulation
        self.shape = session.graph.tensor("latent").sized(1)

    def __len__(self) -> int:
        return len(self._rows)

    def run(self, start: Float, noise: Float, progress: Progress | None = None) -> Float:
        """Noise ``start`` to the table's first level and denoise it; both are of ``self.shape``."""
        alpha = self._table.alpha_bar_start
        self._session.write("latent", np.float32(alpha**0.5) * start + np.float32((1 - alpha) ** 0.5) * noise)
        self._session.write("previous_x0", 0.0)
        for row, modulation in zip(self._rows, self._modulation, strict=True):
            self._session.write("coefficients", row)
            self._session.write("modulation", modulation[None])
            self._session.run()
            if progress is not None:
                progress(1)
        return self._session.read("next_latent")


class CaptionWriter:
    """Optimus' GPT-2, one token at a time, from a text latent to a caption."""

    def __init__(self, session: Session, detokenizer: Detokenizer, options: CaptionOptions) -> None:
        self._session = session
        self._detokenizer = detokenizer
        self._options = options
        _check_feedback(session.graph, CAPTION_FEEDBACK)
        _, vocabulary = _shape(session.graph, "logits", 2)
        self._slots = _shape(session.graph, "key_cache", 4)[2]
        if vocabulary != detokenizer.eos + 1:
            raise BundleError(
                f"tokenizers/gpt2: its vocabulary does not fit the caption graph's {vocabulary} tokens; "
                "export the bundle again"
            )

    def tokens(self, latent: Float, rng: np.random.Generator) -> list[int]:
        """The caption's tokens, <BOS> and <EOS> included, at most ``options.max_tokens``."""
        session, options = self._session, self._options
        session.write("latent", latent)
        session.write("position", 1)
        session.write("key_cache", 0.0)
        session.write("value_cache", 0.0)
        tokens = [self._detokenizer.bos]
        while len(tokens) < min(options.max_tokens, self._slots + 1) and tokens[-1] != self._detokenizer.eos:
            session.write("token", tokens[-1])
            session.run()
            logits = session.read("logits")[0]
            if options.temperature == 0:
                tokens.append(greedy(logits))
            else:
                tokens.append(sample(logits, options.temperature, options.top_p, rng))
        return tokens

    def caption(self, tokens: list[int]) -> str:
        """Text of the tokens, without repeated sentences."""
        return remove_duplicates(self._detokenizer.text(tokens))


class Decoder:
    """A bundle's graphs, loaded once, and a subject's ridge heads: decodes any number of scans."""

    def __init__(
        self, bundle: Bundle, subject: Subject, engine: Engine, preset_name: str, captions: CaptionOptions
    ) -> None:
        self.bundle, self.subject, self.engine = bundle, subject, engine
        self.preset_name = preset_name
        self._context = engine.open(bundle.graph("unet_context"))
        self._unconditional = bundle.unconditional_contexts()
        loops = self._open_loops(bundle.preset(preset_name))
        self._image_loop = loops["image"]
        self._autokl = engine.open(bundle.graph("autokl_decode"))
        if _shape(self._autokl.graph, "image", 4)[:2] != (1, 3):
            raise BundleError(
                "graph autokl_decode: does not give one picture of 3 colours; export the bundle again"
            )
        self._caption_loop, self._writer = None, None
        if bundle.has_captions:
            self._caption_loop = loops["caption"]
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
        return len(self._image_loop) + (len(self._caption_loop) if self._caption_loop is not None else 0)

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
        clock = _Clock()
        with clock("ridge"):
            predictions = {name: head[0] for name, head in self.subject.predict(betas[None]).items()}
        with clock("context"):
            self._run_context(predictions)
        with clock("image_loop"):
            image_latent = self._denoise(
                self._image_loop, predictions["image_latent"], seed, "image", progress
            )
        with clock("autokl"):
            image = self._decode_image(image_latent)
        caption, tokens = None, []
        if self._caption_loop is not None and self._writer is not None:
            with clock("caption_loop"):
                text_latent = self._denoise(
                    self._caption_loop, predictions["text_latent"], seed, "caption", progress
                )
            with clock("caption"):
                rng = np.random.Generator(np.random.Philox(key=[seed, CAPTION_STREAM]))
                tokens = self._writer.tokens(text_latent, rng)
                caption = self._writer.caption(tokens)
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

    def _open_loops(self, preset: Preset) -> dict[Flow, DenoisingLoop]:
        flows: tuple[Flow, ...] = ("image", "caption") if self.bundle.has_captions else ("image",)
        graphs = {flow: self.bundle.graph(f"unet_{_FLOW_NAME[flow]}_step") for flow in flows}
        keys_values = {spec.name: self._context.buffer(spec.name) for spec in self._context.graph.outputs}
        for graph in graphs.values():
            _check_feedback(graph, STEP_FEEDBACK)
            if {spec.name for spec in graph.inputs} != STEP_INPUTS | keys_values.keys():
                raise BundleError(
                    f"graph {graph.name}: takes other inputs than a decode gives; export the bundle again"
                )
        tables = {flow: preset.table(self.bundle.schedule, flow) for flow in flows}
        modulations = self._time_modulations(tables)
        return {
            flow: DenoisingLoop(
                self.engine.open(graphs[flow], shared=keys_values), tables[flow], modulations[flow]
            )
            for flow in flows
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

    def _run_context(self, predictions: dict[str, Float]) -> None:
        for name, nothing in zip(("image_context", "text_context"), self._unconditional, strict=True):
            self._context.write(name, np.concatenate([nothing, predictions[name][None]]))
        self._context.run()

    def _denoise(
        self, loop: DenoisingLoop, start: Float, seed: int, flow: Flow, progress: Progress | None
    ) -> Float:
        noise = seeded_noise(seed, NOISE_STREAM[flow], loop.shape)
        latent = loop.run(start[None], noise, progress)
        if not np.isfinite(latent).all():
            raise EngineError(
                f"the {flow} loop gave numbers that are not finite; try another engine or precision"
            )
        return latent

    def _decode_image(self, latent: Float) -> NDArray[np.uint8]:
        self._autokl.write("latent", latent)
        self._autokl.run()
        image = self._autokl.read("image")[0]
        if not np.isfinite(image).all():
            raise EngineError(
                "the image decoder gave numbers that are not finite; try another engine or precision"
            )
        pixels: NDArray[np.uint8] = np.round(image.transpose(1, 2, 0).clip(0, 1) * 255).astype(np.uint8)
        return pixels

    def _check_heads(self) -> None:
        wanted = {
            "image_latent": self._image_loop.shape[1:],
            "image_context": self._unconditional[0].shape[1:],
            "text_context": self._unconditional[1].shape[1:],
        }
        if self._caption_loop is not None:
            wanted["text_latent"] = self._caption_loop.shape[1:]
        for head, shape in wanted.items():
            found = self.subject.head_shape(head)
            if tuple(found) != tuple(shape):
                raise BundleError(
                    f"subject {self.subject.name}: head {head} predicts {tuple(found)}, but this bundle takes "
                    f"{tuple(shape)}; fit the subject on this bundle"
                )


def _shape(graph: GraphSpec, name: str, rank: int) -> tuple[int, ...]:
    """Shape of a tensor, which has to have that many axes."""
    shape = graph.tensor(name).sized(1)
    if len(shape) != rank:
        raise BundleError(
            f"graph {graph.name}: {name} has {len(shape)} axes, not {rank}; export the bundle again"
        )
    return shape


def _check_feedback(graph: GraphSpec, wanted: dict[str, str]) -> None:
    """Without it, a loop would start anew at every step and still give numbers."""
    if dict(graph.feedback) != wanted:
        raise BundleError(f"graph {graph.name}: feedback is not {wanted}; export the bundle again")


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
