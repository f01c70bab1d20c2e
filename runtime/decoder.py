"""From voxels to an image and a caption: the main flow, one line a stage."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.bundle import Bundle
from unibrain_rt.captions import CaptionOptions
from unibrain_rt.clock import Clock
from unibrain_rt.engines import Engine, NotFiniteError, Probe, Progress, create_engine
from unibrain_rt.errors import InputError
from unibrain_rt.flows import INPUTS, Flow, checked_inputs
from unibrain_rt.heads import Float
from unibrain_rt.presets import Preset
from unibrain_rt.reconstruction import Reconstruction
from unibrain_rt.ridge_graph import ridge_graphs
from unibrain_rt.sessions import Sessions, decode_graphs
from unibrain_rt.stages import Stages
from unibrain_rt.subject import Subject

_log = logging.getLogger(__name__)

CAPTION_STREAM = 2
"""Of the seed, what sampled captions draw from; the flows' noise has the streams before it."""


class Decoder:
    """A bundle's graphs, loaded once, and a subject's ridge heads: decodes any number of scans.

    Threads may share a decoder: it decodes one scan at a time, and others wait for their turn. So do the decoders that
    `sampling` and `reading` make of it, whose graphs lie in the same memory.
    """

    def __init__(
        self, bundle: Bundle, subject: Subject, engine: Engine, preset_name: str, captions: CaptionOptions
    ) -> None:
        self.bundle, self.subject, self.engine = bundle, subject, engine
        self.preset_name, self._preset = preset_name, bundle.preset(preset_name)
        self._turn = _Turn()
        self._sessions = [Sessions(bundle, engine, captions)]
        self._stages: dict[tuple[Sessions, tuple[str, ...]], Stages] = {}
        self._stages_of(self._sessions[0], INPUTS)
        if bundle.has_captions:
            _ = self._sessions[0].writer  # what is wrong with a bundle is found now, not in the first scan
        _log.debug("opened the graphs of preset %s, subject %s", preset_name, subject.name)

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

        Raises:
            InputError: a name that the bundle does not have.
            BundleError: the bundle is damaged.
            EngineError: the back end cannot be used.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        opened.preset(preset)
        chosen = opened.subject(subject)
        running = create_engine(
            engine,
            threads,
            cache=cache,
            graphs=decode_graphs(opened, [preset]),
            device_graphs=ridge_graphs(opened, [chosen]),
            low_memory=low_memory,
        )
        for passed in running.passed_over:
            if isinstance(passed, Probe) and passed.version is not None:  # what is not installed is no news
                _log.info("passed over %s", passed)
        return cls(opened, chosen, running, preset, captions or CaptionOptions())

    @property
    def steps(self) -> int:
        """Denoising steps of one scan, both flows together; what a progress bar counts."""
        return sum(len(loop) for loop in self._stages_of(self._sessions[0], INPUTS).loops.values())

    def sampling(self, preset: Preset, name: str) -> Decoder:
        """This decoder with other sampler settings, called ``name``, on the same graphs in the same memory."""
        other = copy.copy(self)
        other.preset_name, other._preset, other._stages = name, preset, {}
        return other

    def reading(self, subject: Subject) -> Decoder:
        """This decoder for another subject of the bundle, on the same graphs in the same memory.

        Raises:
            BundleError: the subject's heads do not fit the bundle.
            EngineError: the back end cannot open the subject's graph.
        """
        other = copy.copy(self)
        other.subject, other._stages = subject, {}
        other._stages_of(self._sessions[0], INPUTS)
        return other

    def decode(
        self,
        voxels: NDArray[Any],
        *,
        seed: int = 0,
        inputs: Collection[str] = INPUTS,
        progress: Progress | None = None,
    ) -> Reconstruction:
        """Decode one scan.

        The result depends on the scan, the seed, the preset, the inputs and the bundle alone: a scan decodes the same
        by itself as among a thousand.

        Args:
            voxels: betas (voxels,) in % signal change, in the order of the subject's mask.
            seed: of the noise and of sampled captions.
            inputs: which of ``image_latent``, ``text_latent``, ``image_context`` and ``text_context`` are used, as in
                the paper's ablations. A context alone has all the weight; without its latent, a flow starts from noise
                alone; latents without a context go straight to their decoders.
            progress: called with the number of denoising steps just done.

        Where numbers of a graph in half precision are not finite, the scan is decoded again with that graph in fp32, if
        the bundle has it so; the next scan begins with half precision again.

        Raises:
            InputError: the voxels do not fit the subject or are not finite, or there is no such input or seed.
            EngineError: a graph gave numbers that are not finite.
        """
        used = checked_inputs(inputs, self.bundle.flows)
        betas = _one_scan(voxels)
        with self._turn.taken():
            sessions = self._sessions[0]
            while True:
                try:
                    return self._decode(self._stages_of(sessions, used), betas, seed, used, progress)
                except NotFiniteError as error:
                    if not (graphs := self._with_fp32_form(error.graphs) - sessions.in_fp32):
                        raise
                    sessions = self._falling_back(sessions, graphs)

    def _decode(
        self,
        stages: Stages,
        betas: NDArray[Any],
        seed: int,
        inputs: tuple[str, ...],
        progress: Progress | None,
    ) -> Reconstruction:
        clock, captioning = Clock(), Clock()
        caption: str | None = None
        tokens: list[int] = []
        latents: dict[Flow, Float] = {}
        with clock("ridge"):
            stages.begin(betas, seed)
        try:
            with stages.running(progress):
                # The text flow is the shorter one: where an engine runs both at once, its caption is written while the
                # image is still denoised.
                if "text" in self.bundle.flows:
                    latents["text"] = stages.text_latent()
                    with captioning("caption"):
                        caption, tokens = stages.write(latents["text"], _caption_generator(seed))
            latents["image"] = stages.image_latent()
            image = stages.picture()
        except NotFiniteError:
            stages.heads.predictions()  # what the scan or the heads are to blame for is not a graph's
            raise
        clock.add(stages.milliseconds)
        clock.add(captioning.stages)
        timings = clock.finished()
        _log.debug("decoded a scan of %s in %.0f ms", self.subject.name, timings["total"])
        return Reconstruction(
            image=image,
            caption=caption,
            seed=seed,
            preset=self.preset_name,
            engine=self.engine.name,
            bundle=self.bundle.name,
            subject=self.subject.name,
            timings_ms=timings,
            predictions=stages.heads.predictions(),
            latents={flow: latent[0] for flow, latent in latents.items()},
            tokens=tuple(tokens),
            inputs=inputs,
            fallbacks=tuple(sorted(stages.in_fp32)),
        )

    def _stages_of(self, sessions: Sessions, inputs: tuple[str, ...]) -> Stages:
        key = (sessions, inputs)
        if key not in self._stages:
            self._stages[key] = Stages(sessions, self.subject, self._preset, inputs)
        return self._stages[key]

    def _with_fp32_form(self, graphs: Collection[str]) -> frozenset[str]:
        return frozenset(name for name in graphs if self.bundle.graph(name).fallback is not None)

    def _falling_back(self, sessions: Sessions, graphs: frozenset[str]) -> Sessions:
        """These sessions with more graphs in fp32; they stay open for other scans that need the same."""
        wanted = sessions.in_fp32 | graphs
        for known in self._sessions:
            if known.in_fp32 == wanted:
                return known
        self._sessions.append(sessions.with_fallbacks(graphs))
        return self._sessions[-1]


class _Turn:
    """One decode at a time, of whatever threads share the graphs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Wait for one's turn, and hold it. Raises RuntimeError in a thread that holds it already."""
        if self._owner == threading.get_ident():  # only this thread can have written its own number
            raise RuntimeError("a decode cannot begin inside another, such as in its progress")
        with self._lock:
            self._owner = threading.get_ident()
            try:
                yield
            finally:
                self._owner = None


def _caption_generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, CAPTION_STREAM]))


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
