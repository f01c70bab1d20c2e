"""The lean machine: Python 3.10 with numpy, click and Pillow, and of NVIDIA's libraries stand-ins alone."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from built_wheel import install, make_environment, run, site_packages

OLDEST = (3, 10)
LIBRARIES = ("numpy>=1.24,<2", "click", "pillow")
"""JetPack 6's own libraries were built against numpy 1."""
STAND_INS = {"tensorrt": "TENSORRT", "cuda/bindings/runtime": "CUDA"}
"""NVIDIA's modules, and what of `lean_stand_ins` each of them is."""
STAND_IN = "import lean_stand_ins\n\ndef __getattr__(name): return getattr(lean_stand_ins.{name}, name)\n"
GRAPHS = 7
"""That a decode runs, its subject's heads being one."""
RUNTIME_FOLDERS = ("runtime", "engines")


def oldest_python() -> str | None:
    """An interpreter of the oldest Python we run on, if one is here. Names alone prove nothing: pyenv's fail."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    name = f"python{OLDEST[0]}.{OLDEST[1]}"
    found = [sys.executable, shutil.which(name), *sorted(map(str, pyenv.glob(f"3.10*/bin/{name}")))]
    ask = f"import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != {OLDEST})"
    for candidate in filter(None, found):
        if subprocess.run([candidate, "-c", ask], capture_output=True, timeout=60).returncode == 0:
            return candidate
    return None


@pytest.fixture(scope="module")
def lean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment's interpreter."""
    interpreter = oldest_python()
    if interpreter is None:
        pytest.skip("no Python 3.10 that runs, on PATH or of pyenv")
    python = make_environment(interpreter, tmp_path_factory.mktemp("lean") / "venv")
    install(python, *LIBRARIES)
    install(python, "--no-deps", str(wheel))
    for path, name in STAND_INS.items():
        module = site_packages(python) / f"{path}.py"
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_text(STAND_IN.format(name=name), encoding="utf-8")
    return python


def test_every_module_is_in_the_oldest_pythons_words(lean: Path, repository: Path, tmp_path: Path) -> None:
    folders = [repository / name for name in RUNTIME_FOLDERS]
    code = (
        "import pathlib, sys\n"
        "for folder in sys.argv[1:]:\n"
        "    for path in pathlib.Path(folder).rglob('*.py'): compile(path.read_bytes(), path, 'exec')"
    )
    done = run(lean, "-c", code, *folders, folder=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_command_line_starts(lean: Path, tmp_path: Path) -> None:
    command = lean.parent / "unibrain-rt"
    for words in (["--help"], ["--version"], ["decode", "--help"], ["info"]):
        done = run(command, *words, folder=tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), words
        assert done.stdout
    # What needs more says what to install.
    asked = run(command, "fit", "--help", folder=tmp_path)
    assert asked.returncode == 1
    assert 'pip install "unibrain-rt[export]"' in asked.stderr
    assert len(asked.stderr.splitlines()) == 1


def test_a_decode_runs_and_loads_nothing_else(lean: Path, repository: Path, tmp_path: Path) -> None:
    script = Path(__file__).parent.parent / "helpers" / "lean_decode.py"
    scan, cache = repository / "examples" / "scan.npy", tmp_path / "cache"
    done = run(lean, script, scan, cache, tmp_path / "out", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    stand_ins = {path.split("/")[0] for path in STAND_INS}
    at_the_start = {"_distutils_hack"}  # of the environment itself
    allowed = {"unibrain_rt", "numpy", "click", "PIL"} | stand_ins | at_the_start
    assert stand_ins <= set(told["libraries"]) <= allowed
    assert {"unibrain_rt.decoder", "unibrain_rt.cli.decode", "unibrain_rt.engines.onnxruntime"} <= set(
        told["modules"]
    )
    assert told["built"] == len(list(cache.glob("*.plan"))) == GRAPHS
    # All launches of one scan give the same, and what the device is given matters.
    *same, other = told["pictures"]
    assert len(set(same)) == 1
    assert other not in same
    trace = told["trace"]
    assert trace["cudaStreamBeginCapture"] == trace["cudaGraphInstantiate"] > 0
    # Each graph is launched once to be compared, and then instead of what was captured.
    assert trace["cudaGraphLaunch"] > trace["cudaStreamBeginCapture"]
    assert trace["done:kernel"] > 0
    assert trace["cudaFree"] == trace["cudaMalloc"] > 0
    png = (tmp_path / "out" / "scan.png").read_bytes()
    record = json.loads((tmp_path / "out" / "scan.json").read_text("utf-8"))
    assert struct.unpack_from(">II", png, 16) == tuple(record["image_size"]) == (64, 64)
    assert record["engine"] == "tensorrt"
