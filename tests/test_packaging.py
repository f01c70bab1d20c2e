"""The wheel: what is in it, and that a fresh environment with nothing but it decodes a scan."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

PACKAGE_FOLDERS = {
    "runtime": "unibrain_rt",
    "engines": "unibrain_rt/engines",
    "export": "unibrain_rt/export",
    "benchmarks": "unibrain_rt/benchmarks",
}
MEGABYTE = 1_000_000
WHEEL_LIMIT_BYTES = 25 * MEGABYTE
LEAN_INSTALL_LIMIT_BYTES = 200 * MEGABYTE


def run(*command: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run in `folder` with no standard input and nothing of the checkout on the import path."""
    clean = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    return subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=clean,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )


def size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def setuptools_is_new_enough() -> bool:
    try:
        return int(importlib.metadata.version("setuptools").split(".")[0]) >= 78
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: in the tree, what an older build left in build/lib would get into it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in PACKAGE_FOLDERS:
        shutil.copytree(repository / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, source)
    isolation = ["--no-build-isolation"] if setuptools_is_new_enough() else []
    built = run(
        sys.executable, "-m", "pip", "wheel", "--no-deps", *isolation, "-w", folder, source, folder=folder
    )
    assert built.returncode == 0, built.stderr
    return next(folder.glob("*.whl"))


def test_wheel_holds_every_module_and_the_bundle_and_no_tests(
    wheel: Path, repository: Path, phantom_bundle: Path, report: Callable[[str], None]
) -> None:
    report(f"wheel: {wheel.stat().st_size / MEGABYTE:.1f} MB (limit {WHEEL_LIMIT_BYTES / MEGABYTE:.0f})")
    assert wheel.stat().st_size < WHEEL_LIMIT_BYTES
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [name for name in archive.namelist() if name.endswith("/licenses/LICENSE")]
    assert licences
    expected = {"unibrain_rt/py.typed", "unibrain_rt/engines/py.typed"}
    for folder, target in PACKAGE_FOLDERS.items():
        root = repository / folder
        expected |= {f"{target}/{path.relative_to(root).as_posix()}" for path in root.rglob("*.py")}
    expected |= {
        f"unibrain_rt/phantom/{path.relative_to(phantom_bundle).as_posix()}"
        for path in phantom_bundle.rglob("*")
        if path.is_file()
    }
    judge = "unibrain_rt/export/phantom/reporting/judge/judge"
    expected |= {f"{judge}.json", f"{judge}.onnx"}
    assert packed == expected


def test_fresh_install_of_the_wheel_decodes(
    wheel: Path, repository: Path, tmp_path: Path, report: Callable[[str], None]
) -> None:
    """Base and `cpu` alone: the command line starts, decodes an example scan, and the install is lean."""
    environment = tmp_path / "venv"
    assert run(sys.executable, "-m", "venv", environment, folder=tmp_path).returncode == 0
    python = environment / "bin" / "python"
    patience = ("--retries", "1", "--timeout", "20", "--disable-pip-version-check")
    asked = run(python, "-m", "pip", "index", "versions", "click", *patience, folder=tmp_path)
    if asked.returncode != 0:
        said = asked.stderr.strip().splitlines() or ["nothing"]
        pytest.skip(f"no package index answers; pip says: {said[-1]}")
    site_packages = next((environment / "lib").glob("python*/site-packages"))
    # pip, and setuptools on older Pythons, came with the environment.
    before_bytes = size_bytes(site_packages)
    installed = run(python, "-m", "pip", "install", "-q", *patience, f"{wheel}[cpu]", folder=tmp_path)
    assert installed.returncode == 0, installed.stderr

    bundle_bytes = size_bytes(site_packages / "unibrain_rt" / "phantom")
    added_bytes = size_bytes(site_packages) - before_bytes - bundle_bytes
    limit_mb = LEAN_INSTALL_LIMIT_BYTES / MEGABYTE
    report(f"lean install without the bundle: {added_bytes / MEGABYTE:.0f} MB (limit {limit_mb:.0f})")
    # On 3.10 it is shown only: the last onnxruntime for it requires sympy, 56 MB that nothing here uses.
    if sys.version_info >= (3, 11):
        assert added_bytes < LEAN_INSTALL_LIMIT_BYTES

    command = environment / "bin" / "unibrain-rt"
    work = tmp_path / "work"
    work.mkdir()
    helped = run(command, "--help", folder=work)
    assert helped.returncode == 0, helped.stderr
    assert "decode" in helped.stdout

    decoded = run(command, "decode", repository / "examples" / "scan.npy", folder=work)
    assert decoded.returncode == 0, decoded.stderr
    written = {path.name: path for path in work.rglob("*") if path.is_file()}
    assert written.keys() == {"scan.png", "scan.json"}
    assert written["scan.png"].read_bytes().startswith(b"\x89PNG")
    caption = json.loads(written["scan.json"].read_text("utf-8"))["caption"]
    assert caption
    assert caption in decoded.stdout
