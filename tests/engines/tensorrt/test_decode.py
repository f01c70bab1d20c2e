"""Whole decodes through the TensorRT engine, on stand-ins that compute, against ONNX Runtime's on the CPU."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unibrain_rt.bundle import Bundle
from unibrain_rt.captions import CaptionOptions
from unibrain_rt.decoder import Decoder
from unibrain_rt.engines import Engine, NotFiniteError, create_engine
from unibrain_rt.engines.cuda.runtime import Cuda
from unibrain_rt.engines.on_demand import OnDemandEngine
from unibrain_rt.engines.tensorrt import engine as engine_module
from unibrain_rt.stages import decode_graphs

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
standin = importlib.import_module("standin")
PRESET = "fast"


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Any]:
    made = standin.StandIn(tmp_path / "cache")
    yield made
    made.engine = None
    gc.collect()
    made.fake.check()


def decoder(bundle: Bundle, engine: Engine, captions: CaptionOptions | None = None) -> Decoder:
    return Decoder(bundle, bundle.subject(None), engine, PRESET, captions or CaptionOptions())


def built(stand: Any, bundle: Bundle) -> Engine:
    for graph, free in decode_graphs(bundle, [PRESET]):
        stand.engine.build(graph, free)
    engine: Engine = stand.engine
    return engine


def scans_of(bundle: Bundle, count: int) -> Iterator[np.ndarray[Any, Any]]:
    voxels = bundle.subject(None).voxels
    for number in range(count):
        yield np.random.default_rng(number).standard_normal(voxels).astype(np.float32)


@pytest.fixture(params=["tiny", "phantom"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    name = "tiny_template" if request.param == "tiny" else "phantom_bundle"
    return Bundle.open(request.getfixturevalue(name))


def test_decodes_are_those_of_the_cpu(stand: Any, bundle: Bundle) -> None:
    """The first launches kernel by kernel, the second captures and checks, the others replay."""
    ours, reference = decoder(bundle, built(stand, bundle)), decoder(bundle, create_engine("onnxruntime", 1))
    for seed, scan in enumerate(scans_of(bundle, 4)):
        place = len(stand.fake.trace)
        found, expected = ours.decode(scan, seed=seed), reference.decode(scan, seed=seed)
        np.testing.assert_array_equal(found.image, expected.image)
        assert (found.caption, found.tokens) == (expected.caption, expected.tokens)
        assert found.timings_ms.keys() == expected.timings_ms.keys()
        trace = stand.since(place)
    assert not [line for line in stand.told if "CUDA graph" in line]
    check_replay(trace, ours, len(found.tokens))


def check_replay(trace: list[tuple[str, dict[str, Any]]], ours: Decoder, tokens: int) -> None:
    """Two programs, a launch each, on two streams beside the memory's; nothing in between but the next one's start."""
    launched = [(place, details) for place, (kind, details) in enumerate(trace) if kind == "cudaGraphLaunch"]
    steps = {flow: len(loop) for flow, loop in ours._stages.loops.items()}
    programs = [(place, details) for place, details in launched if details["nodes"] > 1]
    assert [details["nodes"] for _, details in programs] == [steps["image"] + 1 + 3, steps["caption"] + 2]
    assert len({details["stream"] for _, details in launched}) == 3
    # The context's run before them, and one for each token but <BOS> after them.
    assert len(launched) == 1 + 2 + tokens - 1
    kernels = [(place, details) for place, (kind, details) in enumerate(trace) if kind == "done:kernel"]
    for flow, (_, launch), name in zip(
        ("image", "caption"), programs, ("unet_image_step", "unet_text_step"), strict=True
    ):
        mine = [(place, details) for place, details in kernels if details["name"] == name]
        assert len(mine) == steps[flow]
        assert {details["stream"] for _, details in mine} == {launch["stream"]}
        between = {kind for kind, _ in trace[mine[0][0] : mine[-1][0] + 1]}
        assert between == {"done:kernel"}, "no copy, no wait"
        addresses = [details["addresses"] for _, details in mine]
        for table in ("coefficients", "modulation"):
            strides = set(np.diff([each[table] for each in addresses]).tolist())
            assert len(strides) == 1
            assert strides.pop() > 0
        for earlier, later in pairwise(addresses):
            assert later["latent"] == earlier["next_latent"] != earlier["latent"]
            assert later["previous_x0"] == earlier["x0"]
    # The host may write while a program runs, but only the caption's latents.
    start, second = programs[0][0], programs[1][0]
    copies = [details["size"] for kind, details in trace[start:second] if kind == "cudaMemcpyAsync"]
    assert len(copies) <= 1


def test_both_programs_are_begun_before_either_is_awaited(stand: Any, tiny_template: Path) -> None:
    bundle = Bundle.open(tiny_template)
    ours = decoder(bundle, built(stand, bundle))
    scan = next(scans_of(bundle, 1))
    for _ in range(3):
        place = len(stand.fake.trace)
        ours.decode(scan)
    kinds = [kind for kind, _ in stand.since(place)]
    launches = [number for number, kind in enumerate(kinds) if kind == "cudaGraphLaunch"]
    assert launches[2] < kinds.index("cudaEventSynchronize")


@pytest.mark.parametrize("how", ["deaf", "stale", "lossy", "refused"])
def test_without_graphs_the_decode_is_the_same(stand: Any, tiny_template: Path, how: str) -> None:
    bundle = Bundle.open(tiny_template)
    ours, reference = decoder(bundle, built(stand, bundle)), decoder(bundle, create_engine("onnxruntime", 1))
    if how == "refused":
        stand.library.during_capture = lambda: False
    else:
        setattr(stand.fake, how, True)
    for seed, scan in enumerate(scans_of(bundle, 3)):
        found, expected = ours.decode(scan, seed=seed), reference.decode(scan, seed=seed)
        np.testing.assert_array_equal(found.image, expected.image)
        assert found.caption == expected.caption
    lines = [line for line in stand.told if "no CUDA graph" in line]
    assert any(line.startswith("unet_image_step and autokl_decode: ") for line in lines)
    assert len(lines) == len(set(lines)), "each is said once"


def test_decodes_without_capture_are_the_same(tmp_path: Path, tiny_template: Path) -> None:
    stand = standin.StandIn(tmp_path / "cache", capture=False)
    bundle = Bundle.open(tiny_template)
    ours, reference = decoder(bundle, built(stand, bundle)), decoder(bundle, create_engine("onnxruntime", 1))
    for seed, scan in enumerate(scans_of(bundle, 3)):
        np.testing.assert_array_equal(
            ours.decode(scan, seed=seed).image, reference.decode(scan, seed=seed).image
        )
    assert "cudaGraphLaunch" not in stand.fake.kinds()


def test_sampled_captions_and_other_presets(stand: Any, tiny_template: Path) -> None:
    bundle = Bundle.open(tiny_template)
    options = CaptionOptions(temperature=0.9, top_p=0.8)
    ours = decoder(bundle, built(stand, bundle), options)
    reference = decoder(bundle, create_engine("onnxruntime", 1), options)
    preset = bundle.preset("realtime")
    for graph, free in decode_graphs(bundle, ["realtime"]):
        stand.engine.build(graph, free)
    for one, other in (
        (ours, reference),
        (ours.sampling(preset, "realtime"), reference.sampling(preset, "realtime")),
    ):
        for seed, scan in enumerate(scans_of(bundle, 3)):
            found, expected = one.decode(scan, seed=seed), other.decode(scan, seed=seed)
            np.testing.assert_array_equal(found.image, expected.image)
            assert found.tokens == expected.tokens


def test_low_memory_gives_the_same(stand: Any, tiny_template: Path) -> None:
    bundle = Bundle.open(tiny_template)
    ours = decoder(bundle, OnDemandEngine(built(stand, bundle)))
    reference = decoder(bundle, create_engine("onnxruntime", 1))
    for seed, scan in enumerate(scans_of(bundle, 2)):
        found, expected = ours.decode(scan, seed=seed), reference.decode(scan, seed=seed)
        np.testing.assert_array_equal(found.image, expected.image)
        assert found.caption == expected.caption


@pytest.mark.parametrize("low_memory", [False, True])
def test_a_decoder_on_little_memory_captures_nothing(
    stand: Any, tiny_template: Path, monkeypatch: pytest.MonkeyPatch, low_memory: bool
) -> None:
    """The graph that is let go after a stage would take its CUDA graphs with it, scan by scan."""
    bundle = Bundle.open(tiny_template)
    cache = built(stand, bundle).cache.folder
    monkeypatch.setitem(sys.modules, "tensorrt", stand.library)
    monkeypatch.setattr(engine_module, "Cuda", lambda bindings=None: Cuda(stand.fake))
    ours = Decoder.open(bundle, preset=PRESET, engine="tensorrt", cache=cache, low_memory=low_memory)
    reference = decoder(bundle, create_engine("onnxruntime", 1))
    for seed, scan in enumerate(scans_of(bundle, 3)):
        found, expected = ours.decode(scan, seed=seed), reference.decode(scan, seed=seed)
        np.testing.assert_array_equal(found.image, expected.image)
        assert found.caption == expected.caption
    kinds = stand.fake.kinds()
    assert (kinds.count("cudaStreamBeginCapture") == 0) == low_memory
    assert (kinds.count("cudaGraphLaunch") == 0) == low_memory
    # All steps were run, whoever launched them.
    steps = [details for kind, details in stand.fake.trace if kind == "done:kernel"]
    assert sum(details["name"] == "unet_image_step" for details in steps) >= 3 * len(
        ours._stages.loops["image"]
    )


def test_the_parts_of_a_decode_run_alone(stand: Any, tiny_template: Path) -> None:
    bundle = Bundle.open(tiny_template)
    pair = decoder(bundle, built(stand, bundle)), decoder(bundle, create_engine("onnxruntime", 1))
    for seed, scan in enumerate(scans_of(bundle, 3)):
        pictures, words = [], []
        for each in pair:
            heads = each.predict(scan)
            each.guide(heads)
            pictures.append(each.render(each.denoise("image", heads["image_latent"], seed)))
            words.append(each.describe(each.denoise("caption", heads["text_latent"], seed), seed))
        np.testing.assert_array_equal(*pictures)
        assert words[0] == words[1]


@pytest.mark.parametrize("decodes", [0, 1, 2])
def test_numbers_that_are_not_finite_are_found(
    stand: Any, tiny_bundle: Path, tiny: Any, decodes: int, edit_weights: Callable[[Path], None]
) -> None:
    """In the plain run, in the one that is captured, and in a replay."""
    edit_weights(tiny_bundle)
    bundle = Bundle.open(tiny_bundle)
    ours = decoder(bundle, built(stand, bundle))
    scans = list(scans_of(bundle, decodes + 1))
    for _ in scans:
        with pytest.raises(NotFiniteError, match="the image loop gave numbers that are not finite"):
            ours.decode(scans[0])
    assert not [line for line in stand.told if "CUDA graph" in line]


@pytest.fixture
def edit_weights(tiny: Any) -> Callable[[Path], None]:
    """Makes what a bundle's contexts say infinite."""

    def edit(folder: Path) -> None:
        path = folder / "graphs" / tiny.WEIGHTS
        weights = np.frombuffer(path.read_bytes(), np.float32).copy()
        weights[: len(weights) // 4] = np.inf
        path.write_bytes(weights.tobytes())
        tiny.seal(folder)

    return edit
