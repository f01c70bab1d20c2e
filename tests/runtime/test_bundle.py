"""Bundles: everything in the manifest is checked before anything in the folder is used."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save, save_file

from unibrain_rt.bundle import CONSTANTS, UNCONDITIONAL, Bundle, sha256_of
from unibrain_rt.errors import BundleError, InputError
from unibrain_rt.subject_files import ROI_FILE

Edit = Callable[[dict[str, Any]], None]


def edit(bundle: Path, change: Edit) -> None:
    """Change the manifest, and nothing else."""
    path = bundle / "bundle.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_a_bundle_opens(tiny: Any, tiny_template: Path) -> None:
    bundle = Bundle.open(str(tiny_template))
    assert bundle.name == "tiny"
    assert bundle.precision == "fp32"
    assert bundle.subjects == ("sub-01",)
    assert bundle.has_captions
    assert set(bundle.presets) == {"paper", "fast", "realtime"}
    assert bundle.schedule.timesteps == 1000
    step = bundle.graph("unet_image_step")
    assert step.path == tiny_template / "graphs" / "unet_image_step.onnx"
    assert step.tensor("latent").shape == tiny.LATENT
    assert step.feedback == {"next_latent": "latent", "x0": "previous_x0"}
    assert bundle.tokenizers["gpt2"] == tiny_template / "tokenizers" / "gpt2"
    assert bundle.subject().voxels == bundle.subject("sub-01").voxels == tiny.VOXELS


def test_a_graph_knows_its_files(tiny_bundle: Path) -> None:
    """What was noted of them; of bundles made before that, every file of weights beside the graphs."""
    found = Bundle.open(tiny_bundle).graph("unet_time")
    records = json.loads((tiny_bundle / "bundle.json").read_text())["files"]
    assert found.fallback is None
    assert found.files == {
        name: records[f"graphs/{name}"]["sha256"] for name in ("unet_time.onnx", "unet.weights")
    }

    def note(manifest: dict[str, Any]) -> None:
        manifest["graphs"]["unet_time"].update(weights=[], fallback="graphs/unet_context.onnx")

    edit(tiny_bundle, note)
    found = Bundle.open(tiny_bundle).graph("unet_time")
    assert found.fallback == tiny_bundle / "graphs" / "unet_context.onnx"
    assert set(found.files) == {"unet_time.onnx", "unet_context.onnx"}
    assert found.flavours == {}

    def flavour(manifest: dict[str, Any]) -> None:
        manifest["graphs"]["unet_time"].update(flavours={"cuda": "graphs/autokl_decode.onnx"})

    edit(tiny_bundle, flavour)
    found = Bundle.open(tiny_bundle).graph("unet_time")
    assert found.flavours == {"cuda": tiny_bundle / "graphs" / "autokl_decode.onnx"}
    assert "autokl_decode.onnx" in found.files


def test_unconditional_contexts(tiny: Any, tiny_template: Path) -> None:
    image, text = Bundle.open(tiny_template).unconditional_contexts()
    assert image.shape == (1, tiny.TOKENS["image"], tiny.WIDTH)
    assert text.shape == (1, tiny.TOKENS["text"], tiny.WIDTH)


def test_the_shipped_bundle_is_the_default(phantom_bundle: Path) -> None:
    bundle = Bundle.open()
    assert bundle.folder.samefile(phantom_bundle)
    assert bundle.has_captions
    assert len(bundle.subjects) == 4
    assert bundle.subject().folder.name == bundle.default_subject == "sub-01"


def test_without_a_default_one_of_several_subjects_has_to_be_chosen() -> None:
    bundle = replace(Bundle.open(verify=False), default_subject=None)
    with pytest.raises(InputError, match="choose a subject with --subject: sub-01, "):
        bundle.subject()
    # A default that is being replaced is none; one that is left needs no choice.
    assert replace(bundle, subjects=("sub-02",), default_subject="sub-01").subject().folder.name == "sub-02"


def test_the_fingerprint_is_that_of_the_contents(tiny: Any, tiny_bundle: Path, tiny_template: Path) -> None:
    before = Bundle.open(tiny_bundle).fingerprint()
    assert before == Bundle.open(tiny_template).fingerprint()
    assert len(before) == 16
    edit(tiny_bundle, lambda manifest: manifest.update(name="other"))
    assert Bundle.open(tiny_bundle).fingerprint() == before
    save_file({name: np.zeros((1, 2, 2), np.float32) for name in UNCONDITIONAL}, tiny_bundle / CONSTANTS)
    tiny.seal(tiny_bundle)
    assert Bundle.open(tiny_bundle).fingerprint() != before


# --- Names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "paper ", "PAPER", "../paper"])
def test_presets_of_other_names_are_refused(tiny_template: Path, name: str) -> None:
    with pytest.raises(InputError, match="it has paper, fast, realtime"):
        Bundle.open(tiny_template).preset(name)


def test_graphs_of_other_names_are_refused(tiny_template: Path) -> None:
    with pytest.raises(BundleError, match="no graph clip_image"):
        Bundle.open(tiny_template).graph("clip_image")


def test_one_of_several_subjects_has_to_be_chosen(tiny: Any, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny.make_bundle(tmp_path / "b", subjects=("sub-01", "sub-02")))
    with pytest.raises(InputError, match="choose a subject with --subject: sub-01, sub-02"):
        bundle.subject()
    assert bundle.subject("sub-02").name == "sub-02"
    with pytest.raises(InputError, match="no subject 'sub-03' in this bundle; it has sub-01, sub-02"):
        bundle.subject("sub-03")
    with pytest.raises(InputError, match="no subject"):
        bundle.subject("../sub-01")


def test_a_bundle_may_have_no_subject_yet(tiny: Any, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny.make_bundle(tmp_path / "b", subjects=()))
    with pytest.raises(InputError, match="no subject; fit one before decoding"):
        bundle.subject()


@pytest.mark.parametrize("without", ["graph", "tokenizer"])
def test_a_bundle_may_write_no_captions(tiny: Any, tiny_bundle: Path, without: str) -> None:
    if without == "graph":
        edit(tiny_bundle, lambda manifest: manifest["graphs"].pop("optimus_decode"))
    else:
        edit(tiny_bundle, lambda manifest: manifest["tokenizers"].clear())
    assert not Bundle.open(tiny_bundle).has_captions


# --- Files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["missing", "file"])
def test_what_is_no_folder_is_no_bundle(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "file":
        path.touch()
    with pytest.raises(InputError, match="no such bundle"):
        Bundle.open(path)


def test_a_changed_file_is_noticed(tiny_bundle: Path) -> None:
    for path in sorted(tiny_bundle.rglob("*")):
        if not path.is_file() or path.name == "bundle.json":
            continue
        raw = path.read_bytes()
        path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
        with pytest.raises(BundleError, match="its contents changed"):
            Bundle.open(tiny_bundle)
        Bundle.open(tiny_bundle, verify=False)
        path.write_bytes(raw + b"x")
        for verify in (True, False):
            with pytest.raises(BundleError, match="but the manifest says"):
                Bundle.open(tiny_bundle, verify=verify)
        path.unlink()
        for verify in (True, False):
            with pytest.raises(BundleError, match=f"{path.name}: cannot be read"):
                Bundle.open(tiny_bundle, verify=verify)
        path.write_bytes(raw)
    Bundle.open(tiny_bundle)


def test_what_is_read_has_to_be_listed(tiny_bundle: Path) -> None:
    names = list(json.loads((tiny_bundle / "bundle.json").read_text())["files"])
    text = (tiny_bundle / "bundle.json").read_text()
    for name in names:
        edit(tiny_bundle, lambda manifest, name=name: manifest["files"].pop(name))  # type: ignore[misc]
        with pytest.raises(BundleError, match="is not among the manifest's files"):
            Bundle.open(tiny_bundle)
        (tiny_bundle / "bundle.json").write_text(text)


def test_weights_that_nobody_listed_are_not_beside_the_graphs(tiny_bundle: Path) -> None:
    (tiny_bundle / "graphs" / ".DS_Store").touch()
    (tiny_bundle / "notes.txt").touch()
    Bundle.open(tiny_bundle)
    (tiny_bundle / "graphs" / "other.weights").touch()
    with pytest.raises(BundleError, match=r"graphs/other\.weights is not among the manifest's files"):
        Bundle.open(tiny_bundle)


def test_regions_that_nobody_listed_are_not_beside_a_subject(tiny: Any, tiny_bundle: Path) -> None:
    path = tiny_bundle / "subjects" / "sub-01" / ROI_FILE
    path.write_bytes(save({"faces": np.ones(tiny.VOXELS, np.uint8)}))
    with pytest.raises(BundleError, match=r"sub-01/rois\.safetensors is not among the manifest's files"):
        Bundle.open(tiny_bundle)
    tiny.seal(tiny_bundle)
    assert list(Bundle.open(tiny_bundle).subject().rois()) == ["faces"]
    path.write_bytes(save({"faces": np.zeros(tiny.VOXELS, np.uint8)}))
    with pytest.raises(BundleError, match="its contents changed"):
        Bundle.open(tiny_bundle)


def test_hashes_are_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(BundleError, match="cannot be read"):
        sha256_of(tmp_path / "b")


# --- The manifest -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "advice"), [(2, "upgrade unibrain-rt"), (0, "export the bundle again")])
def test_other_versions_are_refused(tiny_bundle: Path, version: int, advice: str) -> None:
    edit(tiny_bundle, lambda manifest: manifest.update(schema_version=version))
    with pytest.raises(BundleError, match=f"schema version {version}, but this release reads 1; {advice}"):
        Bundle.open(tiny_bundle)


def step(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = manifest["graphs"]["unet_text_step"]
    return found


EDITS: dict[str, tuple[Edit, str]] = {
    "a path out of the bundle": (
        lambda m: m["files"].update({"../x": m["files"][CONSTANTS]}), "points outside the bundle"),
    "an absolute path": (lambda m: m["files"].update({"/x": m["files"][CONSTANTS]}), "points outside"),
    "a hash that is none": (lambda m: m["files"][CONSTANTS].update(sha256="0" * 63), "has no SHA-256"),
    "a tokenizer outside": (lambda m: m["tokenizers"].update(gpt2="../gpt2"), "points outside"),
    "a tokenizer that is no text": (lambda m: m["tokenizers"].update(gpt2=3), "is not a file name"),
    "a subject outside": (lambda m: m["subjects"].append("../sub-01"), "subjects must be plain names"),
    "a subject that is no text": (lambda m: m["subjects"].append({}), "subjects must be plain names"),
    "a graph's file that is not listed": (lambda m: step(m).update(file="graphs/x.onnx"), "is not among"),
    "weights that are not listed": (lambda m: step(m).update(weights=["graphs/x"]), "x is not among"),
    "weights that are no text": (lambda m: step(m).update(weights=[{}]), "is not among"),
    "weights that are no list": (lambda m: step(m).update(weights="unet"), "weights must be list"),
    "a fallback that is not listed": (lambda m: step(m).update(fallback="graphs/x.onnx"), "is not among"),
    "a fallback outside": (lambda m: step(m).update(fallback="../x.onnx"), "is not among"),
    "a fallback that is no text": (lambda m: step(m).update(fallback=3), "fallback must be str"),
    "a flavour that is not listed": (lambda m: step(m).update(flavours={"cuda": "graphs/x"}), "is not among"),
    "a flavour outside": (lambda m: step(m).update(flavours={"cuda": "../x.onnx"}), "is not among"),
    "a flavour that is no text": (lambda m: step(m).update(flavours={"cuda": 3}), "is not among"),
    "flavours that are a list": (lambda m: step(m).update(flavours=["x"]), "flavours must be dict"),
    "no file": (lambda m: step(m).pop("file"), "file is missing"),
    "an unknown type": (lambda m: step(m)["inputs"][0].update(dtype="complex64"), "unknown type 'complex64'"),
    "a size of 0": (lambda m: step(m)["inputs"][0].update(shape=[1, 0]), "sizes above 0"),
    "a negative size": (lambda m: step(m)["inputs"][0].update(shape=[-1]), "sizes above 0"),
    "a size that is true": (lambda m: step(m)["inputs"][0].update(shape=[True]), "sizes above 0"),
    "a size of 10**400": (lambda m: step(m)["inputs"][0].update(shape=[10**400]), "shape is too large"),
    "many sizes": (lambda m: step(m)["inputs"][0].update(shape=[1] * 9), "shape is too large"),
    "large sizes": (lambda m: step(m)["inputs"][0].update(shape=[2**20, 2**20]), "shape is too large"),
    "a name twice": (lambda m: step(m)["inputs"][0].update(name="x0"), "two tensors have the same name"),
    "feedback of an unknown output": (lambda m: step(m)["feedback"].update(x="latent"), "feedback x"),
    "feedback to an unknown input": (lambda m: step(m)["feedback"].update(x0="x"), "feedback x0"),
    "feedback to nothing": (lambda m: step(m)["feedback"].update(x0=[]), "feedback x0"),
    "feedback of another shape": (lambda m: step(m)["feedback"].update(x0="modulation"), "feedback x0"),
    "a schedule of one step": (
        lambda m: m["architecture"]["schedule"].update(timesteps=1), "timesteps must be"),
    "a schedule without end": (
        lambda m: m["architecture"]["schedule"].update(timesteps=10**12), "timesteps must be"),
    "an unknown schedule": (
        lambda m: m["architecture"]["schedule"].update(beta_schedule="cosine"), "beta_schedule must be"),
    "no schedule": (lambda m: m["architecture"].pop("schedule"), "schedule is missing"),
    "an unknown sampler": (lambda m: m["presets"]["paper"].update(sampler="x"), "unknown sampler 'x'"),
}  # fmt: skip


@pytest.mark.parametrize("case", EDITS)
def test_what_the_manifest_says_is_checked(tiny_bundle: Path, case: str) -> None:
    change, problem = EDITS[case]
    edit(tiny_bundle, change)
    with pytest.raises(BundleError, match=problem) as caught:
        Bundle.open(tiny_bundle)
    assert "bundle.json" in str(caught.value)


# --- Constants ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["NaN", "float64", "one missing", "damaged"])
def test_constants_that_cannot_be_used_are_refused(tiny: Any, tiny_bundle: Path, case: str) -> None:
    path = tiny_bundle / CONSTANTS
    constants = load_file(path)
    if case == "NaN":
        constants[UNCONDITIONAL[0]][:] = np.nan
    elif case == "float64":
        constants[UNCONDITIONAL[1]] = constants[UNCONDITIONAL[1]].astype(np.float64)
    elif case == "one missing":
        del constants[UNCONDITIONAL[0]]
    save_file(constants, path)
    if case == "damaged":
        path.write_bytes(path.read_bytes()[:40])
    tiny.seal(tiny_bundle)
    bundle = Bundle.open(tiny_bundle)
    with pytest.raises(BundleError, match="export the bundle again"):
        bundle.unconditional_contexts()


def test_a_subject_of_another_bundles_encoders_is_refused(tiny: Any, tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    path = tiny_bundle / "subjects" / "sub-01" / "subject.json"
    described = json.loads(path.read_text())
    for encoders in (bundle.encoders, "0123456789abcdef"):
        path.write_text(json.dumps({**described, "encoders": encoders}))
        tiny.seal(tiny_bundle)
        opened = Bundle.open(tiny_bundle)
        if encoders == bundle.encoders:
            assert opened.subject("sub-01").encoders == encoders
            continue
        with pytest.raises(
            BundleError, match="fitted on another bundle's encoders; fit the subject on this"
        ) as caught:
            opened.subject("sub-01")
        assert "\n" not in str(caught.value)
