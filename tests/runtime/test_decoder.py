"""From voxels to a picture and a caption, on a tiny bundle of real graphs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from unibrain_rt import Decoder, Reconstruction
from unibrain_rt.bundle import Bundle
from unibrain_rt.captions import CaptionOptions
from unibrain_rt.engines import EngineError
from unibrain_rt.errors import BundleError, InputError
from unibrain_rt.flows import INPUTS
from unibrain_rt.samplers import COLUMNS, seeded_noise
from unibrain_rt.subject import Subject

Open = Callable[..., Decoder]


@pytest.fixture
def open_decoder() -> Open:
    def opened(bundle: Path, **options: Any) -> Decoder:
        return Decoder.open(bundle, **{"threads": 1, "preset": "realtime", **options})

    return opened


@pytest.fixture(scope="module")
def decoder(tiny_template: Path) -> Decoder:
    return Decoder.open(tiny_template, threads=1)


def same(one: Reconstruction, other: Reconstruction) -> bool:
    return (
        one.caption == other.caption and one.tokens == other.tokens and np.array_equal(one.image, other.image)
    )


# --- What comes out -----------------------------------------------------------------------------------------


def test_a_scan_becomes_a_picture_and_a_caption(decoder: Decoder, tiny: Any) -> None:
    result = decoder.decode(tiny.scan(), seed=3)
    assert result.image.shape == (8, 8, 3)
    assert result.image.dtype == np.uint8
    assert result.image.std() > 10
    assert isinstance(result.caption, str)
    assert result.caption
    assert (result.seed, result.preset, result.engine) == (3, "paper", "onnxruntime")
    assert (result.bundle, result.subject) == ("tiny", "sub-01")
    assert list(result.timings_ms) == [
        "ridge",
        "context",
        "image_loop",
        "autokl",
        "text_loop",
        "caption",
        "total",
    ]
    assert all(value > 0 for value in result.timings_ms.values())
    assert result.timings_ms["total"] >= sum(list(result.timings_ms.values())[:-1])
    assert result.tokens[0] == len(tiny.WORDS) + 1
    assert len(result.tokens) <= tiny.SLOTS + 1
    assert {name: value.shape for name, value in result.predictions.items()} == {
        "image_latent": (4, 4, 4),
        "text_latent": (6,),
        "image_context": (5, 8),
        "text_context": (3, 8),
    }


def test_a_record_is_plain_json(decoder: Decoder, tiny: Any) -> None:
    record = json.loads(json.dumps(decoder.decode(tiny.scan()).record()))
    assert set(record) == {
        "caption",
        "seed",
        "preset",
        "engine",
        "bundle",
        "subject",
        "image_size",
        "timings_ms",
    }
    assert record["image_size"] == [8, 8]


def test_what_is_decoded_is_the_papers_procedure(decoder: Decoder, tiny: Any) -> None:
    """The tiny graphs' formulas, written out again in numpy: ridge, contexts, 37 steps of DDIM, the picture."""
    subject, bundle = decoder.subject, decoder.bundle
    predicted = {name: head[0] for name, head in subject.predict(tiny.scan()[None]).items()}
    nothing = dict(zip(("image", "text"), bundle.unconditional_contexts(), strict=True))
    onnx = pytest.importorskip("onnx")

    def constants(name: str) -> dict[str, np.ndarray[Any, Any]]:
        model = onnx.load(bundle.graph(name).path)
        return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}

    weights = constants("unet_context")
    said = {}
    for name, tokens in tiny.TOKENS.items():
        context = np.concatenate([nothing[name], predicted[f"{name}_context"][None]])
        keys, values = (
            (context @ weights[f"{name}_context.0.{part}.weight"]).reshape(2, tokens, tiny.HEADS, -1)
            for part in ("keys", "values")
        )
        said[name] = (keys * values).mean(axis=(1, 2, 3))
    table = bundle.preset("paper").table(bundle.schedule, "image")
    assert len(table.timesteps) == 37
    noise = seeded_noise(5, 0, (4, 4, 4))
    alpha = table.alpha_bar_start
    latent = np.sqrt(alpha) * predicted["image_latent"] + np.sqrt(1 - alpha) * noise
    before = np.zeros_like(latent)
    frequencies = constants("unet_time")["image.frequencies"]
    for timestep, row in zip(table.timesteps, table.coefficients, strict=True):
        column = dict(zip(COLUMNS, row, strict=True))
        when = np.sin(timestep * frequencies).mean()
        mixed = said["text"] + column["image_ratio"] * (said["image"] - said["text"])
        without, given = (np.tanh(latent + shift + when) for shift in mixed)
        guided = without + column["guidance_scale"] * (given - without)
        x0 = column["x0_from_latent"] * latent + column["x0_from_noise"] * guided
        latent = (
            column["next_from_latent"] * latent
            + column["next_from_x0"] * x0
            + column["next_from_previous_x0"] * before
        )
        before = x0
    kernel = constants("autokl_decode")["kernel"][:, :, 0, 0]
    colours = np.einsum("oc,cyx->yxo", kernel, latent).repeat(2, axis=0).repeat(2, axis=1)
    expected = np.round(255 / (1 + np.exp(-colours)))
    found = decoder.decode(tiny.scan(), seed=5).image
    assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("preset", ["paper", "fast", "realtime"])
def test_progress_counts_every_step(open_decoder: Open, tiny: Any, tiny_template: Path, preset: str) -> None:
    decoder = open_decoder(tiny_template, preset=preset)
    done: list[int] = []
    decoder.decode(tiny.scan(), progress=done.append)
    assert sum(done) == decoder.steps
    table = decoder.bundle.preset(preset).table(decoder.bundle.schedule, "image")
    assert decoder.steps == 2 * len(table.timesteps)


# --- Reproducible -------------------------------------------------------------------------------------------


def test_a_scan_decodes_the_same_alone_and_among_many(
    decoder: Decoder, open_decoder: Open, tiny: Any, tiny_template: Path
) -> None:
    alone = [open_decoder(tiny_template, preset="paper").decode(tiny.scan(n), seed=1) for n in range(3)]
    among = [decoder.decode(tiny.scan(n), seed=1) for n in (2, 1, 0, 0, 1, 2)]
    for n, result in zip((2, 1, 0, 0, 1, 2), among, strict=True):
        assert same(result, alone[n])
        for name, value in result.predictions.items():
            np.testing.assert_array_equal(value, alone[n].predictions[name])
    assert not same(alone[0], alone[1])


def test_the_seed_changes_the_result(decoder: Decoder, tiny: Any) -> None:
    first = decoder.decode(tiny.scan(), seed=0)
    assert same(first, decoder.decode(tiny.scan()))
    others = [decoder.decode(tiny.scan(), seed=seed) for seed in (1, 2, 2**63 - 1)]
    assert all(not np.array_equal(first.image, other.image) for other in others)
    for other in others:
        np.testing.assert_array_equal(first.predictions["image_latent"], other.predictions["image_latent"])


@pytest.mark.parametrize("seed", [-1, 2**64, 0.5, True])
def test_what_is_no_seed_is_refused(decoder: Decoder, tiny: Any, seed: Any) -> None:
    with pytest.raises(InputError, match="seed must be a whole number"):
        decoder.decode(tiny.scan(), seed=seed)


def test_precisions_of_betas_agree(decoder: Decoder, tiny: Any) -> None:
    half = tiny.scan().astype(np.float16)
    results = [decoder.decode(half.astype(kind)) for kind in (np.float16, np.float32, np.float64)]
    assert same(results[0], results[1])
    assert same(results[0], results[2])
    exact = decoder.decode(tiny.scan())
    assert np.abs(exact.image.astype(int) - results[0].image).max() <= 2


def test_byte_order_and_strides_do_not_matter(decoder: Decoder, tiny: Any) -> None:
    expected = decoder.decode(tiny.scan())
    assert same(expected, decoder.decode(tiny.scan().astype(">f4")))
    assert same(expected, decoder.decode(np.repeat(tiny.scan(), 2)[::2]))
    read_only = tiny.scan()
    read_only.setflags(write=False)
    assert same(expected, decoder.decode(read_only))


def test_the_caller_keeps_the_voxels(decoder: Decoder, tiny: Any) -> None:
    voxels = tiny.scan()
    decoder.decode(voxels)
    np.testing.assert_array_equal(voxels, tiny.scan())


def test_both_contexts_and_the_scan_matter(decoder: Decoder, tiny: Any) -> None:
    first, second = decoder.decode(tiny.scan(0)), decoder.decode(tiny.scan(1))
    assert not np.array_equal(first.image, second.image)
    for name in first.predictions:
        assert not np.array_equal(first.predictions[name], second.predictions[name])


def test_subjects_have_their_own_heads(open_decoder: Open, tiny: Any, tmp_path: Path) -> None:
    bundle = tiny.make_bundle(tmp_path / "b", subjects=("sub-01", "sub-02"))
    one, two = (open_decoder(bundle, subject=name).decode(tiny.scan()) for name in ("sub-01", "sub-02"))
    assert (one.subject, two.subject) == ("sub-01", "sub-02")
    assert not np.array_equal(one.image, two.image)
    with pytest.raises(InputError, match="choose a subject"):
        open_decoder(bundle)


# --- Captions -----------------------------------------------------------------------------------------------


def test_sampled_captions_follow_the_seed(open_decoder: Open, tiny: Any, tiny_template: Path) -> None:
    options = CaptionOptions(temperature=3.0)
    decoder = open_decoder(tiny_template, captions=options)
    results = [decoder.decode(tiny.scan(), seed=seed) for seed in (1, 1, 2, 3, 4)]
    assert results[0].tokens == results[1].tokens
    assert len({result.tokens for result in results}) > 1


def test_a_caption_is_as_long_as_is_asked_for(open_decoder: Open, tiny: Any, tiny_template: Path) -> None:
    decoder = open_decoder(tiny_template, captions=CaptionOptions(max_tokens=3))
    assert all(len(decoder.decode(tiny.scan(n)).tokens) <= 3 for n in range(4))


def test_without_a_vocabulary_there_is_no_caption(open_decoder: Open, tiny: Any, tiny_bundle: Path) -> None:
    tiny.seal(tiny_bundle, tokenizers={})
    decoder = open_decoder(tiny_bundle)
    result = decoder.decode(tiny.scan())
    assert result.caption is None
    assert result.tokens == ()
    assert result.record()["caption"] is None
    assert decoder.steps == len(
        decoder.bundle.preset("realtime").table(decoder.bundle.schedule, "image").timesteps
    )


# --- Refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("voxels", "problem"),
    [
        (np.zeros((2, 20), np.float32), r"voxels must be one scan, \(voxels,\), found shape \(2, 20\)"),
        (np.float32(3), r"found shape \(\)"),
        (np.zeros(19, np.float32), "19 voxels, but subject 'sub-01' has 20"),
        (np.zeros(0, np.float32), "0 voxels"),
        (np.zeros(20, np.int16), "floating point, in % signal change, not int16"),
        (np.zeros(20, bool), "not bool"),
        (np.zeros(20, np.complex64), "not complex64"),
        (np.full(20, "x"), "not <U1"),
        (np.full(20, None), "not object"),
        (np.full(20, np.nan), "must be finite"),
        (np.full(20, np.inf, np.float32), "must be finite"),
        (np.full(20, 1e300), "not finite, or too large"),
        ([[1.0], [2.0]], "found shape"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_voxels_that_cannot_be_decoded(decoder: Decoder, voxels: Any, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        decoder.decode(voxels)


def test_a_list_of_numbers_is_a_scan(decoder: Decoder, tiny: Any) -> None:
    assert same(decoder.decode(tiny.scan().tolist()), decoder.decode(tiny.scan()))


@pytest.mark.parametrize(
    ("options", "error", "problem"),
    [
        ({"preset": "quick"}, InputError, "no preset 'quick'"),
        ({"subject": "sub-09"}, InputError, "no subject 'sub-09'"),
        ({"engine": "abacus"}, EngineError, "unknown engine 'abacus'"),
    ],
)
def test_names_the_bundle_does_not_have(
    open_decoder: Open, tiny_template: Path, options: dict[str, str], error: type[Exception], problem: str
) -> None:
    with pytest.raises(error, match=problem):
        open_decoder(tiny_template, **options)


def test_an_open_bundle_is_taken_as_it_is(tiny: Any, tiny_template: Path, decoder: Decoder) -> None:
    opened = Bundle.open(tiny_template)
    again = Decoder.open(opened, threads=1)
    assert again.bundle is opened
    assert same(again.decode(tiny.scan()), decoder.decode(tiny.scan()))


@pytest.mark.parametrize("head", ["image_latent", "text_latent", "image_context", "text_context"])
def test_heads_of_another_bundle_are_refused(
    open_decoder: Open, tiny: Any, tiny_bundle: Path, head: str
) -> None:
    folder = tiny_bundle / "subjects" / "sub-01"
    tensors = load_file(folder / "heads.safetensors")
    described = json.loads((folder / "subject.json").read_text())
    described["heads"][head]["shape"] = [3, 5]
    for part in ("right", "right_scale", "bias", "target_mean", "calibration"):
        tensors[f"{head}.{part}"] = np.ascontiguousarray(
            tensors[f"{head}.{part}"][..., :1].repeat(15, axis=-1)
        )
    save_file(tensors, folder / "heads.safetensors")
    (folder / "subject.json").write_text(json.dumps(described))
    tiny.seal(tiny_bundle)
    with pytest.raises(BundleError, match=rf"head {head} predicts \(3, 5\), but this bundle takes"):
        open_decoder(tiny_bundle)


def spoil(tiny: Any, bundle: Path, graph: str, value: float) -> None:
    """Make a graph add ``value`` to its first output."""
    onnx = pytest.importorskip("onnx")
    path = bundle / "graphs" / f"{graph}.onnx"
    model = onnx.load(path, load_external_data=False)
    name = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["clean" if output == name else output for output in node.output]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(value), "spoil"))
    model.graph.node.append(onnx.helper.make_node("Add", ["clean", "spoil"], [name]))
    path.write_bytes(model.SerializeToString())
    tiny.seal(bundle)


@pytest.mark.parametrize(
    ("graph", "value", "problem"),
    [
        ("unet_context", np.nan, "the text loop gave"),
        ("unet_time", np.nan, "the image loop gave"),
        ("unet_image_step", np.nan, "the image loop gave"),
        ("unet_image_step", np.inf, "the image loop gave"),
        ("unet_text_step", np.nan, "the text loop gave"),
        ("unet_text_step", -np.inf, "the text loop gave"),
        ("autokl_decode", np.nan, "the image decoder gave"),
        ("autokl_decode", np.inf, "the image decoder gave"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_numbers_that_are_not_finite_are_an_engine_error(
    open_decoder: Open, tiny: Any, tiny_bundle: Path, graph: str, problem: str, value: float
) -> None:
    spoil(tiny, tiny_bundle, graph, value)
    decoder = open_decoder(tiny_bundle)
    with pytest.raises(EngineError, match=f"{problem} numbers that are not finite"):
        decoder.decode(tiny.scan())


def test_a_caption_of_no_numbers_is_an_error(open_decoder: Open, tiny: Any, tiny_bundle: Path) -> None:
    spoil(tiny, tiny_bundle, "optimus_decode", np.nan)
    with pytest.raises((EngineError, BundleError), match="not finite"):
        open_decoder(tiny_bundle).decode(tiny.scan())


@pytest.mark.parametrize("value", [0.7, -0.7])
def test_pictures_stay_in_range(open_decoder: Open, tiny: Any, tiny_bundle: Path, value: float) -> None:
    before = open_decoder(tiny_bundle).decode(tiny.scan()).image
    spoil(tiny, tiny_bundle, "autokl_decode", value)
    after = open_decoder(tiny_bundle).decode(tiny.scan()).image
    assert np.abs(after - np.clip(before + value * 255, 0, 255)).max() <= 2


FEEDBACK = [
    ("unet_image_step", "x0"),
    ("unet_text_step", "next_latent"),
    ("optimus_decode", "next_position"),
    ("optimus_decode", "next_key_cache"),
]


@pytest.mark.parametrize(("graph", "output"), FEEDBACK)
def test_a_loop_without_its_feedback_is_refused(
    open_decoder: Open, tiny: Any, tiny_bundle: Path, graph: str, output: str
) -> None:
    """It would start anew at every step, and still give a picture."""
    path = tiny_bundle / "bundle.json"
    manifest = json.loads(path.read_text())
    del manifest["graphs"][graph]["feedback"][output]
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=f"graph {graph}: feedback is not"):
        open_decoder(tiny_bundle)


def test_a_step_that_takes_more_than_it_is_given_is_refused(
    open_decoder: Open, tiny: Any, tiny_bundle: Path
) -> None:
    """An input that nothing is written to would be zero, and still give a picture."""
    onnx = pytest.importorskip("onnx")
    path = tiny_bundle / "graphs" / "unet_image_step.onnx"
    model = onnx.load(path)
    model.graph.input.append(onnx.helper.make_tensor_value_info("dose", onnx.TensorProto.FLOAT, (1,)))
    path.write_bytes(model.SerializeToString())
    manifest = json.loads((tiny_bundle / "bundle.json").read_text())
    extra = {"name": "dose", "dtype": "float32", "shape": [1]}
    manifest["graphs"]["unet_image_step"]["inputs"].append(extra)
    tiny.seal(tiny_bundle, graphs=manifest["graphs"])
    with pytest.raises(BundleError, match="graph unet_image_step: takes other inputs than a decode gives"):
        open_decoder(tiny_bundle)


# --- The shipped bundle -------------------------------------------------------------------------------------


def test_the_shipped_bundle_decodes_an_example(phantom_bundle: Path, repository: Path) -> None:
    scan = repository / "examples" / "scan.npy"
    decoder = Decoder.open(preset="realtime")
    result = decoder.decode(np.load(scan, allow_pickle=False).astype(np.float32))
    assert result.caption
    assert result.image.std() > 10


# --- Falling back to fp32 -----------------------------------------------------------------------------------


def give_fallback(tiny: Any, bundle: Path, graph: str) -> None:
    """Keep the graph as it is as its own fallback."""
    manifest = json.loads((bundle / "bundle.json").read_text("utf-8"))
    record = manifest["graphs"][graph]
    record["fallback"] = record["file"].replace(".onnx", ".fp32.onnx")
    shutil.copy(bundle / record["file"], bundle / record["fallback"])
    tiny.seal(bundle, graphs=manifest["graphs"])


@pytest.mark.parametrize(
    ("graph", "opened"),
    [
        ("autokl_decode", ("autokl_decode",)),
        ("optimus_decode", ("optimus_decode",)),
        ("unet_text_step", ("unet_text_step",)),
        ("unet_context", ("unet_context",)),
    ],
)
def test_numbers_that_are_not_finite_are_computed_again_in_fp32(
    open_decoder: Open, tiny: Any, tiny_bundle: Path, graph: str, opened: tuple[str, ...]
) -> None:
    want = open_decoder(tiny_bundle).decode(tiny.scan())
    give_fallback(tiny, tiny_bundle, graph)
    spoil(tiny, tiny_bundle, graph, np.inf)
    decoder = open_decoder(tiny_bundle)
    for _ in range(2):
        got = decoder.decode(tiny.scan())
        np.testing.assert_array_equal(got.image, want.image)
        assert got.caption == want.caption
        assert got.fallbacks == opened
        assert got.record()["fallbacks"] == list(opened)
    assert "fallbacks" not in want.record()


def test_a_flavour_is_opened_until_its_numbers_are_not_finite(
    open_decoder: Open, tiny: Any, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = open_decoder(tiny_bundle).decode(tiny.scan())
    give_fallback(tiny, tiny_bundle, "autokl_decode")
    record = json.loads((tiny_bundle / "bundle.json").read_text("utf-8"))["graphs"]["autokl_decode"]
    spoil(tiny, tiny_bundle, "autokl_decode", np.inf)
    shutil.copy(tiny_bundle / record["file"], tiny_bundle / "graphs" / "spoilt.onnx")
    shutil.copy(tiny_bundle / record["fallback"], tiny_bundle / record["file"])
    graphs = json.loads((tiny_bundle / "bundle.json").read_text("utf-8"))["graphs"]
    graphs["autokl_decode"]["flavours"] = {"own": "graphs/spoilt.onnx"}
    tiny.seal(tiny_bundle, graphs=graphs)
    # The plain graph is sound, and what the engine opens first is not.
    assert open_decoder(tiny_bundle).decode(tiny.scan()).fallbacks == ()
    monkeypatch.setattr("unibrain_rt.engines.onnxruntime.OnnxRuntimeEngine.flavour", "own")
    got = open_decoder(tiny_bundle).decode(tiny.scan())
    np.testing.assert_array_equal(got.image, want.image)
    assert got.fallbacks == ("autokl_decode",)


def test_a_fallback_that_fails_too_ends_the_decode(open_decoder: Open, tiny: Any, tiny_bundle: Path) -> None:
    spoil(tiny, tiny_bundle, "autokl_decode", np.nan)
    give_fallback(tiny, tiny_bundle, "autokl_decode")
    with pytest.raises(EngineError, match="the image decoder gave numbers that are not finite"):
        open_decoder(tiny_bundle).decode(tiny.scan())


# --- Ablations ----------------------------------------------------------------------------------------------

ABLATIONS = [
    ("image_latent", "text_latent"),
    ("image_context",),
    ("text_context",),
    ("image_context", "text_context"),
    ("image_latent", "text_latent", "image_context"),
    ("image_latent", "text_latent", "text_context"),
    INPUTS,
]


def test_every_ablation_gives_something_else_and_leaves_nothing_behind(decoder: Decoder, tiny: Any) -> None:
    alone = [decoder.decode(tiny.scan(), seed=1, inputs=inputs) for inputs in ABLATIONS]
    assert [result.inputs for result in alone] == ABLATIONS
    for i, one in enumerate(alone):
        assert not any(np.array_equal(one.latents["image"], other.latents["image"]) for other in alone[:i])
    for inputs, before in reversed(list(zip(ABLATIONS, alone, strict=True))):
        assert same(decoder.decode(tiny.scan(), seed=1, inputs=inputs[::-1]), before)


@pytest.mark.parametrize("inputs", ABLATIONS)
@pytest.mark.parametrize("left_out", INPUTS)
def test_what_is_left_out_does_not_matter(
    decoder: Decoder, tiny: Any, inputs: tuple[str, ...], left_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = decoder.decode(tiny.scan(), seed=1, inputs=inputs)
    predict = Subject.predict

    def changed(subject: Subject, betas: Any) -> dict[str, Any]:
        return {**predict(subject, betas), left_out: predict(subject, tiny.scan(5))[left_out]}

    monkeypatch.setattr(Subject, "predict", changed)
    after = decoder.decode(tiny.scan(), seed=1, inputs=inputs)
    if left_out not in inputs:
        assert same(before, after)
        return
    flow = "text" if left_out == "text_latent" else "image"
    assert not np.array_equal(before.latents[flow], after.latents[flow])


def test_without_a_context_the_predicted_latents_are_decoded(decoder: Decoder, tiny: Any) -> None:
    result = decoder.decode(tiny.scan(), inputs=("image_latent", "text_latent"))
    predicted = decoder.subject.predict(tiny.scan())
    for flow in ("image", "text"):
        np.testing.assert_array_equal(result.latents[flow], predicted[f"{flow}_latent"][0])
    assert "image_loop" not in result.timings_ms


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [(("image_latent", "smell"), "unknown input 'smell'"), ((), "image_latent is needed"),
     (("image_latent",), "text_latent is needed"), (("text_latent",), "image_latent is needed")],
)  # fmt: skip
def test_inputs_that_give_no_decode(
    decoder: Decoder, tiny: Any, inputs: tuple[str, ...], problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        decoder.decode(tiny.scan(), inputs=inputs)


# --- Threads ------------------------------------------------------------------------------------------------


def test_threads_that_share_a_decoder_get_what_is_theirs(decoder: Decoder, tiny: Any) -> None:
    """Of 80 such decodes, 40 raised and 32 were wrong, before decodes waited for their turn."""
    other = decoder.sampling(decoder.bundle.preset("realtime"), "realtime")
    requests = [(which, tiny.scan(number % 3), number) for number in range(12) for which in (decoder, other)]
    want = [which.decode(scan, seed=seed) for which, scan, seed in requests]
    with ThreadPoolExecutor(4) as threads:
        got = list(threads.map(lambda request: request[0].decode(request[1], seed=request[2]), requests * 2))
    assert all(same(one, other) for one, other in zip(got, want * 2, strict=True))


def test_a_decode_inside_a_decode_is_an_error_and_no_deadlock(decoder: Decoder, tiny: Any) -> None:
    with pytest.raises(RuntimeError, match="cannot begin inside another"):
        decoder.decode(tiny.scan(), progress=lambda steps: decoder.decode(tiny.scan()) and None)
    assert decoder.decode(tiny.scan(), seed=2).image.any()  # the turn was given back
