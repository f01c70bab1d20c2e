"""What travels to a GPU's machine, at the smallest sizes, and with weights as they are drawn there."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def pack(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As it travels: in fp16, with the flavour of the engine ``cuda``."""
    from unibrain_rt.benchmarks.gpu.pack import write_published
    from unibrain_rt.export.bundles.architecture import Architecture

    folder = tmp_path_factory.mktemp("pack")
    (folder / "published").mkdir()
    write_published(folder / "published", Architecture.load(tiny_config))
    return folder
