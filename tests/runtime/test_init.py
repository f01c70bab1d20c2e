"""The package's front: names that are there at once and cost nothing until they are used."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import unibrain_rt


def test_every_name_is_what_its_module_has() -> None:
    for name in unibrain_rt.__all__:
        value = getattr(unibrain_rt, name)
        if name != "__version__":
            home = importlib.import_module(value.__module__)
            assert getattr(home, name) is value
    assert set(unibrain_rt.__all__) <= set(dir(unibrain_rt))


def test_a_star_import_gives_all_names() -> None:
    names: dict[str, object] = {}
    exec("from unibrain_rt import *", names)
    assert set(unibrain_rt.__all__) <= names.keys()


@pytest.mark.parametrize("name", ["nothing", "decode", "np", "_x"])
def test_what_is_not_there_is_an_attribute_error(name: str) -> None:
    with pytest.raises(AttributeError, match=f"has no attribute '{name}'"):
        getattr(unibrain_rt, name)
    assert not hasattr(unibrain_rt, name)


def test_names_are_loaded_when_they_are_used(tmp_path: Path) -> None:
    code = """
import sys, unibrain_rt
assert unibrain_rt.__version__
loaded = lambda: sorted(name for name in sys.modules if name.startswith("unibrain_rt."))
assert not loaded(), loaded()
unibrain_rt.UnibrainError
assert loaded() == ["unibrain_rt.errors"], loaded()
unibrain_rt.Decoder
assert "unibrain_rt.decoder" in loaded()
assert "onnxruntime" not in sys.modules, "an engine is loaded when a bundle is opened"
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_module_runs_as_the_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "unibrain_rt", "--version"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == f"unibrain-rt, version {unibrain_rt.__version__}\n"
