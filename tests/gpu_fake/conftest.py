"""The machine with a GPU that computes nothing, and what is decoded on it.

All of it is marked ``gpu_fake``; what takes minutes to prepare is ``slow``, too. ``UNIBRAIN_FAKE_GPU`` names a folder
for the machine, which is then made once and kept.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from built_wheel import PACKAGE_FOLDERS

stand_ins = importlib.import_module("gpu_stand_ins")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.gpu_fake)


@pytest.fixture(scope="session")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> Any:
    kept = os.environ.get("UNIBRAIN_FAKE_GPU")
    return stand_ins.GpuMachine(Path(kept) if kept else tmp_path_factory.mktemp("gpu"))


@pytest.fixture(scope="session")
def package(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the machine imports ``unibrain_rt`` from."""
    folder: Path = stand_ins.lay_out(repository, tmp_path_factory.mktemp("package"), PACKAGE_FOLDERS)
    return folder


@pytest.fixture(scope="session")
def run(gpu: Any, package: Path) -> Callable[..., Any]:
    """``unibrain-rt`` on the machine."""
    start = "from unibrain_rt.cli import main; main()"
    return lambda *words, **options: gpu.run("-c", start, *map(str, words), package=package, **options)


@pytest.fixture(scope="session")
def half(phantom_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom in fp16, with the flavours for this engine."""
    pytest.importorskip("onnxscript")
    from unibrain_rt.export.bundles.conversion import convert_bundle

    folder = tmp_path_factory.mktemp("half") / "phantom"
    convert_bundle(phantom_bundle, folder, precision="fp16")
    return folder


@pytest.fixture(scope="session")
def watched(gpu: Any, package: Path) -> Callable[..., Any]:
    """A script of this folder on the machine: what it told as JSON, and the journal by what it marked."""

    def watch(script: str, *words: object, **options: Any) -> tuple[Any, dict[str, Any]]:
        path = Path(__file__).with_name("on_the_machine") / script
        ran = gpu.run(str(path), *map(str, words), package=package, **options)
        assert ran.code == 0, ran.err
        assert ran.err == ""
        return json.loads(ran.out), ran.journal.parts()

    return watch
