"""Graphs that are loaded when they run: the same numbers, one graph in memory at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unibrain_rt import Bundle, Decoder
from unibrain_rt.captions import CaptionOptions
from unibrain_rt.engines import GraphSpec, Session, create_engine
from unibrain_rt.engines.on_demand import OnDemandEngine
from unibrain_rt.engines.onnxruntime import OnnxRuntimeEngine, OnnxRuntimeSession

pytest.importorskip("onnxruntime")


class Counting(OnnxRuntimeEngine):
    """Knows which of its sessions are still held by somebody."""

    def __init__(self) -> None:
        super().__init__(1)
        self.awake: set[str] = set()
        self.most = 0
        self.opened: list[str] = []

    def _open_impl(self, graph: GraphSpec, free: int, shared: Mapping[str, object]) -> Session:
        session = super()._open_impl(graph, free, shared)
        assert isinstance(session, OnnxRuntimeSession)
        engine = self

        class Tracked(OnnxRuntimeSession):
            def __del__(self) -> None:
                engine.awake.discard(self.graph.name)

        session.__class__ = Tracked
        self.awake.add(graph.name)
        self.opened.append(graph.name)
        self.most = max(self.most, len(self.awake))
        return session


def decoder_of(bundle: Path, engine: Any, preset: str = "fast") -> Decoder:
    opened = Bundle.open(bundle)
    return Decoder(opened, opened.subject(), engine, preset, CaptionOptions())


def test_decodes_are_the_same_with_one_graph_in_memory(tiny: Any, tiny_template: Path) -> None:
    ordinary = decoder_of(tiny_template, create_engine("onnxruntime", 1))
    counting = Counting()
    frugal = decoder_of(tiny_template, OnDemandEngine(counting))
    for number in range(3):
        want = ordinary.decode(tiny.scan(number), seed=number)
        got = frugal.decode(tiny.scan(number), seed=number)
        np.testing.assert_array_equal(got.image, want.image)
        assert (got.caption, got.tokens) == (want.caption, want.tokens)
        assert not counting.awake
    assert counting.most == 1
    assert counting.opened.count("unet_image_step") == 3


@pytest.mark.parametrize("inputs", [("text_context",), ("image_latent", "text_latent")])
def test_ablations_are_the_same(tiny: Any, tiny_template: Path, inputs: tuple[str, ...]) -> None:
    ordinary = decoder_of(tiny_template, create_engine("onnxruntime", 1))
    frugal = decoder_of(tiny_template, OnDemandEngine(OnnxRuntimeEngine(1)))
    want, got = (each.decode(tiny.scan(), seed=1, inputs=inputs) for each in (ordinary, frugal))
    np.testing.assert_array_equal(got.latents["image"], want.latents["image"])
    np.testing.assert_array_equal(got.image, want.image)
    assert got.caption == want.caption


def test_what_was_fed_back_survives_a_rest(tiny_template: Path) -> None:
    graph = Bundle.open(tiny_template).graph("unet_image_step")
    rng = np.random.default_rng(0)
    values = {spec.name: rng.standard_normal(spec.sized(1)).astype(spec.dtype) for spec in graph.inputs}
    outcomes = []
    for engine, rests in ((OnnxRuntimeEngine(1), False), (OnDemandEngine(OnnxRuntimeEngine(1)), True)):
        session = engine.open(graph)
        for name, value in values.items():
            session.write(name, value)
        session.run()
        if rests:
            session.rest()
        between = session.read("next_latent")
        session.run()
        outcomes.append((between, session.read("next_latent"), session.read("x0"), session.read("latent")))
    for plain, rested in zip(*outcomes, strict=True):
        np.testing.assert_array_equal(plain, rested)


def test_it_says_what_it_is() -> None:
    assert OnDemandEngine(OnnxRuntimeEngine(1)).describe()["memory"] == "low"
    assert OnDemandEngine(OnnxRuntimeEngine(1)).name == "onnxruntime"
