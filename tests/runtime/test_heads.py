"""A subject's heads, on the host and on an engine: what they give a decode, and whose fault it is where they cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import create_engine
from unibrain_rt.errors import BundleError, InputError
from unibrain_rt.flows import CONTEXTS
from unibrain_rt.heads import DeviceHeads, Heads, HostHeads
from unibrain_rt.ridge_graph import ridge_graph

pytest.importorskip("onnxruntime")

START = {"image": np.array([0.6, 0.8], np.float32), "text": np.array([1.0, 0.0], np.float32)}


@pytest.fixture
def bundle(tiny_template: Path) -> Bundle:
    return Bundle.open(tiny_template)


@pytest.fixture(params=["host", "device"])
def heads(request: pytest.FixtureRequest, bundle: Bundle) -> Heads:
    subject = bundle.subject()
    unconditional = dict(zip(CONTEXTS, bundle.unconditional_contexts(), strict=True))
    if request.param == "host":
        return HostHeads(subject, unconditional, START)  # type: ignore[arg-type]
    graph = ridge_graph(bundle, subject)
    assert graph is not None
    session = create_engine("onnxruntime", 1).open(graph)
    for name, context in unconditional.items():
        session.write(f"unconditional_{name}", context)
    return DeviceHeads(subject, session, START)  # type: ignore[arg-type]


def test_they_give_all_that_a_decode_starts_from(heads: Heads, bundle: Bundle, tiny: Any) -> None:
    subject = bundle.subject()
    noise: Any = {
        flow: np.random.default_rng(1).standard_normal((1, *subject.head_shape(f"{flow}_latent")), np.float32)
        for flow in START
    }
    program = create_engine("onnxruntime", 1).program(heads.calls)
    told: list[int] = []
    for number in range(2):
        expected = {name: head[0] for name, head in subject.predict(tiny.scan(number)).items()}
        heads.begin(tiny.scan(number), noise)
        program.start(told.append)
        program.finish()
        predictions = heads.predictions()
        assert predictions.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_allclose(predictions[name], values, rtol=1e-4, atol=1e-5)
        for flow, (signal, spread) in START.items():
            latent = expected[f"{flow}_latent"]
            np.testing.assert_allclose(heads.output(f"{flow}_latent")[0], latent, rtol=1e-4, atol=1e-5)
            noised = signal * latent + spread * noise[flow][0]
            np.testing.assert_allclose(heads.output(f"noised_{flow}_latent")[0], noised, rtol=1e-4, atol=1e-5)
        for name, unconditional in zip(CONTEXTS, bundle.unconditional_contexts(), strict=True):
            guiding = heads.output(f"guiding_{name}")
            np.testing.assert_array_equal(guiding[0], unconditional[0])
            np.testing.assert_allclose(guiding[1], expected[name], rtol=1e-4, atol=1e-5)
    assert told == [], "it is no denoising step"


def test_what_is_not_finite_is_whose_fault_it_is(heads: Heads, bundle: Bundle) -> None:
    subject = bundle.subject()

    def run(betas: np.ndarray[Any, Any]) -> None:
        heads.begin(betas, {})
        for call in heads.calls:
            call.session.run()
        heads.predictions()

    with pytest.raises(InputError, match="standard deviations from those of"):
        run(np.full(subject.voxels, 2e38, np.float32) * subject.voxel_std)
    for factors in subject._factors.values():
        scale = factors[-1].scale
        assert scale is None or scale.size
    if isinstance(heads, DeviceHeads):
        heads._z = np.zeros((1, subject.voxels), np.float32)
        with pytest.raises(BundleError, match="gives values that are not finite"):
            heads.predictions()
