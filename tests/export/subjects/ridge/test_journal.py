"""What a fit has done so far: kept bit for bit, and only for that fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unibrain_rt.errors import InputError
from unibrain_rt.export.subjects.ridge.journal import Journal


def test_what_was_entered_comes_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "work", {"a": 1})
    assert journal.find("head") is None
    journal.enter("head", values=np.arange(3, dtype=np.float32), done=2)
    journal.enter("head", values=np.arange(4, dtype=np.float32), done=3)
    found = Journal(tmp_path / "work", {"a": 1}).find("head")
    assert found is not None
    assert found["values"].tobytes() == np.arange(4, dtype=np.float32).tobytes()
    assert int(found["done"]) == 3
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["fit.json", "head.npz"]


def test_without_a_folder_nothing_is_kept() -> None:
    journal = Journal()
    journal.enter("head", values=np.ones(3))
    assert journal.find("head") is None
    assert not journal.due


def test_what_is_not_this_fits_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path / "work", {"a": 1})
    with pytest.raises(InputError, match="holds another fit: name another --work"):
        Journal(tmp_path / "work", {"a": 2})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="holds something else"):
        Journal(tmp_path / "mine", {"a": 1})
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be used"):
        Journal(tmp_path / "file", {"a": 1})
    (tmp_path / "work" / "head.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match="damaged"):
        Journal(tmp_path / "work", {"a": 1}).find("head")
