"""A bundle's graphs, opened for one preset: what runs at each stage of a decode."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Set
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.bundle import Bundle
from unibrain_rt.captions import CaptionOptions, Detokenizer
from unibrain_rt.engines import Call, Engine, GraphSpec, Program, Session
from unibrain_rt.errors import BundleError
from unibrain_rt.loops import CaptionWriter, DenoisingLoop, check_feedback, shape_of
from unibrain_rt.presets import Flow, Preset
from unibrain_rt.samplers import SamplerTable

FLOW_NAME: dict[Flow, str] = {"image": "image", "caption": "text"}
"""What a flow is called in graphs and tensors."""
STEP_INPUTS = frozenset({"latent", "previous_x0", "modulation", "coefficients"})
STEP_FEEDBACK = {"next_latent": "latent", "x0": "previous_x0"}


class Stages:
    """The sessions of a decode, and the programs that run them.

    ``programs`` are by flow: all its steps. ``picture_program`` is the image's, and its decoder after it. ``writer``
    is None where the bundle cannot write captions.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        preset: Preset,
        captions: CaptionOptions,
        fallen_back: Set[str] = frozenset(),
    ) -> None:
        """``fallen_back`` names the graphs whose fp32 form is opened. Raises BundleError, EngineError."""
        self._bundle, self._engine = bundle, engine
        self._fallen_back = fallen_back
        self.context = self._open("unet_context")
        self._steps = self._open_steps()
        self.autokl = self._open("autokl_decode")
        if shape_of(self.autokl.graph, "image", 4)[:2] != (1, 3):
            raise BundleError(
                "graph autokl_decode: does not give one picture of 3 colours; export the bundle again"
            )
        self._sample(preset)
        self.writer = None
        if bundle.has_captions:
            detokenizer = Detokenizer.load(bundle.tokenizers["gpt2"])
            self.writer = CaptionWriter(self._open("optimus_decode"), detokenizer, captions)

    def sampling(self, preset: Preset) -> Stages:
        """These stages, in the same memory, with other sampler settings."""
        other = copy.copy(self)
        other._sample(preset)
        return other

    def _sample(self, preset: Preset) -> None:
        self.loops = self._make_loops(preset)
        self.programs: dict[Flow, Program] = {
            flow: self._engine.program([loop.call]) for flow, loop in self.loops.items()
        }
        decoding = Call(self.autokl, takes={"latent": (self._steps["image"], "next_latent")}, counted=False)
        self.picture_program = self._engine.program([self.loops["image"].call, decoding])

    def _open(self, name: str, *, free: int = 1, shared: Mapping[str, object] | None = None) -> Session:
        graph = self._bundle.graph(name)
        if name in self._fallen_back and graph.fallback is not None:
            graph = replace(graph, path=graph.fallback, fallback=None)
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
    """Every graph that decodes with these presets run, and the size of its free axes."""
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
