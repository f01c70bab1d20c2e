"""A bundle in another precision: what it decodes, what it keeps, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from unibrain_rt import Decoder, Reconstruction, read_scans
from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import GraphSpec, create_engine
from unibrain_rt.errors import BundleError, InputError
from unibrain_rt.export.bundles.conversion import convert_bundle
from unibrain_rt.export.bundles.graph_folder import GraphFolder
from unibrain_rt.ridge_graph import ridge_graph

Run = Callable[..., Any]
SCANS = 2
TWINS = {"unet_context", "unet_image_step", "unet_text_step", "autokl_decode", "optimus_decode"}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def manifest(bundle: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundle / "bundle.json").read_text())
    return found


@pytest.fixture(scope="module")
def half(phantom_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom in fp16."""
    out = tmp_path_factory.mktemp("half") / "half"
    convert_bundle(phantom_bundle, out, precision="fp16")
    return out


def decodes(bundle: Path, repository: Path, count: int) -> list[Reconstruction]:
    decoder = Decoder.open(bundle, engine="onnxruntime")
    scans = read_scans(repository / "examples" / "scans.npy", decoder.subject.voxel_space)
    return [decoder.decode(scan.betas) for scan, _ in zip(scans, range(count), strict=False)]


@pytest.fixture(scope="module")
def expected(phantom_bundle: Path, repository: Path) -> list[Reconstruction]:
    return decodes(phantom_bundle, repository, SCANS)


# --- What comes out -----------------------------------------------------------------------------------------


def test_fp16_decodes_what_fp32_does(
    half: Path, repository: Path, expected: list[Reconstruction], report: Callable[[str], None]
) -> None:
    for found, wanted in zip(decodes(half, repository, SCANS), expected, strict=True):
        error = np.mean((found.image.astype(np.float64) - wanted.image) ** 2)
        ratio = 10 * np.log10(255**2 / max(error, 1e-9))
        report(f"phantom in fp16 on the CPU: {ratio:.1f} dB from fp32, {found.caption!r}")
        assert ratio >= 35
        assert found.caption == wanted.caption


def test_fp16_keeps_all_else(half: Path, phantom_bundle: Path) -> None:
    new, old = Bundle.open(half), Bundle.open(phantom_bundle)
    assert (new.name, new.precision) == ("phantom", "fp16")
    kept = ("architecture", "schedule", "presets", "subjects", "default_subject")
    assert [getattr(new, name) for name in kept] == [getattr(old, name) for name in kept]
    assert new.provenance == {
        **old.provenance,
        "converted_from": {
            "name": "phantom",
            "precision": "fp32-half-weights",
            "fingerprint": old.fingerprint(),
            "unibrain_rt": new.provenance["converted_from"]["unibrain_rt"],
        },
    }
    others = {name: record for name, record in old.files.items() if not name.startswith("graphs/")}
    assert {name: new.files[name] for name in others} == others
    assert set(contents(half)) == {*new.files, "bundle.json"}


def test_older_subjects_get_graphs_of_their_heads(tiny: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    """Of the same bytes as if they had been fitted now."""
    path = tiny_bundle / "subjects" / "sub-01" / "ridge.onnx"
    whole = path.read_bytes()
    for _ in range(2):  # with it, and without
        convert_bundle(tiny_bundle, tmp_path / "out", precision="fp32", overwrite=True)
        assert (tmp_path / "out" / "subjects" / "sub-01" / "ridge.onnx").read_bytes() == whole
        found = Bundle.open(tmp_path / "out")
        assert ridge_graph(found, found.subject()) is not None
        path.unlink(missing_ok=True)
        tiny.seal(tiny_bundle)


def test_fp16_graphs_state_it(half: Path, phantom_bundle: Path) -> None:
    new, old = Bundle.open(half), Bundle.open(phantom_bundle)
    assert set(new.graphs) == set(old.graphs)
    step = new.graph("unet_image_step")
    types = {spec.name: spec.dtype for spec in (*step.inputs, *step.outputs)}
    single = {"latent", "previous_x0", "coefficients", "next_latent", "x0"}
    assert {name for name, dtype in types.items() if dtype == "float32"} == single
    assert set(types.values()) == {"float32", "float16"}
    for graph in new.graphs.values():
        onnx.checker.check_model(str(graph.path), full_check=True)
    # The sampler's update is known in the file that was read, and stays fp32.
    model = onnx.load(step.path)
    types_of = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    updates = [
        node
        for node in model.graph.node
        if any(entry.key == "scope" and "sampler_update" in entry.value for entry in node.metadata_props)
    ]
    assert len(updates) > 10
    outputs = {types_of.get(name, onnx.TensorProto.FLOAT) for node in updates for name in node.output}
    assert outputs == {onnx.TensorProto.FLOAT}


def test_twins_stand_in_for_fp16_graphs(half: Path, phantom_bundle: Path) -> None:
    new, old, engine = Bundle.open(half), Bundle.open(phantom_bundle), create_engine("onnxruntime", 1)
    assert {name for name, graph in new.graphs.items() if graph.fallback} == TWINS
    flavoured = {name for name, graph in new.graphs.items() if graph.flavours}
    assert flavoured == TWINS - {"unet_context"}
    weights = {graph.path.parent.name + "/" + name for graph in new.graphs.values() for name in graph.files}
    assert weights == {name for name in new.files if name.startswith("graphs/")}

    def outputs(graph: GraphSpec) -> dict[str, Any]:
        random = np.random.default_rng(0)
        session = engine.open(graph)
        for spec in graph.inputs:
            whole = spec.dtype == "int64"
            value = np.ones(1) if whole else random.standard_normal(spec.sized(1)).astype(np.float16)
            session.write(spec.name, value.astype(np.int64 if whole else np.float32))
        session.run()
        return {spec.name: session.read(spec.name) for spec in graph.outputs}

    for name in TWINS:
        graph = new.graph(name)
        assert graph.fallback is not None
        # The engine compares names, shapes and types with the fp16 graph's.
        found = outputs(replace(graph, path=graph.fallback, fallback=None))
        reference = outputs(old.graph(name))
        for tensor, wanted in reference.items():
            error = np.linalg.norm(found[tensor] - wanted.astype(np.float64))
            assert error <= 1e-3 * np.linalg.norm(wanted.astype(np.float64)), (name, tensor)
        assert (
            graph.fallback.stat().st_size < 400_000
        )  # its structure; scopes and names of nodes are most of it


def test_the_same_precision_again_adds_the_choice_of_tokens(
    phantom_bundle: Path, repository: Path, expected: list[Reconstruction], tmp_path: Path
) -> None:
    convert_bundle(phantom_bundle, tmp_path / "again", precision="fp32-half-weights", name="mine")
    again = Bundle.open(tmp_path / "again")
    assert again.name == "mine"
    caption = again.graph("optimus_decode")
    assert caption.tensor("next_token").dtype == "int64"
    assert caption.feedback["next_token"] == "token"
    for found, wanted in zip(decodes(tmp_path / "again", repository, 1), expected, strict=False):
        np.testing.assert_array_equal(found.image, wanted.image)
        assert found.caption == wanted.caption


def test_by_way_of_fp32_nothing_changes(half: Path, phantom_bundle: Path, tmp_path: Path) -> None:
    convert_bundle(phantom_bundle, tmp_path / "single", precision="fp32")
    convert_bundle(tmp_path / "single", tmp_path / "half", precision="fp16")
    first, second = contents(half / "graphs"), contents(tmp_path / "half" / "graphs")
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_the_likeliest_token_is_chosen_the_lowest_of_equals(
    tiny: Any, tiny_bundle: Path, tmp_path: Path
) -> None:
    path = tiny_bundle / "graphs" / "optimus_decode.onnx"
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name in ("embedding", "weight", "rhythm"):
            # Rounded, so that equal sums are equal to the last bit.
            array = np.round(onnx.numpy_helper.to_array(tensor))
            array[:, 1::2] = array[:, ::2]
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    path.write_bytes(model.SerializeToString())
    tiny.seal(tiny_bundle)
    convert_bundle(tiny_bundle, tmp_path / "out", precision="fp32")
    graph = Bundle.open(tmp_path / "out").graph("optimus_decode")
    assert [spec.name for spec in graph.outputs][-1] == "next_token"
    session = create_engine("onnxruntime", 1).open(graph)
    chosen = set()
    for seed in range(8):
        session.write("latent", np.random.default_rng(seed).integers(-9, 9, (1, 6)).astype(np.float32))
        session.write("token", seed)
        session.run()
        chosen.add(int(session.read("next_token")[0]))
        assert int(session.read("next_token")[0]) == int(np.argmax(session.read("logits")[0]))
    assert len(chosen) > 1
    assert all(token % 2 == 0 for token in chosen)


# --- The command --------------------------------------------------------------------------------------------


def test_the_command_converts_without_torch(tiny_bundle: Path, tmp_path: Path) -> None:
    program = "import sys; sys.modules['torch'] = None; from unibrain_rt.cli import main; main(sys.argv[1:])"
    words = ["export", str(tiny_bundle), "--out", str(tmp_path / "out"), "--precision", "fp32-half-weights"]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(rf"{tmp_path / 'out'}: converted in \d+ s\n", done.stdout)
    assert [line.split()[1] for line in done.stderr.splitlines()] == list(Bundle.open(tiny_bundle).graphs)
    assert Bundle.open(tmp_path / "out").precision == "fp32-half-weights"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "fp32-half-weights"])
def test_fp16_is_not_converted(cli: Run, half: Path, tmp_path: Path, precision: str) -> None:
    done = cli("export", half, "--out", tmp_path / "out", "--precision", precision)
    assert done.code == 2
    assert len(done.complaints) == 1
    assert "is fp16, which is only made and never converted" in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_does_not_say_enough_does_not_become_fp16(
    cli: Run, tiny_bundle: Path, phantom_bundle: Path, tmp_path: Path
) -> None:
    done = cli("export", tiny_bundle, "--out", tmp_path / "out", "--precision", "fp16")
    assert done.code == 2
    assert "unet_context.onnx: does not say what of it must stay fp32" in done.complaints[-1]
    silent = Path(shutil.copytree(phantom_bundle, tmp_path / "silent"))
    path = silent / "graphs" / "unet_image_step.onnx"
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        del node.metadata_props[:]
    path.write_bytes(model.SerializeToString())
    seal(silent)
    with pytest.raises(InputError, match=r"unet_image_step\.onnx: does not say what of it must stay fp32"):
        convert_bundle(silent, tmp_path / "out", precision="fp16")
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "silent"}


def seal(bundle: Path) -> None:
    from unibrain_rt.export.bundles.bundle_folder import write_manifest

    write_manifest(bundle, manifest(bundle))


def test_sizes_are_not_given_again(cli: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    done = cli("export", tiny_bundle, "--out", tmp_path / "out", "--config", tmp_path / "x.json")
    assert (done.code, len(done.complaints)) == (2, 1)
    assert "leave out --config" in done.err


def test_an_existing_bundle_is_replaced_only_if_asked_for(cli: Run, tiny_bundle: Path) -> None:
    before = contents(tiny_bundle)
    done = cli("export", tiny_bundle, "--out", tiny_bundle)
    assert (done.code, len(done.complaints)) == (2, 1)
    assert "--overwrite" in done.err
    assert contents(tiny_bundle) == before
    done = cli("export", tiny_bundle, "--out", tiny_bundle, "--overwrite")
    assert done.code == 0
    assert Bundle.open(tiny_bundle).provenance["converted_from"]["precision"] == "fp32"
    assert [path.name for path in tiny_bundle.parent.iterdir()] == ["bundle"]


# --- Damage -------------------------------------------------------------------------------------------------


def no_onnx(bundle: Path) -> None:
    (bundle / "graphs" / "unet_time.onnx").write_bytes(b"no ONNX")


def elsewhere(bundle: Path) -> None:
    path = bundle / "graphs" / "unet_context.onnx"
    path.write_bytes(path.read_bytes().replace(b"unet.weights", b"../bundle.js"))


def cut(bundle: Path) -> None:
    path = bundle / "graphs" / "unet.weights"
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (no_onnx, "cannot be read as ONNX"),
        (elsewhere, "is not in bundle.js"),
        (cut, "is not in unet.weights"),
    ],
)
def test_a_damaged_bundle_is_not_converted(
    tiny: Any, tiny_bundle: Path, tmp_path: Path, damage: Callable[[Path], None], problem: str
) -> None:
    damage(tiny_bundle)
    with pytest.raises(BundleError, match="bytes, but the manifest says|its contents changed"):
        convert_bundle(tiny_bundle, tmp_path / "out", precision="fp32")
    tiny.seal(tiny_bundle)
    with pytest.raises(BundleError, match=problem):
        convert_bundle(tiny_bundle, tmp_path / "out", precision="fp32")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    "failure", [KeyboardInterrupt(), MemoryError(), OSError(28, "No space left on device")]
)
def test_an_interrupted_conversion_leaves_nothing_behind(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    before, add = contents(tmp_path), GraphFolder.add

    def interrupted(self: GraphFolder, model: Any, feedback: Any) -> None:
        add(self, model, feedback)
        if model.graph.name == "unet_time":
            raise failure

    monkeypatch.setattr(GraphFolder, "add", interrupted)
    for out in (tmp_path / "out", tiny_bundle):
        with pytest.raises((KeyboardInterrupt, MemoryError, InputError)):
            convert_bundle(tiny_bundle, out, precision="fp32-half-weights", overwrite=True)
        assert contents(tmp_path) == before


KILL = """
import os, sys
from pathlib import Path
from unibrain_rt.export.bundles import conversion
conversion.copy_files = lambda *arguments: os._exit(9)
conversion.convert_bundle(Path(sys.argv[1]), Path(sys.argv[2]), precision="fp32", overwrite=True)
"""


def test_killed_the_old_bundle_is_whole_and_the_next_conversion_works(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    before = contents(tiny_bundle)
    words = [sys.executable, "-c", KILL, str(tiny_bundle), str(tiny_bundle)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    assert contents(tiny_bundle) == before
    convert_bundle(tiny_bundle, tiny_bundle, precision="fp32", overwrite=True)
    assert os.listdir(tmp_path) == ["bundle"]
    Bundle.open(tiny_bundle)
