"""Where plans lie and how much room they may take, where nobody says so."""

from __future__ import annotations

import os
import re
from pathlib import Path

from unibrain_rt.engines.engine_errors import EngineError

CACHE_VARIABLE = "UNIBRAIN_RT_CACHE"
"""Environment variable: the folder of plans."""
LIMIT_VARIABLE = "UNIBRAIN_RT_CACHE_LIMIT"
"""Environment variable: how large the folder may grow, such as ``10GB``."""
LIMIT_BYTES = 40 * 10**9
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) *([kmgt]?b?)", re.IGNORECASE)


def default_folder() -> Path:
    """Where plans lie if no folder is named. Raises EngineError where the user has none."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # The standard says that a relative one is to be ignored.
        caches = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    except RuntimeError as error:
        raise EngineError("this user has no home folder for compiled plans; name one with --cache") from error
    return caches / "unibrain-rt" / "plans"


def size_from_text(text: str) -> int:
    """Bytes of a size such as ``10GB`` or ``500 MB``. Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no size such as 10GB or 500MB")
    unit = match[2].lower()
    return int(float(match[1]) * _UNITS[unit if unit.endswith("b") or not unit else f"{unit}b"])


def default_limit() -> int:
    """Bytes that the folder may grow to. Raises EngineError where the environment names no size."""
    text = os.environ.get(LIMIT_VARIABLE)
    try:
        return size_from_text(text) if text else LIMIT_BYTES
    except ValueError as error:
        raise EngineError(f"{LIMIT_VARIABLE}: {error}") from error
