"""Subjects: predictions by the documented formula, alone as in a batch, and every broken folder refused."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from unibrain_rt import factors
from unibrain_rt.errors import BundleError, InputError
from unibrain_rt.flows import INPUTS
from unibrain_rt.subject import Subject
from unibrain_rt.subject_files import DESCRIPTION_FILE, ROI_FILE, TENSOR_FILE

Tensors = dict[str, np.ndarray[Any, Any]]
Description = dict[str, Any]

VOXELS, RANK = 30, 5
SHAPES = {"image_latent": (2, 3, 4), "text_latent": (7,), "image_context": (3, 6), "text_context": (2, 6)}


def make(dtype: str = "f2", exact: tuple[str, ...] = ()) -> tuple[Description, Tensors]:
    """A subject with random heads; ``exact`` ones are dense."""
    rng = np.random.default_rng(0)
    mask = np.zeros((4, 4, 3), np.uint8)
    mask.reshape(-1)[rng.permutation(mask.size)[:VOXELS]] = 1
    tensors: Tensors = {
        "voxel_mean": rng.normal(size=VOXELS).astype("f4"),
        "voxel_std": rng.uniform(0.5, 2, VOXELS).astype("f4"),
        "mask": mask,
    }
    tensors["voxel_std"][[3, 11]] = 0.0
    heads = {}
    for head, shape in SHAPES.items():
        targets = int(np.prod(shape))
        if head in exact:
            tensors[f"{head}.left"] = rng.normal(size=(VOXELS, targets)).astype("f4")
        else:
            for side, extents in (("left", (VOXELS, RANK)), ("right", (RANK, targets))):
                values = rng.normal(size=extents)
                if dtype == "i1":
                    tensors[f"{head}.{side}_scale"] = rng.uniform(0.01, 0.03, extents[1]).astype("f4")
                    values = np.rint(40 * values).clip(-127, 127)
                tensors[f"{head}.{side}"] = values.astype(dtype)
        tensors[f"{head}.bias"] = rng.normal(size=targets).astype("f4")
        tensors[f"{head}.target_mean"] = rng.normal(size=targets).astype("f4")
        many = 1 if head == "text_latent" else targets
        tensors[f"{head}.calibration"] = rng.uniform(0.5, 3, many).astype("f4")
        heads[head] = {
            "shape": list(shape),
            "rank": None if head in exact else RANK,
            "alpha": 100.0,
            "held_out_correlation": 0.3,
            "fidelity": 0.999,
        }
    description = {
        "schema_version": 1,
        "name": "subj01",
        "voxels": VOXELS,
        "beta_scale": 1 / 300,
        "heads": heads,
        "fitted_on": {"scans": 100, "repeats": 3},
    }
    return description, tensors


def put(folder: Path, description: Description, tensors: Tensors) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / DESCRIPTION_FILE).write_text(json.dumps(description), encoding="utf-8")
    (folder / TENSOR_FILE).write_bytes(save(tensors))
    return folder


def betas(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def by_the_formula(tensors: Tensors, head: str, scans: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    t = {key: value.astype(np.float64) for key, value in tensors.items()}
    std = t["voxel_std"]
    z = np.where(std > 0, (scans - t["voxel_mean"]) / np.where(std > 0, std, 1), 0)
    y = z
    for side in ("left", "right") if f"{head}.right" in t else ("left",):
        y = y @ t[f"{head}.{side}"] * t.get(f"{head}.{side}_scale", 1.0)
    y = y + t[f"{head}.bias"]
    mean = t[f"{head}.target_mean"]
    return (mean + t[f"{head}.calibration"] * (y - mean)).reshape(len(scans), *SHAPES[head])


def check_line(message: str) -> None:
    assert "\n" not in message
    assert message.isprintable()
    assert len(message) <= 300


# --- what is predicted --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "exact"), [("i1", ()), ("f2", ()), ("f4", ()), ("f2", INPUTS), ("i1", ("image_latent",))]
)
@pytest.mark.parametrize("tile_bytes", [2 << 20, 64])
def test_predictions_follow_the_formula(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, exact: tuple[str, ...], tile_bytes: int
) -> None:
    monkeypatch.setattr(factors, "_TILE_BYTES", tile_bytes)
    description, tensors = make(dtype, exact)
    subject = Subject.open(put(tmp_path / "s", description, tensors))
    scans = betas(6, VOXELS)
    found = subject.predict(scans)
    assert list(found) == list(INPUTS)
    for head, prediction in found.items():
        assert prediction.dtype == np.float32
        assert prediction.shape == (6, *SHAPES[head]) == (6, *subject.head_shape(head))
        expected = by_the_formula(tensors, head, scans)
        np.testing.assert_allclose(prediction, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("exact", [(), INPUTS])
@pytest.mark.parametrize("dtype", ["i1", "f2"])
def test_a_scan_decodes_the_same_alone_as_in_company(
    tmp_path: Path, exact: tuple[str, ...], dtype: str
) -> None:
    subject = Subject.open(put(tmp_path / "s", *make(dtype, exact)))
    scans = betas(33, VOXELS)
    together = subject.predict(scans)
    for row in (0, 1, 17, 32):
        for alone in (subject.predict(scans[row]), subject.predict(scans[row : row + 1])):
            for head in INPUTS:
                assert alone[head].shape == (1, *SHAPES[head])
                np.testing.assert_array_equal(alone[head][0], together[head][row])
    assert all(len(prediction) == 0 for prediction in subject.predict(scans[:0]).values())


def test_the_scan_given_is_left_alone_and_may_have_any_layout(tmp_path: Path) -> None:
    subject = Subject.open(put(tmp_path / "s", *make()))
    scans = betas(5, VOXELS)
    before = scans.copy()
    expected = subject.predict(scans)
    np.testing.assert_array_equal(scans, before)
    scans.flags.writeable = False
    for same in (np.asfortranarray(scans), scans.astype(np.float64), scans.astype(">f4")):
        for head, prediction in subject.predict(same).items():
            np.testing.assert_array_equal(prediction, expected[head])


def test_constant_voxels_count_for_nothing(tmp_path: Path) -> None:
    subject = Subject.open(put(tmp_path / "s", *make()))
    scans = betas(2, VOXELS)
    moved = scans.copy()
    moved[:, [3, 11]] += 1e6
    for head, prediction in subject.predict(scans).items():
        np.testing.assert_array_equal(prediction, subject.predict(moved)[head])


@pytest.mark.parametrize("dtype", [np.float16, np.int8])
def test_factors_are_never_whole_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: type
) -> None:
    monkeypatch.setattr(factors, "_TILE_BYTES", 64 << 10)
    monkeypatch.setattr(factors, "usable_cores", lambda: 1)
    description, tensors = make()
    wide, rank = 20_000, 100
    description["heads"]["image_latent"] |= {"shape": [wide], "rank": rank}
    tensors["image_latent.left"] = np.ones((VOXELS, rank), dtype)
    tensors["image_latent.right"] = np.ones((rank, wide), dtype)
    for name in ("bias", "target_mean", "calibration"):
        tensors[f"image_latent.{name}"] = np.ones(wide, np.float32)
    if dtype == np.int8:
        tensors["image_latent.left_scale"] = np.ones(rank, np.float32)
        tensors["image_latent.right_scale"] = np.ones(wide, np.float32)
    subject = Subject.open(put(tmp_path / "s", description, tensors))
    scan = betas(VOXELS)
    tracemalloc.start()
    try:
        subject.predict(scan)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20 < tensors["image_latent.right"].nbytes


def test_what_a_subject_tells(tmp_path: Path) -> None:
    description, tensors = make(exact=("text_latent",))
    description["heads"]["text_latent"] |= {"alpha": None, "held_out_correlation": None, "fidelity": None}
    subject = Subject.open(put(tmp_path / "s", description, tensors))
    assert (subject.name, subject.voxels, subject.beta_scale) == ("subj01", VOXELS, 1 / 300)
    assert subject.fitted_on == {"scans": 100, "repeats": 3}
    head = subject.heads["image_latent"]
    assert (head.shape, head.targets, head.rank, head.alpha) == ((2, 3, 4), 24, RANK, 100.0)
    assert (head.held_out_correlation, head.fidelity) == (0.3, 0.999)
    exact = subject.heads["text_latent"]
    assert (exact.rank, exact.alpha, exact.held_out_correlation, exact.fidelity) == (None,) * 4
    space = subject.voxel_space
    assert (space.subject, space.count, space.scale) == ("subj01", VOXELS, 1 / 300)
    assert space.mask is not None
    np.testing.assert_array_equal(space.mask, tensors["mask"] == 1)
    del tensors["mask"]
    assert Subject.open(put(tmp_path / "s", description, tensors)).voxel_space.mask is None


# --- scans that do not fit ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scans", "part"),
    [
        (betas(VOXELS + 1), "31 voxels, but subject 'subj01' has 30"),
        (betas(2, VOXELS - 1), "29 voxels"),
        (betas(2, 3, VOXELS), "3-D"),
        (np.float32(1.0), "0-D"),
        (np.ones(VOXELS, np.int16), "int16"),
        (np.full(VOXELS, np.nan, np.float32), "not finite"),
        (np.full(VOXELS, np.inf, np.float32), "not finite"),
        (np.full(VOXELS, 1e300), "too large"),
        (np.full(VOXELS, 1e38, np.float32), "standard deviations"),
    ],
)
def test_betas_of_someone_else_are_refused(tmp_path: Path, scans: Any, part: str) -> None:
    subject = Subject.open(put(tmp_path / "s", *make()))
    with pytest.raises(InputError) as caught:
        subject.predict(scans)
    assert part in str(caught.value)
    check_line(str(caught.value))


def test_a_head_that_is_not_finite_is_the_bundles_fault(tmp_path: Path) -> None:
    description, tensors = make()
    tensors["image_context.left"][2, 1] = np.nan
    subject = Subject.open(put(tmp_path / "s", description, tensors))
    with pytest.raises(
        BundleError, match=r"heads\.safetensors: image_context gives values that are not finite"
    ):
        subject.predict(betas(VOXELS))


# --- folders that are not subjects --------------------------------------------------------------------------


def refused(folder: Path, *parts: str) -> None:
    with pytest.raises(BundleError) as caught:
        Subject.open(folder)
    message = str(caught.value)
    check_line(message)
    for part in parts:
        assert part in message, message


def change(**values: Any) -> Callable[[Description], None]:
    return lambda description: description.update(values)


def change_head(**values: Any) -> Callable[[Description], None]:
    return lambda description: description["heads"]["text_latent"].update(values)


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        (change(schema_version=2), "schema version 2"),
        (change(schema_version=True), "schema version True"),
        (lambda d: d.pop("schema_version"), "schema version None"),
        (lambda d: d.pop("name"), "name is missing"),
        (change(name=3), "name must be str, found int"),
        (change(name="  "), "name"),
        (change(voxels=0), "voxels must be whole, from 1 to 1099511627776, found 0"),
        (change(voxels=30.0), "found 30.0"),
        (change(voxels=True), "found True"),
        (change(voxels=10**30), "voxels must be whole, from 1 to 1099511627776, found 1000"),
        (change(voxels=VOXELS + 1), "voxel_mean is F32 (30,)"),
        (change(beta_scale=0), "beta_scale is 0"),
        (change(beta_scale=-1), "beta_scale must be a finite number of at least 0, found -1"),
        (change(beta_scale=float("nan")), "beta_scale must be a finite number of at least 0, found nan"),
        (change(beta_scale=float("inf")), "beta_scale must be a finite number of at least 0, found inf"),
        (change(beta_scale=10**400), "found 1000"),
        (change(beta_scale="1/300"), "found '1/300'"),
        (change(heads=None), "heads: an object is expected, found null"),
        (change(heads={}), "heads are none"),
        (change(heads=[1, 2]), "heads: an object is expected, found list"),
        (lambda d: d["heads"].pop("text_latent"), "heads are image_latent, image_context, text_context"),
        (lambda d: d["heads"].update(video={}), "video"),
        (
            lambda d: d["heads"].update(text_latent=[]),
            "heads: text_latent: an object is expected, found list",
        ),
        (change_head(shape=[8]), "text_latent.right is F16 (5, 7)"),
        (change_head(shape=[]), "heads: text_latent: shape must be a list of 1 to 8 numbers"),
        (change_head(shape=7), "text_latent: shape must be a list of 1 to 8 numbers, found 7"),
        (change_head(shape=[-7]), "text_latent: shape must be whole"),
        (change_head(shape=[2**39] * 8), "subject.json says"),
        (change_head(rank=4), "text_latent.left is F16 (30, 5)"),
        (change_head(rank=0), "text_latent: rank must be whole"),
        (change_head(rank=None), "unknown text_latent.right"),
        (change_head(alpha=-1), "text_latent: alpha must be a finite number of at least 0, found -1"),
        (change_head(alpha="big"), "text_latent: alpha must be a finite number of at least 0, found 'big'"),
        (
            change_head(held_out_correlation=1.5),
            "text_latent: held_out_correlation must be a finite number from -1 to 1, found 1.5",
        ),
        (change_head(fidelity=1.01), "text_latent: fidelity must be a finite number from 0 to 1, found 1.01"),
        (change(fitted_on=[1]), "fitted_on must be dict, found list"),
        (change(encoders=3), "encoders must be str, found int"),
    ],
)
def test_descriptions_that_do_not_fit(
    tmp_path: Path, changed: Callable[[Description], object], part: str
) -> None:
    description, tensors = make()
    changed(description)
    refused(put(tmp_path / "s", description, tensors), part)


def replace(name: str, value: np.ndarray[Any, Any]) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: value})


def spoil(name: str, value: float) -> Callable[[Tensors], None]:
    def at_one_place(tensors: Tensors) -> None:
        tensors[name].reshape(-1)[-1] = value

    return at_one_place


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        (lambda t: t.pop("voxel_mean"), "has no voxel_mean"),
        (lambda t: t.pop("image_context.right"), "has no image_context.right"),
        (lambda t: t.pop("text_latent.bias"), "has no text_latent.bias"),
        (lambda t: t.clear(), "has no"),
        (replace("video.left", np.ones(3, "f4")), "unknown video.left"),
        (replace("text_latent.left", np.ones((VOXELS, RANK), "i1")), "has no text_latent.left_scale"),
        (replace("text_latent.left_scale", np.ones(RANK, "f4")), "unknown text_latent.left_scale"),
        (replace("voxel_std", np.ones(VOXELS, "f8")), "voxel_std is F64 (30,)"),
        (replace("voxel_std", np.ones((VOXELS, 1), "f4")), "voxel_std is F32 (30, 1)"),
        (replace("text_latent.left", np.ones((VOXELS, RANK), "i2")), "text_latent.left is I16"),
        (replace("text_latent.left", np.ones((RANK, VOXELS), "f2")), "text_latent.left is F16 (5, 30)"),
        (replace("text_latent.bias", np.ones(1, "f4")), "text_latent.bias is F32 (1,)"),
        (replace("text_latent.calibration", np.ones(2, "f4")), "says F32 (7,) or (1,)"),
        (spoil("voxel_mean", np.nan), "voxel_mean has values that are not finite"),
        (spoil("voxel_std", np.inf), "voxel_std has values that are not finite"),
        (spoil("voxel_std", -1.0), "voxel_std has values below 0"),
        (spoil("text_latent.bias", np.nan), "text_latent.bias has values that are not finite"),
        (spoil("image_latent.target_mean", np.inf), "image_latent.target_mean"),
        (spoil("image_latent.calibration", np.nan), "image_latent.calibration"),
        (spoil("image_latent.calibration", -1.0), "image_latent.calibration has values below 0"),
        (replace("mask", np.ones((2, 3, 4), "u1")), "mask has 24 voxels"),
        (replace("mask", np.ones((3, 10), "u1")), "mask is U8 (3, 10)"),
        (replace("mask", np.ones((2, 3, 5), "f4")), "mask is F32"),
        (replace("mask", np.full((2, 3, 5), 2, "u1")), "values up to 2"),
        (replace("mask", np.ones((0, 3, 5), "u1")), "mask has 0 voxels"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path: Path, changed: Callable[[Tensors], object], part: str) -> None:
    description, tensors = make()
    changed(tensors)
    refused(put(tmp_path / "s", description, tensors), TENSOR_FILE, part)


@pytest.mark.parametrize("file", [DESCRIPTION_FILE, TENSOR_FILE])
def test_files_that_are_missing_or_no_files(tmp_path: Path, file: str) -> None:
    path = put(tmp_path / "s", *make()) / file
    path.unlink()
    refused(path.parent, file, "no such file")
    path.mkdir()
    refused(path.parent, file, "not a regular file")
    path.rmdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(path)
        refused(path.parent, file, "not a regular file")
        path.unlink()
    path.write_bytes(b"")
    refused(path.parent, file, "damaged" if file == TENSOR_FILE else "not valid JSON")
    refused(tmp_path / "nowhere", "no such file")


@pytest.mark.parametrize(
    "text", [b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"voxels": 1' + b"0" * 5000 + b"}", b"7"]
)
def test_descriptions_that_are_not_an_object(tmp_path: Path, text: bytes) -> None:
    folder = put(tmp_path / "s", *make())
    (folder / DESCRIPTION_FILE).write_bytes(text)
    refused(folder, DESCRIPTION_FILE)


def test_an_endless_description_is_not_read(tmp_path: Path) -> None:
    folder = put(tmp_path / "s", *make())
    with open(folder / DESCRIPTION_FILE, "wb") as stream:
        stream.truncate(1 << 40)
    refused(folder, DESCRIPTION_FILE, "larger than such a file can be")


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    folder = put(tmp_path / "s", *make())
    for file in (DESCRIPTION_FILE, TENSOR_FILE):
        whole = (folder / file).read_bytes()
        for length in {*range(0, len(whole), 97), len(whole) - 1}:
            (folder / file).write_bytes(whole[:length])
            refused(folder, file)
        (folder / file).write_bytes(whole)
    (folder / TENSOR_FILE).write_bytes(whole + b"\0" * 4)
    refused(folder, TENSOR_FILE, "damaged")
    (folder / TENSOR_FILE).write_bytes(whole)
    Subject.open(folder)


def test_flipped_bytes_never_crash(tmp_path: Path) -> None:
    folder = put(tmp_path / "s", *make())
    rng = np.random.default_rng(5)
    for file in (DESCRIPTION_FILE, TENSOR_FILE):
        whole = (folder / file).read_bytes()
        for place in rng.integers(0, min(len(whole), 2000), 300):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << int(rng.integers(8))
            (folder / file).write_bytes(damaged)
            try:
                Subject.open(folder).predict(betas(VOXELS))
            except BundleError as error:
                check_line(str(error))
        (folder / file).write_bytes(whole)


def test_names_of_any_kind_stay_on_one_line(tmp_path: Path) -> None:
    description, tensors = make()
    description["name"] = "a\nb\ud800" + "x" * 500
    subject = Subject.open(put(tmp_path / ("long-" * 40), description, tensors))
    with pytest.raises(InputError) as caught:
        subject.predict(betas(VOXELS + 1))
    check_line(str(caught.value))
    description["heads"] = {"y\n" * 300: 1}
    refused(put(tmp_path / ("long-" * 40), description, tensors), "heads are")


# --- regions ------------------------------------------------------------------------------------------------


def test_regions_are_read_when_asked_for(tmp_path: Path) -> None:
    folder = put(tmp_path / "s", *make())
    subject = Subject.open(folder)
    assert subject.rois() == {}
    inside = np.arange(VOXELS, dtype=np.uint8) % 2
    (folder / ROI_FILE).write_bytes(save({"faces": inside, "V1v": 1 - inside}))
    found = subject.rois()
    assert list(found) == ["V1v", "faces"]
    for region, member in (("faces", inside), ("V1v", 1 - inside)):
        assert found[region].dtype == np.bool_
        np.testing.assert_array_equal(found[region], member.astype(bool))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (save({"faces": np.ones(VOXELS + 1, np.uint8)}), r"region faces is U8 (31,), not U8 (30,)"),
        (save({"faces": np.ones(VOXELS, np.float32)}), "region faces is F32"),
        (save({"faces": np.full(VOXELS, 2, np.uint8)}), "region faces has values up to 2"),
        (save({"faces": np.ones(VOXELS, np.uint8)})[:-4], "damaged"),
        (b"", "damaged"),
        (b"\x93NUMPY", "damaged"),
    ],
)
def test_damaged_regions_are_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    folder = put(tmp_path / "s", *make())
    (folder / ROI_FILE).write_bytes(content)
    subject = Subject.open(folder)  # decoding does not need them
    with pytest.raises(BundleError) as caught:
        subject.rois()
    check_line(str(caught.value))
    assert problem in str(caught.value)
    assert ROI_FILE in str(caught.value)


def test_a_folder_of_regions_is_no_file(tmp_path: Path) -> None:
    folder = put(tmp_path / "s", *make())
    (folder / ROI_FILE).mkdir()
    with pytest.raises(BundleError, match="not a regular file"):
        Subject.open(folder).rois()
