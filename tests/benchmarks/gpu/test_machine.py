"""The script that makes a lent machine ready, with a Python of its own that only notes what it is asked for."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

import pytest

PYTHON = """#!/bin/sh
echo "$@" >>"$NOTES"
case $2 in *site*) echo "$SITE" ;; esac
"""


@pytest.fixture
def script(repository: Path) -> Path:
    return repository / "benchmarks" / "gpu" / "machine.sh"


def test_it_installs_once_and_runs_what_follows(script: Path, repository: Path, tmp_path: Path) -> None:
    for folder in ("bin", "carried/site/onnxruntime", "carried/published", "installed", "temporary"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "carried/site/onnxruntime/__init__.py").touch()
    (tmp_path / "bin/python3").write_text(PYTHON)
    (tmp_path / "bin/python3").chmod(0o755)
    with tarfile.open(tmp_path / "carry.tar.xz", "w:xz") as packed:
        for name in ("site", "published"):
            packed.add(tmp_path / "carried" / name, name)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "TMPDIR": str(tmp_path / "temporary"),
        "SITE": str(tmp_path / "installed"),
        "NOTES": str(tmp_path / "notes"),
    }
    command = 'ls PACK "$0" && ls "$PYTHONPATH/unibrain_rt"'
    words = ["sh", script, tmp_path / "carry.tar.xz", "sh", "-c", command.replace("PACK", "$1"), ".", "PACK"]
    for _ in range(2):
        done = subprocess.run(
            words, cwd=repository, env=environment, capture_output=True, text=True, check=True
        )
        assert "published" in done.stdout.split()
        assert {"decoder.py", "engines", "export", "benchmarks", "phantom"} <= set(done.stdout.split())
    assert (tmp_path / "installed/onnxruntime/__init__.py").is_file()
    # onnxruntime and onnxruntime-gpu overwrite each other's files.
    assert (tmp_path / "notes").read_text().count("pip uninstall -qy onnxruntime") == 1


def test_it_says_how_it_is_called(script: Path) -> None:
    done = subprocess.run(["sh", script, "only-one-word"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
    assert len(done.stderr.splitlines()) == 1
