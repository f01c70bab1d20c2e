"""The project's wheel, and fresh environments to install it in."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE_FOLDERS = {
    "runtime": "unibrain_rt",
    "engines": "unibrain_rt/engines",
    "export": "unibrain_rt/export",
    "benchmarks": "unibrain_rt/benchmarks",
}
PATIENCE = ("--retries", "1", "--timeout", "20", "--disable-pip-version-check")


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


def build(repository: Path, folder: Path) -> Path:
    """The wheel, built from a copy: in the tree, what an older build left in build/lib would get into it."""
    source = folder / "source"
    for name in PACKAGE_FOLDERS:
        shutil.copytree(repository / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, source)
    isolation = ["--no-build-isolation"] if _setuptools_is_new_enough() else []
    built = run(
        sys.executable, "-m", "pip", "wheel", "--no-deps", *isolation, "-w", folder, source, folder=folder
    )
    assert built.returncode == 0, built.stderr
    return next(folder.glob("*.whl"))


def make_environment(interpreter: str | Path, folder: Path) -> Path:
    """A fresh virtual environment's interpreter; skips the test where no package index answers."""
    made = run(interpreter, "-m", "venv", folder, folder=folder.parent)
    assert made.returncode == 0, made.stderr
    python = folder / "bin" / "python"
    asked = run(python, "-m", "pip", "index", "versions", "click", *PATIENCE, folder=folder)
    if asked.returncode != 0:
        said = asked.stderr.strip().splitlines() or ["nothing"]
        pytest.skip(f"no package index answers; pip says: {said[-1]}")
    return python


def install(python: Path, *words: str) -> None:
    """Install with pip."""
    done = run(python, "-m", "pip", "install", "-q", *PATIENCE, *words, folder=python.parent)
    assert done.returncode == 0, done.stderr


def site_packages(python: Path) -> Path:
    """Where an environment's libraries lie."""
    return next((python.parent.parent / "lib").glob("python*/site-packages"))


def _setuptools_is_new_enough() -> bool:
    try:
        return int(importlib.metadata.version("setuptools").split(".")[0]) >= 78
    except importlib.metadata.PackageNotFoundError:
        return False
