"""Where plans lie and how much room they may take: what sizes are read, and what the environment says."""

from __future__ import annotations

from pathlib import Path

import pytest

from unibrain_rt.engines import EngineError
from unibrain_rt.engines.plans import LIMIT_BYTES, PlanCache, default_folder, size_from_text


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("10GB", 10**10),
        ("1.5 gb", 1_500_000_000),
        ("500M", 5 * 10**8),
        ("12", 12),
        ("3 kB", 3000),
        ("0", 0),
        ("2TB", 2 * 10**12),
    ],
)
def test_sizes_are_read(text: str, size_bytes: int) -> None:
    assert size_from_text(text) == size_bytes


@pytest.mark.parametrize("text", ["", "GB", "10XB", "-1GB", "1e3", "ten", "1 2"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no size such as 10GB"):
        size_from_text(text)


def test_folder_and_limit_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIBRAIN_RT_CACHE", str(tmp_path / "named"))
    assert PlanCache().folder == tmp_path / "named"
    assert PlanCache().limit_bytes == LIMIT_BYTES
    monkeypatch.setenv("UNIBRAIN_RT_CACHE_LIMIT", "3GB")
    assert PlanCache().limit_bytes == 3 * 10**9
    assert PlanCache(limit_bytes=7).limit_bytes == 7
    monkeypatch.setenv("UNIBRAIN_RT_CACHE_LIMIT", "much")
    with pytest.raises(EngineError, match="UNIBRAIN_RT_CACHE_LIMIT: 'much' is no size"):
        PlanCache()
    monkeypatch.delenv("UNIBRAIN_RT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "xdg" / "unibrain-rt" / "plans"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "unibrain-rt" / "plans"
