"""Fidelity: bundles agree with what was recorded of them, and nothing that is changed goes unseen.

The phantom's golden file stands in the repository. The golden checkpoint's is the stricter one: its reference is
another implementation.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import Engine, EngineError, GraphSpec, Session, create_engine
from unibrain_rt.errors import BundleError, InputError, UnibrainError
from unibrain_rt.verification import RTOL, Row, load_golden, verify

Golden = dict[str, np.ndarray[Any, Any]]
PARTS = (
    "clip.text.",
    "clip.image.",
    "autokl.",
    "optimus.encoder.",
    "optimus.decoder.",
    "unet.",
    "ddim.",
    "decode.",
)
ROWS = {"phantom": 27, "golden": 24}
LOOP_LIMIT = 1e-3  # what issue 2 asks of the final latents


class CachedEngine(Engine):
    """Opens every graph once. A comparison writes whatever it runs on, so that sessions can be used again."""

    def __init__(self) -> None:
        self._engine = create_engine(threads=1)
        self.name = self._engine.name
        self._sessions: dict[tuple[str, int], Session] = {}

    def open(self, graph: GraphSpec, *, free: int = 1, shared: Mapping[str, object] | None = None) -> Session:
        key = (graph.name, free)
        if key not in self._sessions:
            self._sessions[key] = self._engine.open(graph, free=free, shared=shared)
        return self._sessions[key]

    def describe(self) -> dict[str, str | int]:
        return self._engine.describe()

    def _open_impl(self, graph: GraphSpec, free: int, shared: Mapping[str, object]) -> Session:
        raise NotImplementedError


@pytest.fixture(scope="module")
def recorded(recorded_bundle: tuple[Path, Path]) -> Golden:
    return load_file(recorded_bundle[1])


@pytest.fixture(scope="module")
def compare(recorded_bundle: tuple[Path, Path]) -> Callable[..., list[Row]]:
    bundle, engine = Bundle.open(recorded_bundle[0]), CachedEngine()

    def run(golden: Golden, rtol: float = RTOL) -> list[Row]:
        return list(verify(bundle, golden, engine, rtol))

    return run


def part_of(name: str, recorded: Golden) -> Golden:
    """The tensors that a comparison with ``name`` in it needs, and no more."""
    if not name.startswith(("unet.", "ddim.")):
        prefix = next(prefix for prefix in PARTS if name.startswith(prefix))
        return {key: value for key, value in recorded.items() if key.startswith(prefix)}
    kept = {"unet.timesteps", "unet.context.image", "unet.context.text", "unet.image.x", "unet.text.x", name}
    flow = name.split(".")[1]
    if name.startswith("unet."):
        # Predictions that all inputs go into.
        kept |= {f"unet.{each}.eps.dual_image_ratio_0.6" for each in ("image", "text")}
    else:
        kept |= {"ddim.timesteps", "ddim.uncond.image", "ddim.uncond.text"}
        flow = flow if flow == "text" else "image"
        kept |= {key for key in recorded if key.startswith(f"ddim.{flow}.")}
    return {key: recorded[key] for key in kept}


def with_one_changed(array: np.ndarray[Any, Any], place: int) -> np.ndarray[Any, Any]:
    """1 RMS more at one place, or 1 more for whole numbers."""
    changed = array.copy()
    if array.dtype == np.uint8:
        changed.reshape(-1)[place] ^= 0x40
    else:
        step = 1 if array.dtype.kind == "i" else np.sqrt(np.mean(np.square(array)))
        changed.reshape(-1)[place] += step
    return changed


# --- Everything in a golden file ----------------------------------------------------------------------------


def test_every_tensor_agrees(
    compare: Callable[..., list[Row]],
    recorded: Golden,
    recorded_bundle: tuple[Path, Path],
    report: Callable[[str], None],
) -> None:
    rows = compare(recorded)
    assert [row.name for row in rows if not row.ok] == []
    wanted = {
        name
        for name in recorded
        if (name.startswith("unet.") and ".eps." in name)
        or name.split(".")[-1] in ("context", "posterior_mean", "scaled_latent", "decoded_from_scaled_latent",
                                   "latent_mean", "greedy_tokens", "output")
        or ".logits_" in name
        or name == "ddim.timesteps"
        or (name.startswith("decode.") and not name.endswith((".voxels", ".seed")))
    }  # fmt: skip
    assert {row.name for row in rows} == wanted
    loops = [row for row in rows if row.name.startswith("ddim.") and row.name.endswith(".output")]
    assert len(loops) == 2
    assert all(row.error < LOOP_LIMIT for row in loops)
    decoded = [row for row in rows if row.name.startswith("decode.")]
    assert all(row.error < RTOL for row in rows if row not in loops and row not in decoded)
    assert all(row.error < LOOP_LIMIT for row in decoded)
    worst = max(rows, key=lambda row: row.error)
    report(
        f"verify, {recorded_bundle[1].stem}: worst of {len(rows)} tensors is {worst.name}, {worst.error:.1e} relative L2"
    )


@pytest.mark.parametrize("prefix", PARTS)
def test_one_changed_value_is_seen(compare: Callable[..., list[Row]], recorded: Golden, prefix: str) -> None:
    """In every tensor of the file, inputs and outputs alike: the row is off, or the file is refused."""
    unseen = []
    for name in sorted(name for name in recorded if name.startswith(prefix)):
        array = recorded[name]
        places = {0, array.size // 2, array.size - 1}
        if name.startswith(("ddim.", "decode.")) and "uncond" not in name:  # each costs a whole loop
            places = {array.size // 2}
        for place in sorted(places):
            golden = {**part_of(name, recorded), name: with_one_changed(array, place)}
            try:
                rows = compare(golden)
            except InputError:
                continue
            if all(row.ok for row in rows):
                unseen.append(f"{name}[{place}]")
    assert unseen == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "name", ["clip.image.context", "autokl.image", "unet.image.x", "optimus.decoder.latent"]
)
@pytest.mark.filterwarnings("error")
def test_what_is_not_finite_is_off(
    compare: Callable[..., list[Row]], recorded: Golden, name: str, value: float
) -> None:
    array = recorded[name].copy()
    array.reshape(-1)[0] = value
    assert not all(row.ok for row in compare({**part_of(name, recorded), name: array}))


@pytest.mark.parametrize("prefix", PARTS)
def test_what_a_comparison_needs_has_to_be_there(
    compare: Callable[..., list[Row]], recorded: Golden, prefix: str
) -> None:
    """Without an input there is an error; without an output of a flow, there is a row less, and no more."""
    for name in sorted(name for name in recorded if name.startswith(prefix)):
        golden = part_of(name, recorded)
        del golden[name]
        try:
            left = {row.name for row in compare(golden)}
        except InputError as error:
            assert name in str(error) or "no comparison covers" in str(error), name
        else:
            assert ".eps." in name, f"{name} is not missed"
            assert left == {row.name for row in compare(part_of(name, recorded))} - {name}


@pytest.mark.parametrize("prefix", PARTS)
@pytest.mark.filterwarnings("error")
def test_other_shapes_and_types_are_refused(
    compare: Callable[..., list[Row]], recorded: Golden, prefix: str
) -> None:
    for name in sorted(name for name in recorded if name.startswith(prefix)):
        array = recorded[name]
        wrong: dict[str, np.ndarray[Any, Any]] = {
            "one axis more": array[None],
            "flat": array.reshape(-1) if array.ndim != 1 else array[:, None],
            "a scalar": np.zeros((), array.dtype) if array.ndim else np.zeros(2, array.dtype),
            "empty": np.zeros((0, *array.shape[1:]), array.dtype) if array.ndim else np.zeros(0, array.dtype),
            "truncated": array[..., :-1] if array.ndim else np.zeros((2, 2), array.dtype),
        }
        if array.ndim > 1:
            wrong["one sample"] = array[:1] if len(array) > 1 else np.repeat(array, 3, axis=0)
        if array.dtype.kind == "i":
            wrong["of floats"] = array.astype(np.float32) + 0.5
        else:
            wrong["of truths"] = array > 0
        if name.startswith("ddim.") and name.endswith(".output"):  # each costs a whole loop
            wrong = {"one axis more": array[None]}
        if name.startswith("decode."):  # each costs two
            wrong = {
                label: wrong[label] for label in ("one axis more", "of truths", "of floats") if label in wrong
            }
        for label, value in wrong.items():
            golden = {**part_of(name, recorded), name: value}
            try:
                rows = compare(golden)
            except UnibrainError as error:
                assert error.exit_code == 2, (name, label)
            else:
                assert not all(row.ok for row in rows), f"{name}, {label}, goes unseen"


def test_a_tighter_limit_is_obeyed(compare: Callable[..., list[Row]], recorded: Golden) -> None:
    part = part_of("clip.text.context", recorded)
    assert all(row.ok for row in compare(part))
    assert not all(row.ok for row in compare(part, rtol=1e-12))
    changed = {**part, "clip.text.context": recorded["clip.text.context"] * np.float32(1.01)}
    assert not all(row.ok for row in compare(changed))
    assert all(row.ok for row in compare(changed, rtol=0.1))


@pytest.mark.parametrize(
    ("extra", "problem"),
    [("clip.audio.context", "no comparison covers"), ("unet.image.eps.context_smell", "no comparison covers"),
     ("unet.image.eps.dual_image_ratio_0.6.1", "no comparison covers"), ("other", "no comparison covers")],
)  # fmt: skip
def test_what_is_not_known_is_not_passed_over(
    compare: Callable[..., list[Row]], recorded: Golden, extra: str, problem: str
) -> None:
    name = extra if extra.startswith("unet.") else "clip.text.context"
    golden = {**part_of(name, {**recorded, extra: recorded["unet.image.x"]}), extra: recorded["unet.image.x"]}
    with pytest.raises(InputError, match=problem):
        compare(golden)


def test_nothing_to_compare_is_no_agreement(compare: Callable[..., list[Row]]) -> None:
    with pytest.raises(InputError, match="the golden file is empty"):
        compare({})


@pytest.fixture(scope="module")
def phantom_recorded(phantom_golden: Path) -> Golden:
    return load_file(phantom_golden)


# --- Rows and files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "element_error", "ok"),
    [(0, 0, True), (1e-4, 1e-3, True), (2e-4, 0, False), (0, 2e-3, False), (math.nan, 0, False), (0, math.inf, False)],
)  # fmt: skip
def test_both_errors_count(error: float, element_error: float, ok: bool) -> None:
    assert Row("x", error, 1e-4, element_error, 1e-3).ok is ok


@pytest.mark.parametrize("raw", [b"", b"\0" * 7, b"x" * 100, b"\xff" * 8 + b"{}"])
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "golden.safetensors"
    path.write_bytes(raw)
    with pytest.raises(InputError, match="not a readable safetensors file"):
        load_golden(path)


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "golden.safetensors"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(InputError, match="no such file"):
        load_golden(path)


def test_a_broken_graph_is_an_engine_error(
    phantom_bundle: Path, phantom_recorded: Golden, tmp_path: Path
) -> None:
    bundle = Bundle.open(phantom_bundle, verify=False)
    graph = bundle.graph("clip_text")
    broken = tmp_path / "clip_text.onnx"
    broken.write_bytes(graph.path.read_bytes()[:1000])
    graphs = {"clip_text": GraphSpec(graph.name, broken, graph.inputs, graph.outputs)}
    damaged = Bundle(**{**vars(bundle), "graphs": graphs})
    with pytest.raises(EngineError, match="cannot load"):
        list(verify(damaged, part_of("clip.text.context", phantom_recorded), create_engine(threads=1)))
    with pytest.raises(BundleError, match="no graph clip_image"):
        list(verify(damaged, part_of("clip.image.context", phantom_recorded), create_engine(threads=1)))


# --- The command --------------------------------------------------------------------------------------------


@pytest.fixture
def small(phantom_recorded: Golden, tmp_path: Path) -> Path:
    """A golden file of one quick comparison."""
    path = tmp_path / "golden.safetensors"
    save_file(part_of("clip.text.context", phantom_recorded), path)
    return path


def test_the_command_prints_a_row_a_tensor(cli: Any, recorded_bundle: tuple[Path, Path]) -> None:
    done = cli("verify", recorded_bundle[0], "--golden", recorded_bundle[1])
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].split() == ["tensor", "error", "limit", "element", "limit"]
    rows = ROWS[recorded_bundle[1].stem]
    assert lines[-1] == f"{rows} of {rows} tensors agree"
    assert all(line.endswith("  ok") for line in lines[1:-1])
    assert max(map(len, lines)) < 100


def test_the_command_exits_1_where_a_value_is_off(
    cli: Any, phantom_bundle: Path, phantom_recorded: Golden, small: Path
) -> None:
    part = load_file(small)
    part["clip.text.context"] = with_one_changed(part["clip.text.context"], 5)
    save_file(part, small)
    done = cli("verify", phantom_bundle, "--golden", small)
    assert done.code == 1
    assert len(done.complaints) == 1
    assert done.err.endswith("differs from the reference in clip.text.context\n")
    assert "OFF" in done.out
    assert done.out.endswith("0 of 1 tensors agree\n")


def test_the_command_prints_json(cli: Any, phantom_bundle: Path, small: Path, tmp_path: Path) -> None:
    done = cli("verify", phantom_bundle, "--golden", small, "--json")
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert found["ok"] is True
    assert found["bundle"] == str(phantom_bundle)
    assert found["engine"]["engine"] == "onnxruntime"
    (row,) = found["tensors"]
    assert row["name"] == "clip.text.context"
    assert row["ok"] is True
    assert 0 <= row["error"] < row["limit"] == RTOL
    file = tmp_path / "new" / "report.json"
    done = cli("verify", phantom_bundle, "--json", file, "--golden", small)
    assert done.code == 0
    assert done.out.endswith("1 of 1 tensors agree\n")
    assert json.loads(file.read_text())["tensors"][0]["name"] == "clip.text.context"


def test_json_knows_no_infinity(cli: Any, phantom_bundle: Path, small: Path) -> None:
    part = load_file(small)
    part["clip.text.context"][:] = np.nan
    save_file(part, small)
    done = cli("verify", phantom_bundle, "--golden", small, "--json")
    assert done.code == 1
    found = json.loads(done.out, parse_constant=pytest.fail)
    assert found["ok"] is False
    assert found["tensors"][0]["error"] is None


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--engine", "none"], 3),
        (["--rtol", "0"], 2),
        (["--rtol", "x"], 2),
        (["--threads", "0"], 2),
        (["--golden", "nowhere.safetensors"], 2),
    ],
)
def test_the_command_refuses_what_makes_no_sense(
    cli: Any, phantom_bundle: Path, small: Path, words: list[str], code: int
) -> None:
    done = cli("verify", phantom_bundle, "--golden", small, *words)
    assert done.code == code
    assert len(done.complaints) == 1
    assert done.out == ""


def test_a_golden_file_is_asked_for(cli: Any, phantom_bundle: Path) -> None:
    done = cli("verify", phantom_bundle)
    assert done.code == 2
    assert "--golden" in done.err
    assert len(done.complaints) == 1


def test_the_wrong_golden_file_is_said_to_be(cli: Any, phantom_bundle: Path, small: Path) -> None:
    part = load_file(small)
    save_file({key: value[:, :-1] for key, value in part.items()}, small)
    done = cli("verify", phantom_bundle, "--golden", small)
    assert done.code == 2
    assert len(done.complaints) == 1
    assert "recorded from its own checkpoint" in done.err
