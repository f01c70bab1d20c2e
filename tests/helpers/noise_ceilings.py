"""Noise ceilings of averages over trials."""

from __future__ import annotations

from typing import Any

import numpy as np


def averaged(single: np.ndarray[Any, Any], trials: int) -> np.ndarray[Any, Any]:
    """Noise ceilings (V,) of the average over so many trials, from those of single ones."""
    return np.asarray(single / (single + (1.0 - single) / trials))
