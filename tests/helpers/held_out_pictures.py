"""The shipped bundle and held-out stimuli that the judges and the evaluation are tested on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import Engine, create_engine
from unibrain_rt.export.phantom.pictures import stimuli
from unibrain_rt.export.phantom.scenes import Scene, scenes


@pytest.fixture(scope="session")
def bundle(phantom_bundle: Path) -> Bundle:
    return Bundle.open(phantom_bundle)


@pytest.fixture(scope="session")
def engine() -> Engine:
    return create_engine("onnxruntime", 1)


@pytest.fixture(scope="session")
def shown() -> list[Scene]:
    """Held-out scenes of the phantom's world."""
    return scenes("test", 24, 3)


@pytest.fixture(scope="session")
def pictures(shown: list[Scene]) -> np.ndarray:
    """Their pictures, (24, 64, 64, 3) uint8."""
    return stimuli(shown, 64)
