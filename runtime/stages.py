"""A bundle's graphs, opened for one preset: what runs at each stage of a decode."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.bundle import Bundle
from unibrain_rt.captions import CaptionOptions, Detokenizer
from unibrain_rt.engines import Call, Engine, GraphSpec, Program, Session
from unibrain_rt.errors import BundleError
from unibrain_rt.loops import CaptionWriter, DenoisingLoop, check_feedback, shape_of
from unibrain_rt.presets import Flow, Preset
from unibrain_rt.ridge_graph import RidgeStage, ridge_graph
from unibrain_rt.samplers import SamplerTable
from unibrain_rt.subject import Subject

FLOW_NAME: dict[Flow, str] = {"image": "image", "caption": "text"}
"""What a flow is called in graphs and tensors."""
CONTEXTS = ("image_context", "text_context")
STEP_INPUTS = frozenset({"latent", "previous_x0", "modulation", "coefficients"})
STEP_FEEDBACK = {"next_latent": "latent", "x0": "previous_x0"}


class Stages:
    """The sessions of a decode, and the programs that run them.

    ``programs`` are by flow: all its steps. A whole decode runs two others. ``picture_program`` is the image's steps
    and its decoder; where the engine's buffers are on a device and the subject has a graph, its heads (``ridge``) and
    the contexts are before them, so that a scan goes from voxels to picture without the host. ``caption_program`` is
    the caption's steps, begun after it; what it needs of the heads it takes where they leave it. ``unconditional`` are
    the contexts of nothing, (1, L, D) each. ``writer`` is None where the bundle cannot write captions.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        preset: Preset,
        captions: CaptionOptions,
        subject: Subject,
        fallen_back: Set[str] = frozenset(),
    ) -> None:
        """``fallen_back`` names the graphs whose fp32 form is opened. Raises BundleError, EngineError."""
        self._bundle, self._engine = bundle, engine
        self._fallen_back = fallen_back
        self.unconditional = dict(zip(CONTEXTS, bundle.unconditional_contexts(), strict=True))
        self.context = self._open("unet_context")
        self._steps = self._open_steps()
        self.autokl = self._open("autokl_decode")
        if shape_of(self.autokl.graph, "image", 4)[:2] != (1, 3):
            raise BundleError(
                "graph autokl_decode: does not give one picture of 3 colours; export the bundle again"
            )
        self.loops = self._make_loops(preset)
        self.ridge = self._open_ridge(subject)
        self._compose()
        self.writer = None
        if bundle.has_captions:
            detokenizer = Detokenizer.load(bundle.tokenizers["gpt2"])
            self.writer = CaptionWriter(self._open("optimus_decode"), detokenizer, captions)

    def sampling(self, preset: Preset) -> Stages:
        """These stages, in the same memory, with other sampler settings."""
        other = copy.copy(self)
        other.loops = self._make_loops(preset)
        other._compose()
        return other

    def reading(self, subject: Subject) -> Stages:
        """These stages, in the same memory, with another subject's heads. Raises BundleError, EngineError."""
        other = copy.copy(self)
        other.ridge = self._open_ridge(subject)
        if other.ridge is not self.ridge:  # without graphs, no program knows whose heads they are
            other._compose()
        return other

    def _compose(self) -> None:
        """Make the programs."""
        program = self._engine.program
        self.programs: dict[Flow, Program] = {flow: program([loop.call]) for flow, loop in self.loops.items()}
        decoding = Call(self.autokl, takes={"latent": (self._steps["image"], "next_latent")}, counted=False)
        if self.ridge is None:
            self.picture_program = program([self.loops["image"].call, decoding])
            self.caption_program = self.programs.get("caption")
            return
        heads = self.ridge.session
        levels = {FLOW_NAME[flow]: loop.start_coefficients for flow, loop in self.loops.items()}
        taken = {name: (heads, f"guiding_{name}") for name in CONTEXTS}
        calls = {
            flow: loop.call_from(heads, f"noised_{FLOW_NAME[flow]}_latent")
            for flow, loop in self.loops.items()
        }
        before = [self.ridge.call(levels), Call(self.context, takes=taken, counted=False)]
        self.picture_program = program([*before, calls["image"], decoding])
        self.caption_program = program([calls["caption"]]) if "caption" in calls else None

    def _open_ridge(self, subject: Subject) -> RidgeStage | None:
        """The subject's heads on the engine, if they can be there and fit the bundle's graphs."""
        self._check_heads(subject)
        graph = ridge_graph(self._bundle, subject) if self._engine.on_device else None
        return None if graph is None else RidgeStage(self._engine, graph, subject, self.unconditional)

    def _check_heads(self, subject: Subject) -> None:
        wanted = {name: nothing.shape[1:] for name, nothing in self.unconditional.items()}
        wanted |= {f"{FLOW_NAME[flow]}_latent": loop.shape[1:] for flow, loop in self.loops.items()}
        for head, shape in wanted.items():
            found = subject.head_shape(head)
            if tuple(found) != tuple(shape):
                raise BundleError(
                    f"subject {subject.name}: head {head} predicts {tuple(found)}, but this bundle takes "
                    f"{tuple(shape)}; fit the subject on this bundle"
                )

    def _open(self, name: str, *, free: int = 1, shared: Mapping[str, object] | None = None) -> Session:
        graph = self._bundle.graph(name)
        if name in self._fallen_back:
            graph = graph.in_fp32()
        return self._engine.open(graph, free=free, shared=shared)

    def _open_steps(self) -> dict[Flow, Session]:
        flows: tuple[Flow, ...] = ("image", "caption") if self._bundle.has_captions else ("image",)
        keys_values = {spec.name: self.context.buffer(spec.name) for spec in self.context.graph.outputs}
        for name in (step_graph(flow) for flow in flows):
            graph = self._bundle.graph(name)
            check_feedback(graph, STEP_FEEDBACK)
            if {spec.name for spec in graph.inputs} != STEP_INPUTS | keys_values.keys():
                raise BundleError(
                    f"graph {graph.name}: takes other inputs than a decode gives; export the bundle again"
                )
        return {flow: self._open(step_graph(flow), shared=keys_values) for flow in flows}

    def _make_loops(self, preset: Preset) -> dict[Flow, DenoisingLoop]:
        tables = {flow: preset.table(self._bundle.schedule, flow) for flow in self._steps}
        modulations = self._time_modulations(tables)
        return {
            flow: DenoisingLoop(session, tables[flow], modulations[flow])
            for flow, session in self._steps.items()
        }

    def _time_modulations(self, tables: Mapping[Flow, SamplerTable]) -> dict[Flow, NDArray[Any]]:
        """Of every step of every flow, (steps, width): one run of one graph."""
        timesteps = np.concatenate([table.timesteps for table in tables.values()])
        session = self._open("unet_time", free=len(timesteps))
        session.write("timesteps", timesteps)
        session.run()
        ends = np.cumsum([len(table.timesteps) for table in tables.values()])
        return {
            flow: session.read(f"{FLOW_NAME[flow]}_modulation")[end - len(table.timesteps) : end]
            for (flow, table), end in zip(tables.items(), ends, strict=True)
        }


def step_graph(flow: Flow) -> str:
    """Name of a flow's step graph."""
    return f"unet_{FLOW_NAME[flow]}_step"


def decode_graphs(bundle: Bundle, presets: Iterable[str]) -> list[tuple[GraphSpec, int]]:
    """Every graph that decodes with these presets run, and the size of its free axes.

    Engines with buffers on a device run a subject's, too: `unibrain_rt.ridge_graph.ridge_graphs`.
    """
    flows: tuple[Flow, ...] = ("image", "caption") if bundle.has_captions else ("image",)
    names = ["unet_context", *(step_graph(flow) for flow in flows), "autokl_decode"]
    found = [(bundle.graph(name), 1) for name in names]
    if bundle.has_captions:
        found.append((bundle.graph("optimus_decode"), 1))
    steps = {
        sum(len(bundle.preset(name).table(bundle.schedule, flow).timesteps) for flow in flows)
        for name in presets
    }
    return found + [(bundle.graph("unet_time"), count) for count in sorted(steps)]
