"""Fixtures and the `gpu` marker for the whole suite."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.append(str(Path(__file__).resolve().parent / "helpers"))

_measurements = pytest.StashKey[list[str]]()


@functools.cache
def has_cuda_device() -> bool:
    """Asked of the driver itself: no back end is imported."""
    from unibrain_rt.engines.cuda.driver import cuda_driver, device_name

    return device_name(cuda_driver()) is not None


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not has_cuda_device():
        pytest.skip("needs a CUDA device, and the driver offers none")


@pytest.fixture(scope="session", autouse=True)
def settled_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test writes plans into the user's cache, and ``auto`` means the CPU whatever else is installed."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("UNIBRAIN_RT_CACHE", str(tmp_path_factory.mktemp("plans")))
        environment.setenv("UNIBRAIN_RT_ENGINE", "onnxruntime")
        environment.delenv("UNIBRAIN_RT_CACHE_LIMIT", raising=False)
        yield


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel."""
    built: Path = importlib.import_module("built_wheel").build(repository, tmp_path_factory.mktemp("wheel"))
    return built


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder of the recorded reference: checkpoint, config, tokenizers and golden.safetensors."""
    named = os.environ.get("UNIBRAIN_GOLDEN")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "golden"
    if not (folder / "golden.safetensors").is_file():
        if named:
            pytest.fail(f"UNIBRAIN_GOLDEN is {named}, which holds no golden.safetensors")
        pytest.skip("no golden files: put them in ../shared/golden or name their folder in UNIBRAIN_GOLDEN")
    return folder


@pytest.fixture(scope="session")
def phantom_bundle() -> Path:
    """The bundle that ships in the wheel."""
    folder = REPOSITORY / "runtime" / "phantom"
    if not (folder / "bundle.json").is_file():
        pytest.fail("runtime/phantom/bundle.json is missing: the shipped bundle is part of the repository")
    return folder


@pytest.fixture(scope="session")
def golden_bundle(golden_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden checkpoint, exported once through the command line; UNIBRAIN_GOLDEN_BUNDLE names one that is."""
    if named := os.environ.get("UNIBRAIN_GOLDEN_BUNDLE"):
        return Path(named)
    if importlib.util.find_spec("torch") is None:
        pytest.skip("needs torch, to export the golden checkpoint")
    out = tmp_path_factory.mktemp("golden") / "bundle"
    command = [sys.executable, "-m", "unibrain_rt", "export", str(golden_dir), "--out", str(out)]
    # From elsewhere: in the checkout, the folders at its top could be imported by their own names.
    done = subprocess.run(command, cwd=out.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="session")
def phantom_golden() -> Path:
    """What was recorded of the shipped bundle."""
    return REPOSITORY / "tests" / "golden" / "phantom.safetensors"


@pytest.fixture(scope="module", params=["phantom", "golden"])
def recorded_bundle(request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """A bundle, and the golden file of its checkpoint."""
    if request.param == "phantom":
        return request.getfixturevalue("phantom_bundle"), request.getfixturevalue("phantom_golden")
    folder = request.getfixturevalue("golden_dir")
    return request.getfixturevalue("golden_bundle"), folder / "golden.safetensors"


@pytest.fixture(scope="session")
def tiny() -> Any:
    """The module ``helpers/tiny.py``, which makes tiny bundles."""
    for library in ("onnx", "scipy"):
        pytest.importorskip(library)
    return importlib.import_module("tiny")


@pytest.fixture(scope="session")
def tiny_template(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle for everybody to read and copy, and nobody to change."""
    folder: Path = tiny.make_bundle(tmp_path_factory.mktemp("tiny") / "bundle")
    return folder


@pytest.fixture
def tiny_bundle(tiny_template: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle, to damage."""
    return Path(shutil.copytree(tiny_template, tmp_path / "bundle"))


@pytest.fixture
def tiny_scan(tiny: Any, tmp_path: Path) -> Path:
    """A scan of the tiny bundle's subject."""
    import numpy as np

    path = tmp_path / "scan.npy"
    np.save(path, tiny.scan())
    return path


@dataclass(frozen=True)
class Outcome:
    """What a command line ended with and printed."""

    code: int
    out: str
    err: str

    @property
    def complaints(self) -> list[str]:
        """Lines on stderr."""
        return self.err.splitlines()


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs ``unibrain-rt`` with the given words in this process; what libraries write to stderr counts, too."""

    def run(*words: str | Path) -> Outcome:
        from unibrain_rt.cli import main

        capfd.readouterr()
        with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
            warnings.simplefilter("default")
            warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
            main([str(word) for word in words])
        printed = capfd.readouterr()
        return Outcome(int(ended.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Shows a measured value at the end of the run, whether or not the test passes."""
    return request.config.stash.setdefault(_measurements, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    measurements = config.stash.get(_measurements, [])
    if measurements:
        terminalreporter.section("measured")
        for line in measurements:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subjects with one session each, in NSD's folders; for everybody to read, and nobody to change."""
    for library in ("h5py", "nibabel", "scipy"):
        pytest.importorskip(library)
    from unibrain_rt.export.phantom.recording import record

    out = tmp_path_factory.mktemp("recording") / "phantom"
    record(out, ("sub-02", "sub-07"), 250)
    return out
