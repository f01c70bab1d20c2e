"""A bundle's graphs, opened on an engine: what presets, subjects and ablations of a decoder have in common."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.bundle import Bundle
from unibrain_rt.captions import CaptionOptions, Detokenizer
from unibrain_rt.engines import Engine, GraphSpec, Session
from unibrain_rt.errors import BundleError, InputError
from unibrain_rt.flows import CONTEXTS, INPUTS, Flow
from unibrain_rt.heads import DeviceHeads, Float, Heads, HostHeads
from unibrain_rt.loops import CaptionWriter, DenoisingLoop, check_feedback, shape_of
from unibrain_rt.presets import Preset
from unibrain_rt.ridge_graph import ridge_graph
from unibrain_rt.samplers import SamplerTable
from unibrain_rt.subject import Subject

STEP_INPUTS = frozenset({"latent", "previous_x0", "modulation", "coefficients"})
STEP_FEEDBACK = {"next_latent": "latent", "x0": "previous_x0"}


class Sessions:
    """The graphs of a decode, each opened when it is first used, once.

    ``in_fp32`` names the graphs whose fp32 form is opened.
    """

    def __init__(self, bundle: Bundle, engine: Engine, captions: CaptionOptions) -> None:
        self.bundle, self.engine = bundle, engine
        self.in_fp32: frozenset[str] = frozenset()
        self._captions = captions
        self._plain: Sessions | None = None
        self._ridge: dict[str, Session | None] = {}

    def with_fallbacks(self, graphs: Collection[str]) -> Sessions:
        """These sessions, but for ``graphs``, and for what shares memory with them: those compute in fp32."""
        other = Sessions(self.bundle, self.engine, self._captions)
        other.in_fp32, other._plain, other._ridge = self.in_fp32 | set(graphs), self, self._ridge
        return other

    @cached_property
    def unconditional(self) -> dict[str, Float]:
        """The contexts, (1, L, D) each, of the black image and of the empty caption."""
        return dict(zip(CONTEXTS, self.bundle.unconditional_contexts(), strict=True))

    @cached_property
    def context(self) -> Session:
        """From contexts to every cross-attention's keys and values."""
        return self._shared("unet_context") or self._open("unet_context")

    @cached_property
    def steps(self) -> dict[Flow, Session]:
        """Each flow's step, which reads keys and values where ``context`` leaves them."""
        return {flow: self._step(flow) for flow in self.bundle.flows}

    @cached_property
    def autokl(self) -> Session:
        """From an image latent to a picture."""
        session = self._shared("autokl_decode") or self._open("autokl_decode")
        if shape_of(session.graph, "image", 4)[:2] != (1, 3):
            raise BundleError(
                "graph autokl_decode: does not give one picture of 3 colours; export the bundle again"
            )
        return session

    @cached_property
    def writer(self) -> CaptionWriter:
        """From a text latent to a caption. Raises InputError where the bundle writes none."""
        if not self.bundle.has_captions:
            raise InputError(f"{self.bundle.name} writes no captions: export it with Optimus' vocabulary")
        if self._plain is not None and "optimus_decode" not in self.in_fp32 - self._plain.in_fp32:
            return self._plain.writer
        detokenizer = Detokenizer.load(self.bundle.tokenizers["gpt2"])
        return CaptionWriter(self.engine, self._open("optimus_decode"), detokenizer, self._captions)

    def loops(self, preset: Preset, inputs: Collection[str] = INPUTS) -> dict[Flow, DenoisingLoop]:
        """Each flow's steps, as ``preset`` samples them where ``inputs`` are used."""
        tables = {flow: preset.table(self.bundle.schedule, flow, inputs) for flow in self.steps}
        modulations = self.modulations(tables)
        return {flow: DenoisingLoop(self.steps[flow], tables[flow], modulations[flow]) for flow in tables}

    def modulations(self, tables: Mapping[Flow, SamplerTable]) -> dict[Flow, NDArray[Any]]:
        """What time does to every block, (steps, width), by flow: one run of one graph for all their timesteps."""
        timesteps = np.concatenate([table.timesteps for table in tables.values()])
        session = self._open("unet_time", free=len(timesteps))
        session.write("timesteps", timesteps)
        session.run()
        ends = np.cumsum([len(table.timesteps) for table in tables.values()])
        return {
            flow: session.read(f"{flow}_modulation")[end - len(table.timesteps) : end]
            for (flow, table), end in zip(tables.items(), ends, strict=True)
        }

    def heads(self, subject: Subject, start_coefficients: Mapping[Flow, Float]) -> Heads:
        """A subject's heads, on the engine's device where they can be there.

        ``start_coefficients``: of each flow (2,), how much of a start is the predicted latent, and how much noise.

        Raises:
            BundleError: the heads do not fit the bundle's graphs.
        """
        if subject.name not in self._ridge:
            self._check_heads(subject)
            self._ridge[subject.name] = self._open_ridge(subject)
        session = self._ridge[subject.name]
        if session is None:
            return HostHeads(subject, self.unconditional, start_coefficients)
        return DeviceHeads(subject, session, start_coefficients)

    def _shared(self, name: str) -> Session | None:
        """The session of the same form that these were made from, if there is one."""
        if self._plain is None or name in self.in_fp32 - self._plain.in_fp32:
            return None
        return self._plain.context if name == "unet_context" else self._plain.autokl

    def _step(self, flow: Flow) -> Session:
        name = step_graph(flow)
        if self._plain is not None and not {"unet_context", name} & (self.in_fp32 - self._plain.in_fp32):
            return self._plain.steps[flow]
        keys_values = {spec.name: self.context.buffer(spec.name) for spec in self.context.graph.outputs}
        graph = self.bundle.graph(name)
        check_feedback(graph, STEP_FEEDBACK)
        if {spec.name for spec in graph.inputs} != STEP_INPUTS | keys_values.keys():
            raise BundleError(
                f"graph {name}: takes other inputs than a decode gives; export the bundle again"
            )
        return self._open(name, shared=keys_values)

    def _open(self, name: str, *, free: int = 1, shared: Mapping[str, object] | None = None) -> Session:
        graph = self.bundle.graph(name)
        return self.engine.open(graph.in_fp32() if name in self.in_fp32 else graph, free=free, shared=shared)

    def _open_ridge(self, subject: Subject) -> Session | None:
        graph = ridge_graph(self.bundle, subject) if self.engine.on_device else None
        if graph is None:
            return None
        session = self.engine.open(graph)
        for name, context in self.unconditional.items():
            session.write(f"unconditional_{name}", context)
        return session

    def _check_heads(self, subject: Subject) -> None:
        wanted = {name: context.shape[1:] for name, context in self.unconditional.items()}
        wanted |= {
            f"{flow}_latent": step.graph.tensor("latent").sized(1)[1:] for flow, step in self.steps.items()
        }
        for head, shape in wanted.items():
            predicted = subject.head_shape(head)
            if tuple(predicted) != tuple(shape):
                raise BundleError(
                    f"subject {subject.name}: head {head} predicts {tuple(predicted)}, but this bundle takes "
                    f"{tuple(shape)}; fit the subject on this bundle"
                )


def step_graph(flow: Flow) -> str:
    """Name of a flow's step graph."""
    return f"unet_{flow}_step"


def decode_graphs(bundle: Bundle, presets: Iterable[str]) -> list[tuple[GraphSpec, int]]:
    """Every graph that decodes with these presets run, and the size of its free axes.

    Engines with buffers on a device run a subject's, too: `unibrain_rt.ridge_graph.ridge_graphs`.
    """
    names = ["unet_context", *(step_graph(flow) for flow in bundle.flows), "autokl_decode"]
    if "text" in bundle.flows:
        names.append("optimus_decode")
    steps = {
        sum(len(bundle.preset(name).table(bundle.schedule, flow).timesteps) for flow in bundle.flows)
        for name in presets
    }
    graphs = [(bundle.graph(name), 1) for name in names]
    return graphs + [(bundle.graph("unet_time"), count) for count in sorted(steps)]
