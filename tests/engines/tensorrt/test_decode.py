"""Whole decodes through the TensorRT engine, on stand-ins that compute, against ONNX Runtime's on the CPU."""

from __future__ import annotations

import dataclasses
import gc
import importlib
import json
import shutil
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
from unibrain_rt.engines import Engine, EngineError, GraphSpec, NotFiniteError, create_engine
from unibrain_rt.engines.cuda.runtime import Cuda
from unibrain_rt.engines.on_demand import OnDemandEngine
from unibrain_rt.engines.repetition import BLOCK
from unibrain_rt.engines.tensorrt import tensorrt_engine as engine_module
from unibrain_rt.errors import BundleError, InputError
from unibrain_rt.flows import INPUTS
from unibrain_rt.reconstruction import Reconstruction
from unibrain_rt.ridge_graph import ridge_graphs
from unibrain_rt.sessions import decode_graphs
from unibrain_rt.stages import Stages
from unibrain_rt.subject_files import GRAPH_FILE, TENSOR_FILE
from unibrain_rt.tensor_file import tensor_offsets

onnx = pytest.importorskip("onnx")
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
    subjects = [bundle.subject(name) for name in bundle.subjects]
    for graph, free in decode_graphs(bundle, [PRESET]) + ridge_graphs(bundle, subjects):
        stand.engine.build(graph, free)
    engine: Engine = stand.engine
    return engine


def stages_of(decoder: Decoder) -> Stages:
    return decoder._stages_of(decoder._sessions[0], INPUTS)


def scans_of(bundle: Bundle, count: int) -> Iterator[np.ndarray[Any, Any]]:
    voxels = bundle.subject(None).voxels
    for number in range(count):
        yield np.random.default_rng(number).standard_normal(voxels).astype(np.float32)


@pytest.fixture(params=["tiny", "phantom"])
def bundle(request: pytest.FixtureRequest, tiny: Any, tmp_path: Path) -> Bundle:
    """Subjects with a graph of their heads."""
    from unibrain_rt.export.subjects.ridge.graph import write_ridge_graph

    name = "tiny_template" if request.param == "tiny" else "phantom_bundle"
    folder = tmp_path / "bundle"
    shutil.copytree(request.getfixturevalue(name), folder)
    for subject in (folder / "subjects").iterdir():
        write_ridge_graph(subject)
    tiny.seal(folder)
    return Bundle.open(folder)


@pytest.fixture
def older(tiny: Any, tiny_bundle: Path) -> Bundle:
    """A bundle whose subject is from before there were graphs of heads."""
    (tiny_bundle / "subjects" / "sub-01" / GRAPH_FILE).unlink()
    tiny.seal(tiny_bundle)
    return Bundle.open(tiny_bundle)


def check_same(found: Reconstruction, expected: Reconstruction) -> None:
    """Alike but for the order in which the heads' sums are added up: it moves single pixels by a level of 256."""
    apart = np.abs(found.image.astype(int) - expected.image)
    assert apart.max() <= 1
    assert apart.mean() < 0.02
    assert (found.caption, found.tokens) == (expected.caption, expected.tokens)
    assert found.predictions.keys() == expected.predictions.keys()
    for name, values in expected.predictions.items():
        assert found.predictions[name].dtype == values.dtype
        np.testing.assert_allclose(found.predictions[name], values, rtol=1e-4, atol=1e-4)


def test_decodes_are_those_of_the_cpu(stand: Any, bundle: Bundle) -> None:
    """The first launches kernel by kernel, the second captures and checks, the others replay."""
    ours, reference = decoder(bundle, built(stand, bundle)), decoder(bundle, create_engine("onnxruntime", 1))
    for seed, scan in enumerate(scans_of(bundle, 4)):
        place = len(stand.fake.trace)
        found = ours.decode(scan, seed=seed)
        trace = stand.since(place)
        expected = reference.decode(scan, seed=seed)
        check_same(found, expected)
        assert list(found.timings_ms) == list(expected.timings_ms)
        assert all(spent > 0 for spent in found.timings_ms.values())
    assert not [line for line in stand.told if "CUDA graph" in line]
    check_replay(trace, ours, len(found.tokens))


def test_an_older_subject_is_decoded_as_before(stand: Any, older: Bundle) -> None:
    """Its heads on the host, bit for bit."""
    ours, reference = decoder(older, built(stand, older)), decoder(older, create_engine("onnxruntime", 1))
    for seed, scan in enumerate(scans_of(older, 4)):
        place = len(stand.fake.trace)
        found, expected = ours.decode(scan, seed=seed), reference.decode(scan, seed=seed)
        np.testing.assert_array_equal(found.image, expected.image)
        assert found.tokens == expected.tokens
        for name, values in expected.predictions.items():
            np.testing.assert_array_equal(found.predictions[name], values)
    launched = [details["nodes"] for kind, details in stand.since(place) if kind == "cudaGraphLaunch"]
    steps = {flow: len(loop) for flow, loop in stages_of(ours).loops.items()}
    # Contexts, steps and picture, with a mark before the first and after each.
    assert launched[:2] == [steps["image"] + 2 + 4, steps["text"] + 2]
    assert "ridge" not in {details.get("name") for _, details in stand.fake.trace}


def check_replay(trace: list[tuple[str, dict[str, Any]]], ours: Decoder, tokens: int) -> None:
    """Two programs, a launch each, on two streams beside the memory's; nothing goes to or from the host in between."""
    launched = [(place, details) for place, (kind, details) in enumerate(trace) if kind == "cudaGraphLaunch"]
    steps = {flow: len(loop) for flow, loop in stages_of(ours).loops.items()}
    programs, blocks = launched[:2], [details["nodes"] for _, details in launched[2:]]
    # Heads, contexts, steps and picture, with a mark before the first and after each.
    assert [details["nodes"] for _, details in programs] == [steps["image"] + 3 + 5, steps["text"] + 2]
    assert len({details["stream"] for _, details in launched}) == 3
    if blocks != [1] * (
        tokens - 1
    ):  # of graphs that leave the choice to the host, one for each token but <BOS>
        assert blocks == [BLOCK] * -(-(tokens - 1) // BLOCK)
    kernels = [(place, details) for place, (kind, details) in enumerate(trace) if kind == "done:kernel"]
    for flow, (_, launch), name in zip(
        ("image", "text"), programs, ("unet_image_step", "unet_text_step"), strict=True
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
        heads = next(details["addresses"] for _, details in kernels if details["name"] == "ridge")
        place = "noised_image_latent" if flow == "image" else "noised_text_latent"
        assert addresses[0]["latent"] == heads[place], "read where the heads leave it"
    copies = [
        (place, details["direction"], details["size"])
        for place, (kind, details) in enumerate(trace)
        if kind == "done:copy"
    ]
    noise = {flow: 4 * int(np.prod(loop.shape)) for flow, loop in stages_of(ours).loops.items()}
    begun = [size for place, way, size in copies if place < programs[0][0] and way == "HostToDevice"]
    assert sorted(begun) == sorted([4 * ours.subject.voxels, *noise.values()]), "voxels and noise in"
    # Both are begun before anything is awaited; the caption is written meanwhile, and of the image nothing is read
    # before the picture is there.
    between = {kind for kind, _ in trace[programs[0][0] : programs[1][0]]}
    assert not {kind for kind in between if kind.startswith(("cudaMemcpy", "cudaMemset", "done"))}
    assert not {kind for kind in between if "Synchronize" in kind}
    picture = max(place for place, details in kernels if details["name"] == "autokl_decode")
    of_the_image = {
        4 * int(np.prod(stages_of(ours).loops["image"].shape)),
        ours._sessions[0].autokl.read("image").nbytes,
    }
    early = [size for place, way, size in copies if programs[0][0] < place < picture]
    assert not of_the_image & set(early)


def test_the_caption_waits_for_the_contexts_alone(stand: Any, bundle: Bundle) -> None:
    """Its steps are done without a step of the image, if it is the one that is awaited first."""
    ours = decoder(bundle, built(stand, bundle))
    scans = list(scans_of(bundle, 4))
    for seed, scan in enumerate(scans):
        expected = ours.decode(scan, seed=seed)
    stages = stages_of(ours)
    stages.begin(scans[-1], 3)
    place = len(stand.fake.trace)
    with stages.running(None):
        latent = stages.text_latent()
        done = [details["name"] for kind, details in stand.since(place) if kind == "done:kernel"]
        assert stages.write(latent, np.random.default_rng(0))[0] == expected.caption
    assert done[:2] == ["ridge", "unet_context"]
    assert set(done[2:]) == {"unet_text_step"}
    np.testing.assert_array_equal(stages.picture(), expected.image)


def test_another_subject_has_a_graph_of_its_own(stand: Any, tiny: Any, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny.make_bundle(tmp_path / "two", ("sub-01", "sub-02")))
    reference = Decoder(
        bundle, bundle.subject("sub-01"), create_engine("onnxruntime", 1), PRESET, CaptionOptions()
    )
    first = Decoder(bundle, bundle.subject("sub-01"), built(stand, bundle), PRESET, CaptionOptions())
    pairs = {"sub-01": (first, reference)}
    pairs["sub-02"] = tuple(each.reading(bundle.subject("sub-02")) for each in (first, reference))  # type: ignore[assignment]
    images = {}
    for seed in range(3):
        for name, (ours, theirs) in pairs.items():
            found = ours.decode(tiny.scan(seed), seed=seed)
            check_same(found, theirs.decode(tiny.scan(seed), seed=seed))
            assert found.subject == name
            images[name] = found.image
    assert np.abs(images["sub-01"].astype(int) - images["sub-02"]).max() > 1
    kernels = [details for kind, details in stand.fake.trace if kind == "done:kernel"]
    heads = {details["addresses"]["voxels"] for details in kernels if details["name"] == "ridge"}
    assert len(heads) == 2


def test_a_subject_without_a_plan_is_told_what_to_build(stand: Any, tiny_template: Path) -> None:
    """Plans of the bundle's graphs alone are not all that a decode runs."""
    bundle = Bundle.open(tiny_template)
    for graph, free in decode_graphs(bundle, [PRESET]):
        stand.engine.build(graph, free)
    with pytest.raises(
        EngineError, match="ridge_sub-01: no plan for tensorrt .never built.; run: unibrain-rt build"
    ):
        decoder(bundle, stand.engine)


def test_a_scan_far_from_the_subject_is_the_scans_fault(stand: Any, tiny_template: Path) -> None:
    """As on the host; what is not finite in the loops after it is no reason to compute in fp32."""
    bundle = Bundle.open(tiny_template)
    ours = decoder(bundle, built(stand, bundle))
    far = np.full(bundle.subject(None).voxels, 2e38, np.float32) * bundle.subject(None).voxel_std
    for _ in range(3):
        with pytest.raises(InputError, match="standard deviations from those of"):
            ours.decode(far)
        ours.decode(next(scans_of(bundle, 1)))


def test_heads_that_are_not_finite_are_named(stand: Any, tiny: Any, tiny_bundle: Path) -> None:
    path = tiny_bundle / "subjects" / "sub-01" / TENSOR_FILE
    raw = bytearray(path.read_bytes())
    scale = tensor_offsets(path)["image_context.left_scale"]
    raw[scale : scale + 4] = np.float32(3e38).tobytes()
    path.write_bytes(raw)
    tiny.seal(tiny_bundle)
    bundle = Bundle.open(tiny_bundle)
    ours = decoder(bundle, built(stand, bundle))
    for _ in range(3):
        with pytest.raises(BundleError, match="gives values that are not finite"):
            ours.decode(tiny.scan())


def test_a_graph_that_leaves_its_range_is_done_again_in_fp32(
    stand: Any, tiny: Any, tiny_bundle: Path, edit_weights: Callable[[Path], None]
) -> None:
    """With heads on the device as without; the twin here is the graph as it was."""
    graphs = tiny_bundle / "graphs"
    whole = (graphs / tiny.WEIGHTS).read_bytes()
    twin = onnx.load(graphs / "unet_context.onnx", load_external_data=False)
    for tensor in twin.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "twin.weights"
    (graphs / "unet_context.fp32.onnx").write_bytes(twin.SerializeToString())
    (graphs / "twin.weights").write_bytes(whole)
    manifest = json.loads((tiny_bundle / "bundle.json").read_text())
    manifest["graphs"]["unet_context"]["fallback"] = "graphs/unet_context.fp32.onnx"
    tiny.seal(tiny_bundle, graphs=manifest["graphs"])
    sound = Bundle.open(tiny_bundle)
    scan = tiny.scan()
    expected = decoder(sound, create_engine("onnxruntime", 1)).decode(scan)
    edit_weights(tiny_bundle)
    bundle = Bundle.open(tiny_bundle)
    engine = built(stand, bundle)
    spec = bundle.graph("unet_context")
    assert spec.fallback is not None
    stand.engine.build(dataclasses.replace(spec, path=spec.fallback, fallback=None))
    ours = decoder(bundle, engine)
    for _ in range(3):
        found = ours.decode(scan)
        check_same(found, expected)
        assert found.fallbacks == ("unet_context",)


def test_both_programs_are_begun_before_either_is_awaited(stand: Any, tiny_template: Path) -> None:
    bundle = Bundle.open(tiny_template)
    ours = decoder(bundle, built(stand, bundle))
    scan = next(scans_of(bundle, 1))
    for _ in range(3):
        place = len(stand.fake.trace)
        ours.decode(scan)
    kinds = [kind for kind, _ in stand.since(place)]
    launches = [number for number, kind in enumerate(kinds) if kind == "cudaGraphLaunch"]
    assert launches[1] < kinds.index("cudaEventSynchronize")


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
        check_same(found, expected)
    lines = [line for line in stand.told if "no CUDA graph" in line]
    picture = "ridge_sub-01 and unet_context and unet_image_step and autokl_decode: "
    assert any(line.startswith(picture) for line in lines)
    assert len(lines) == len(set(lines)), "each is said once"


def test_decodes_without_capture_are_the_same(tmp_path: Path, tiny_template: Path) -> None:
    stand = standin.StandIn(tmp_path / "cache", capture=False)
    bundle = Bundle.open(tiny_template)
    ours, reference = decoder(bundle, built(stand, bundle)), decoder(bundle, create_engine("onnxruntime", 1))
    for seed, scan in enumerate(scans_of(bundle, 3)):
        check_same(ours.decode(scan, seed=seed), reference.decode(scan, seed=seed))
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
            check_same(found, expected)


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
        stages_of(ours).loops["image"]
    )


ABLATIONS = (
    ("image_latent", "text_latent"),
    ("image_context",),
    ("text_context",),
    ("image_context", "text_context"),
    ("image_latent", "text_latent", "text_context"),
)


def test_ablations_are_those_of_the_cpu_between_whole_decodes(stand: Any, tiny_template: Path) -> None:
    bundle = Bundle.open(tiny_template)
    pair = decoder(bundle, built(stand, bundle)), decoder(bundle, create_engine("onnxruntime", 1))
    for inputs in ABLATIONS:
        for graph, free in ablation_graphs(bundle, inputs):
            stand.engine.build(graph, free)
    for seed, scan in enumerate(scans_of(bundle, 4)):
        check_same(*(each.decode(scan, seed=seed) for each in pair))
        for inputs in ABLATIONS:
            found, expected = (each.decode(scan, seed=seed, inputs=inputs) for each in pair)
            check_same(found, expected)
            assert found.inputs == inputs


def test_ablations_of_an_older_subject_are_those_of_the_cpu(stand: Any, older: Bundle) -> None:
    pair = decoder(older, built(stand, older)), decoder(older, create_engine("onnxruntime", 1))
    for inputs in ABLATIONS:
        for graph, free in ablation_graphs(older, inputs):
            stand.engine.build(graph, free)
    for seed, scan in enumerate(scans_of(older, 3)):
        for inputs in (INPUTS, *ABLATIONS):
            found, expected = (each.decode(scan, seed=seed, inputs=inputs) for each in pair)
            np.testing.assert_array_equal(found.image, expected.image)
            assert found.tokens == expected.tokens


def ablation_graphs(bundle: Bundle, inputs: tuple[str, ...]) -> list[tuple[GraphSpec, int]]:
    """The time graph at the number of steps that an ablation runs: from noise alone, they are more."""
    tables = [bundle.preset(PRESET).table(bundle.schedule, flow, inputs) for flow in bundle.flows]
    return [(bundle.graph("unet_time"), sum(len(table.timesteps) for table in tables))]


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
        with pytest.raises(NotFiniteError, match="the text loop gave numbers that are not finite"):
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
