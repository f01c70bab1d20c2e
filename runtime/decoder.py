"""From voxels to an image and a caption: the main flow, one line a stage."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.bundle import Bundle
from unibrain_rt.captions import CaptionOptions
from unibrain_rt.clock import Clock
from unibrain_rt.engines import Engine, NotFiniteError, Progress, create_engine
from unibrain_rt.engines.on_demand import OnDemandEngine
from unibrain_rt.errors import InputError
from unibrain_rt.loops import Float
from unibrain_rt.presets import Flow, Preset
from unibrain_rt.ridge_graph import ridge_graphs
from unibrain_rt.samplers import seeded_noise
from unibrain_rt.stages import FLOW_NAME, Stages, decode_graphs, step_graph
from unibrain_rt.subject import Subject

NOISE_STREAM: dict[Flow, int] = {"image": 0, "caption": 1}
CAPTION_STREAM = 2


@dataclass(frozen=True)
class Reconstruction:
    """What one scan decodes to.

    ``image`` is uint8 (H, W, 3); ``caption`` is None where the bundle cannot write captions. ``timings_ms`` is the time
    of each stage, and ``total`` the wall time of all: less than their sum where an engine runs two at once.
    ``predictions`` are the latents and contexts that the ridge heads gave, without a batch axis. ``fallbacks`` are the
    graphs that had to be computed in fp32.
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
    fallbacks: tuple[str, ...] = ()

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
            **({"fallbacks": list(self.fallbacks)} if self.fallbacks else {}),
        }


class Decoder:
    """A bundle's graphs, loaded once, and a subject's ridge heads: decodes any number of scans."""

    def __init__(
        self, bundle: Bundle, subject: Subject, engine: Engine, preset_name: str, captions: CaptionOptions
    ) -> None:
        self.bundle, self.subject, self.engine = bundle, subject, engine
        self.preset_name = preset_name
        self._preset, self._captions = bundle.preset(preset_name), captions
        self._fallen_back: frozenset[str] = frozenset()
        self._stages = Stages(bundle, engine, self._preset, captions, subject)

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
        cache: Path | None = None,
        low_memory: bool = False,
        tell: Callable[[str], None] | None = None,
    ) -> Decoder:
        """Load everything a decode needs.

        Args:
            bundle: a bundle or its folder; by default the phantom shipped with this package.
            subject: whose ridge heads; may be left out where the bundle has one subject.
            preset: a preset of the bundle, such as ``paper``, ``fast`` or ``realtime``.
            engine: a back end, or ``auto``.
            threads: cores to use; by default all that this process may run on.
            captions: how tokens are chosen; by default the likeliest.
            cache: folder of compiled plans; by default the user's.
            low_memory: load each graph when its stage begins and let it go after it, which takes longer.
            tell: called with a line of text when the engine does what takes long.

        Raises:
            InputError: a name that the bundle does not have.
            BundleError: the bundle is damaged.
            EngineError: the back end cannot be used.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        opened.preset(preset)
        chosen = opened.subject(subject)
        graphs = decode_graphs(opened, [preset])
        # A CUDA graph would go with the session that is let go after its stage, and be captured anew for every scan.
        # Even a loop gains nothing by it: each of its two turns is run plainly once, then captured and compared with
        # one more plain run, so that replays begin at the fifth step: of preset realtime, hardly any. And a step that
        # is large enough to be loaded by itself takes long beside the launches that a replay saves.
        capture = not low_memory
        heads = ridge_graphs(opened, [] if low_memory else [chosen])
        running = create_engine(
            engine, threads, cache=cache, tell=tell, graphs=graphs, device_graphs=heads, capture=capture
        )
        if low_memory:
            passed_over, running = running.passed_over, OnDemandEngine(running)
            running.passed_over = passed_over
        return cls(opened, chosen, running, preset, captions or CaptionOptions())

    @property
    def steps(self) -> int:
        """Denoising steps of one scan, both flows together; what a progress bar counts."""
        return sum(len(loop) for loop in self._stages.loops.values())

    @property
    def unconditional(self) -> dict[str, Float]:
        """The contexts, without a batch axis, of the black image and of the empty caption."""
        return {name: nothing[0] for name, nothing in self._stages.unconditional.items()}

    def sampling(self, preset: Preset, name: str) -> Decoder:
        """This decoder with other sampler settings, called ``name``.

        Both have the same graphs in the same memory: let one finish a scan before the other begins.
        """
        other = copy.copy(self)
        other.preset_name, other._preset = name, preset
        other._stages = self._stages.sampling(preset)
        return other

    def reading(self, subject: Subject) -> Decoder:
        """This decoder for another subject of the bundle, on the same graphs in the same memory.

        Raises:
            BundleError: the subject's heads do not fit the bundle.
            EngineError: the back end cannot open the subject's graph.
        """
        other = copy.copy(self)
        other.subject, other._stages = subject, self._stages.reading(subject)
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

        Where numbers of a graph in half precision are not finite, the decode is done again with that graph in fp32,
        if the bundle has it so.

        Raises:
            InputError: the voxels do not fit the subject or are not finite.
            EngineError: a graph gave numbers that are not finite.
        """
        while True:
            try:
                return self._decode(voxels, seed, progress)
            except NotFiniteError as error:
                if not self._fall_back(error.graphs):
                    raise

    def _decode(self, voxels: NDArray[Any], seed: int, progress: Progress | None) -> Reconstruction:
        clock = Clock()
        begin = self._begin_on_host if self._stages.ridge is None else self._begin_on_device
        predicted = begin(voxels, seed, progress, clock)
        try:
            image, caption, tokens = self._end(seed, clock)
        except NotFiniteError:
            predicted()  # what the scan or the heads are to blame for is not a graph's
            raise
        predictions = predicted()
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
            fallbacks=tuple(sorted(self._fallen_back)),
        )

    def _begin_on_host(
        self, voxels: NDArray[Any], seed: int, progress: Progress | None, clock: Clock
    ) -> Callable[[], dict[str, Float]]:
        """Start both flows of a scan, with heads that are applied here; the result gives their predictions."""
        stages = self._stages
        with clock("ridge"):
            predictions = self.predict(voxels)
        with clock("context"):
            self.guide(predictions)
        # Both flows are begun before either is awaited: an engine may run them at the same time.
        self._load("image", predictions["image_latent"], seed)
        stages.picture_program.start(progress)
        if stages.caption_program is not None:
            self._load("caption", predictions["text_latent"], seed)
            stages.caption_program.start(progress)
        return lambda: predictions

    def _begin_on_device(
        self, voxels: NDArray[Any], seed: int, progress: Progress | None, clock: Clock
    ) -> Callable[[], dict[str, Float]]:
        """The same with heads on the engine's device: it gets voxels and noise, and gives predictions at the end."""
        stages = self._stages
        ridge = stages.ridge
        assert ridge is not None, "else the heads are applied on the host"
        with clock("ridge"):
            z = self.subject.z_scores(_one_scan(voxels))
            noise = {FLOW_NAME[flow]: self._noise(flow, seed) for flow in stages.loops}
            ridge.load(z, noise)
            for loop in stages.loops.values():
                loop.rewind()
        stages.picture_program.start(progress)
        if stages.caption_program is not None:
            stages.caption_program.start(progress)
        return lambda: ridge.predictions(z)

    def _end(self, seed: int, clock: Clock) -> tuple[NDArray[np.uint8], str | None, list[int]]:
        """Image, caption and tokens of what was begun.

        The caption's flow is the shorter one: where an engine runs both at once, its tokens are written while the image
        is still denoised.
        """
        stages = self._stages
        caption: str | None = None
        tokens: list[int] = []
        captioning = Clock()
        try:
            if stages.caption_program is not None:
                stages.caption_program.finish()
                captioning.add("caption_loop", spent=stages.caption_program.milliseconds)
                with captioning("caption"):
                    caption, tokens = self.describe(self._denoised("caption"), seed)
        finally:  # nothing may be under way when this ends, however it ends
            stages.picture_program.finish()
        spent = stages.picture_program.milliseconds
        clock.add(*("ridge", "context", "image_loop", "autokl")[-len(spent) :], spent=spent)
        clock.add(*captioning.stages, spent=list(captioning.stages.values()))
        self._denoised("image")
        return self._picture(), caption, tokens

    def predict(self, voxels: NDArray[Any]) -> dict[str, Float]:
        """The ridge heads' latents and contexts, without a batch axis, of betas (voxels,); see ``decode``.

        They are applied on the host, whatever the engine.
        """
        betas = _one_scan(voxels)
        return {name: head[0] for name, head in self.subject.predict(betas[None]).items()}

    def guide(self, contexts: Mapping[str, Float]) -> None:
        """Let ``image_context`` and ``text_context`` guide what is denoised from now on."""
        context = self._stages.context
        for name, nothing in self._stages.unconditional.items():
            context.write(name, np.concatenate([nothing, contexts[name][None]]))
        context.run()
        context.rest()

    def denoise(self, flow: Flow, start: Float, seed: int, progress: Progress | None = None) -> Float:
        """One flow's latent, (1, …), from the predicted one ``start`` (…) under the contexts of ``guide``."""
        self._load(flow, start, seed)
        program = self._stages.programs[flow]
        program.start(progress)
        program.finish()
        return self._denoised(flow)

    def render(self, latent: Float) -> NDArray[np.uint8]:
        """The image (H, W, 3) of an image latent (1, C, h, w)."""
        autokl = self._stages.autokl
        autokl.write("latent", latent)
        autokl.run()
        autokl.rest()
        return self._picture()

    def describe(self, latent: Float, seed: int) -> tuple[str, list[int]]:
        """The caption, and its tokens, of a text latent (1, D). Only where the bundle has captions."""
        writer = self._stages.writer
        if writer is None:
            raise InputError(f"{self.bundle.name} writes no captions: export it with Optimus' vocabulary")
        rng = np.random.Generator(np.random.Philox(key=[seed, CAPTION_STREAM]))
        tokens = writer.tokens(latent, rng)
        return writer.caption(tokens), tokens

    def _load(self, flow: Flow, start: Float, seed: int) -> None:
        loop = self._stages.loops[flow]
        loop.load(start[None], self._noise(flow, seed))

    def _noise(self, flow: Flow, seed: int) -> Float:
        return seeded_noise(seed, NOISE_STREAM[flow], self._stages.loops[flow].shape)

    def _denoised(self, flow: Flow) -> Float:
        latent = self._stages.loops[flow].latent()
        if not np.isfinite(latent).all():
            raise NotFiniteError(f"the {flow} loop", "unet_context", "unet_time", step_graph(flow))
        return latent

    def _picture(self) -> NDArray[np.uint8]:
        image = self._stages.autokl.read("image")[0]
        if not np.isfinite(image).all():
            raise NotFiniteError("the image decoder", "autokl_decode")
        pixels: NDArray[np.uint8] = np.round(image.transpose(1, 2, 0).clip(0, 1) * 255).astype(np.uint8)
        return pixels

    def _fall_back(self, graphs: Sequence[str]) -> bool:
        """Open these graphs again in fp32, those that have such a form; whether any was not yet."""
        new = {name for name in graphs if self.bundle.graph(name).fallback is not None} - self._fallen_back
        if new:
            self._fallen_back |= new
            self._stages = Stages(
                self.bundle, self.engine, self._preset, self._captions, self.subject, self._fallen_back
            )
        return bool(new)


def _one_scan(voxels: NDArray[Any]) -> NDArray[Any]:
    """Betas (voxels,) that can be decoded, whoever's they are. Raises InputError."""
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
    return betas
