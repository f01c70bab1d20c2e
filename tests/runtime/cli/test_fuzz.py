"""Malformed scans, manifests and bundles at the command line: exit code 2 or 3, one line, no output, in no time.

Damage that a decode does not feel (to the provenance, say) is no case: it is not counted. The bundle's files are
sealed again after they were damaged, where not said otherwise, so that more than the SHA-256 is put to the test.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from damage import (
    HUGE,
    KINDS,
    SEED,
    broken_json,
    graph_damages,
    json_cases,
    npy,
    replace,
    safetensors_cases,
    scan_cases,
)

SECONDS = 2.0
CASES = 200
Cli = Callable[..., Any]


class Trial:
    """Runs case after case and keeps what went wrong, so that one failure does not hide the next."""

    def __init__(self, cli: Cli, out: Path, tally: dict[str, float]) -> None:
        self._cli, self._out, self._tally = cli, out, tally
        self.commands: list[tuple[str | Path, ...]] = []
        self.counted = 0
        self.problems: list[str] = []

    def run(self, case: str) -> None:
        counts = False
        for words in self.commands:
            done, seconds = self._timed(words)
            if seconds > SECONDS:  # on a busy machine a second look is fair
                seconds = min(seconds, self._timed(words)[1])
            self._tally["slowest"] = max(self._tally["slowest"], seconds)
            left = sorted(path.name for path in self._out.rglob("*")) if self._out.exists() else []
            shutil.rmtree(self._out, ignore_errors=True)
            label = f"{case}: {words[0]} exits {done.code}, {done.err.strip()!r}"
            if done.code == 0:
                if done.err:
                    self.problems.append(f"{label}: complains all the same")
                continue
            counts = True
            if done.out:
                self.problems.append(f"{label}: prints {done.out[:200]!r}")
            if done.code not in (2, 3) or "Traceback" in done.err or "unexpected" in done.err:
                self.problems.append(label)
            elif len(done.complaints) != 1 or not done.err.strip().isprintable():
                self.problems.append(f"{label}: not one line")
            elif left:
                self.problems.append(f"{label}: leaves {left}")
            elif seconds > SECONDS:
                self.problems.append(f"{label}: took {seconds:.1f} s")
        self.counted += counts
        self._tally["cases"] += counts

    def _timed(self, words: tuple[str | Path, ...]) -> tuple[Any, float]:
        begun = time.perf_counter()
        return self._cli(*words), time.perf_counter() - begun

    def check(self, least: int) -> None:
        assert not self.problems, f"{len(self.problems)} of {self.counted}:\n" + "\n".join(self.problems[:40])
        assert self.counted >= least, f"{self.counted} cases counted"


@pytest.fixture(scope="module")
def tally() -> dict[str, float]:
    """What all trials together come to."""
    return {"cases": 0, "slowest": 0.0}


@pytest.fixture
def scan_trial(
    cli: Cli, tiny_template: Path, tmp_path: Path, tally: dict[str, float]
) -> Callable[[Path], Trial]:
    """Decodes a scan with an undamaged bundle."""
    out = tmp_path / "out"

    def made(scan: Path) -> Trial:
        trial = Trial(cli, out, tally)
        words = ("decode", scan, "--bundle", tiny_template, "--out", out, "--preset", "realtime")
        trial.commands.append((*words, "--threads", "1"))
        return trial

    return made


@pytest.fixture
def trial(cli: Cli, tiny_bundle: Path, tiny_scan: Path, tmp_path: Path, tally: dict[str, float]) -> Trial:
    """Decodes the tiny scan with the tiny bundle, which is there to be damaged, and asks what is in it."""
    out = tmp_path / "out"
    made = Trial(cli, out, tally)
    words = ("decode", tiny_scan, "--bundle", tiny_bundle, "--out", out, "--preset", "realtime")
    made.commands += [(*words, "--threads", "1"), ("info", tiny_bundle)]
    return made


def test_the_undamaged_case_decodes(trial: Trial) -> None:
    trial.run("nothing")
    trial.check(0)
    assert trial.counted == 0


# --- Scans --------------------------------------------------------------------------------------------------


def test_scans(scan_trial: Callable[[Path], Trial], tiny: Any, tmp_path: Path) -> None:
    problems, counted = [], 0
    for name, data in scan_cases(tiny.scan(), tiny.mask()):
        path = tmp_path / name
        path.write_bytes(data)
        trial = scan_trial(path)
        trial.run(name)
        problems += trial.problems
        counted += trial.counted
        path.unlink()
    assert not problems, "\n".join(problems)
    assert counted >= 100, counted


@pytest.mark.parametrize("kind", ["missing", "folder", "loop", "pipe", "device"])
def test_scans_that_are_no_files(kind: str, scan_trial: Callable[[Path], Trial], tmp_path: Path) -> None:
    path = tmp_path / "scan.npy"
    match kind:
        case "folder":
            path.mkdir()
        case "loop":
            path.symlink_to(path)
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
    trial = scan_trial(path)
    trial.run(kind)
    trial.check(1)


# --- JSON ---------------------------------------------------------------------------------------------------


def test_manifests(trial: Trial, tiny_bundle: Path) -> None:
    path = tiny_bundle / "bundle.json"
    text = path.read_text()
    cases = [(label, json.dumps(value).encode()) for label, value in json_cases(json.loads(text), 1)]
    for label, data in [*cases, *broken_json(text)]:
        path.write_bytes(data)
        trial.run(label)
    trial.check(400)


def test_subjects(trial: Trial, tiny: Any, tiny_bundle: Path) -> None:
    path = tiny_bundle / "subjects" / "sub-01" / "subject.json"
    text = path.read_text()
    cases = [(label, json.dumps(value).encode()) for label, value in json_cases(json.loads(text), 3)]
    for label, data in [*cases, *broken_json(text)]:
        path.write_bytes(data)
        tiny.seal(tiny_bundle)
        trial.run(label)
    trial.check(150)


# --- Files --------------------------------------------------------------------------------------------------


FILES = ["bundle.json", "constants.safetensors", "graphs/unet.weights", "graphs/unet_text_step.onnx",
         "subjects/sub-01/heads.safetensors", "subjects/sub-01/subject.json", "tokenizers/gpt2/vocab.json"]  # fmt: skip


def test_files(trial: Trial, tiny: Any, tiny_bundle: Path) -> None:
    """Every way in which a file can be wrong, noticed by its size or SHA-256, and again behind their back."""
    manifest = tiny_bundle / "bundle.json"
    described = manifest.read_bytes()
    for name in FILES:
        path = tiny_bundle / name
        raw = path.read_bytes()
        for kind in KINDS:
            replace(path, kind)
            trial.run(f"{name} {kind}")
            if kind not in ("device", "pipe") and path != manifest:
                tiny.seal(tiny_bundle)
                trial.run(f"{name} {kind}, sealed")
            for left in (path, path.with_name(f"{path.name}.bak")):
                if left.is_dir() and not left.is_symlink():
                    left.rmdir()
                else:
                    left.unlink(missing_ok=True)
            path.write_bytes(raw)
            manifest.write_bytes(described)
    trial.check(100)


@pytest.mark.parametrize("kind", ["missing", "file", "empty folder", "parent", "loop"])
def test_what_is_no_bundle(
    kind: str, trial: Trial, tiny_scan: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "there is no bundle"
    match kind:
        case "file":
            bundle.write_bytes(b"x")
        case "empty folder":
            bundle.mkdir()
        case "parent":
            bundle = tiny_bundle.parent
        case "loop":
            bundle.symlink_to(bundle)
    golden = tiny_bundle / "constants.safetensors"
    trial.commands[:] = [
        ("decode", tiny_scan, "--bundle", bundle, "--out", tmp_path / "out"),
        ("info", bundle),
        ("verify", bundle, "--golden", golden),
    ]
    trial.run(kind)
    trial.check(1)


HOSTILE = [
    *(
        "..",
        "../..",
        "../../etc/passwd",
        "/etc/passwd",
        "a/../../b",
        "C:\\x",
        "a\\..\\b",
        "",
        ".",
        "\ud800",
        "a\nb",
    ),
    "x" * 300,
    "/".join("a" * 2000),
]


@pytest.mark.parametrize("where", ["files", "graph", "subject", "tokenizer"])
def test_hostile_paths(where: str, trial: Trial, tiny_bundle: Path) -> None:
    path = tiny_bundle / "bundle.json"
    manifest = json.loads(path.read_text())
    for name in HOSTILE:
        hostile = copy.deepcopy(manifest)
        match where:
            case "files":
                hostile["files"][name] = hostile["files"]["constants.safetensors"]
            case "graph":
                hostile["graphs"]["unet_time"]["file"] = name
            case "subject":
                hostile["subjects"] = [name]
            case "tokenizer":
                hostile["tokenizers"]["gpt2"] = name
        path.write_text(json.dumps(hostile))
        trial.run(f"{where} {name[:40]!r}")
    trial.check(len(HOSTILE))


@pytest.mark.parametrize("name", ["constants.safetensors", "subjects/sub-01/heads.safetensors"])
def test_safetensors(name: str, trial: Trial, tiny: Any, tiny_bundle: Path) -> None:
    from safetensors.numpy import load_file

    path = tiny_bundle / name
    for label, data in safetensors_cases(load_file(path)):
        path.write_bytes(data)
        tiny.seal(tiny_bundle)
        trial.run(f"{name}: {label}")
    trial.check(40)


def test_vocabularies(trial: Trial, tiny: Any, tiny_bundle: Path) -> None:
    path = tiny_bundle / "tokenizers" / "gpt2" / "vocab.json"
    good = json.loads(path.read_text())
    cases: dict[str, Any] = {
        "list": list(good),
        "empty": {},
        "one more": {**good, "Ġzebra": len(good)},
        "one less": {key: value for key, value in good.items() if key != "."},
        "twice": {**good, ".": 0},
        "negative": {**good, ".": -1},
        "beyond": {**good, ".": len(good)},
        "text": {**good, ".": "12"},
        "true": {**good, "a": True},
        "null": {**good, ".": None},
        "huge": {**good, ".": HUGE},
        "no bytes": {**{key: value for key, value in good.items() if key != "."}, "犬": good["."]},
        "surrogate": {**{key: value for key, value in good.items() if key != "."}, "\ud800": good["."]},
    }
    for label, value in cases.items():
        path.write_text(json.dumps(value))
        tiny.seal(tiny_bundle)
        trial.run(label)
    for label, data in broken_json(json.dumps(good)):
        path.write_bytes(data)
        tiny.seal(tiny_bundle)
        trial.run(label)
    trial.check(30)


# --- Graphs -------------------------------------------------------------------------------------------------

GRAPHS = ["autokl_decode", "optimus_decode", "unet_context", "unet_image_step", "unet_text_step", "unet_time"]


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs(name: str, trial: Trial, tiny: Any, tiny_bundle: Path) -> None:
    onnx = pytest.importorskip("onnx")
    path = tiny_bundle / "graphs" / f"{name}.onnx"
    raw = path.read_bytes()
    for label, damage in graph_damages(onnx):
        model = onnx.load_from_string(raw)
        damage(model)
        path.write_bytes(model.SerializeToString())
        tiny.seal(tiny_bundle)
        trial.run(f"{name} {label}")
    trial.check(len(list(graph_damages(onnx))) - 3)


def test_weights(trial: Trial, tiny: Any, tiny_bundle: Path) -> None:
    onnx = pytest.importorskip("onnx")
    path = tiny_bundle / "graphs" / "unet.weights"
    raw = path.read_bytes()
    for label, data in {
        "NaN": np.full(len(raw) // 4, np.nan, np.float32).tobytes(),
        "Inf": np.full(len(raw) // 4, np.inf, np.float32).tobytes(),
        "huge": np.full(len(raw) // 4, 3e38, np.float32).tobytes(),
        "ones": b"\xff" * len(raw),
    }.items():
        path.write_bytes(data)
        tiny.seal(tiny_bundle)
        trial.run(label)
    path.write_bytes(raw)
    graph = tiny_bundle / "graphs" / "unet_context.onnx"
    whole = graph.read_bytes()
    for key, value in [
        *(("location", value) for value in ("../../../../../etc/passwd", "/etc/passwd", "nowhere", ".", "")),
        *(("offset", value) for value in ("-4", str(2**62), "x", str(len(raw)))),
        *(("length", value) for value in ("3", str(2**62), "-1", "")),
    ]:
        model = onnx.load_from_string(whole)
        external = next(t for t in model.graph.initializer if t.external_data).external_data
        next(entry for entry in external if entry.key == key).value = value
        graph.write_bytes(model.SerializeToString())
        tiny.seal(tiny_bundle)
        trial.run(f"{key} {value}")
    trial.check(12)


# --- Processes ----------------------------------------------------------------------------------------------


def process_cases(scan: Path, bundle: Path, tiny: Any) -> Iterator[str]:
    """Damages the scan or the bundle and says how; all is put back before the next."""
    files = {path: path.read_bytes() for path in (scan, *bundle.rglob("*")) if path.is_file()}

    def damaged(name: str, data: bytes) -> None:
        (bundle / name).write_bytes(data)
        tiny.seal(bundle)

    def put_back() -> None:
        for path, raw in files.items():
            path.write_bytes(raw)

    scan.write_bytes(npy(np.full(tiny.VOXELS, np.nan)))
    yield "a scan of NaN"
    scan.write_bytes(npy(np.array([{}] * tiny.VOXELS, object), allow_pickle=True))
    yield "a scan of objects"
    put_back()
    (bundle / "bundle.json").write_bytes(b"[" * 100_000)
    yield "a deep manifest"
    put_back()
    (bundle / "bundle.json").unlink()
    os.mkfifo(bundle / "bundle.json")
    yield "a manifest that is a pipe"
    (bundle / "bundle.json").unlink()
    put_back()
    damaged("graphs/unet.weights", b"")
    yield "no weights"
    put_back()
    # A back end that crashes on a damaged graph would take this process with it.
    rng = np.random.default_rng(SEED)
    for number in range(16):
        graph = bundle / "graphs" / f"{GRAPHS[number % len(GRAPHS)]}.onnx"
        raw = bytearray(files[graph])
        for place in rng.integers(0, len(raw), 8):
            raw[place] ^= int(rng.integers(1, 256))
        damaged(f"graphs/{graph.name}", bytes(raw))
        yield f"8 bytes of {graph.name}, {number}"
        put_back()


def test_processes(
    tiny: Any, tiny_bundle: Path, tiny_scan: Path, tmp_path: Path, tally: dict[str, float]
) -> None:
    out = tmp_path / "out"

    def run(*words: str | Path) -> Any:
        command = [sys.executable, "-m", "unibrain_rt", *map(str, words)]
        done = subprocess.run(command, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        lines = done.stderr.splitlines()
        return SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr, complaints=lines)

    trial = Trial(run, out, tally)
    words = ("decode", tiny_scan, "--bundle", tiny_bundle, "--out", out, "--preset", "realtime")
    trial.commands.append((*words, "--threads", "1"))
    for case in process_cases(tiny_scan, tiny_bundle, tiny):
        trial.run(case)
    trial.check(16)


# --- All together -------------------------------------------------------------------------------------------


def test_there_were_enough_cases(
    request: pytest.FixtureRequest, tally: dict[str, float], report: Callable[[str], None]
) -> None:
    ran = {item.originalname for item in request.session.items if item.path == request.path}  # type: ignore[attr-defined]
    if not {"test_scans", "test_manifests", "test_subjects", "test_files", "test_graphs"} <= ran:
        pytest.skip("only some of the trials were run")
    report(f"fuzz: {tally['cases']:.0f} malformed cases, the slowest took {tally['slowest']:.2f} s")
    assert tally["cases"] >= CASES
