"""A part that fails or hangs leaves what it had, and the next goes on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from unibrain_rt.benchmarks.gpu.parts import read, run_part, write

PART = """
import json, sys, time
from pathlib import Path
options = dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:])
Path(options["out"], options["part"] + ".json").write_text(json.dumps({"seen": options["pack"]}))
if options["part"] == "fails":
    raise SystemExit("it broke")
if options["part"] == "hangs":
    time.sleep(60)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "a_part.py").write_text(PART)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "a_part"


def test_results_come_back(module: str, tmp_path: Path) -> None:
    found = run_part(module, "works", tmp_path, {"pack": "there"}, 30)
    assert (found["seen"], found["ended"]) == ("there", 0)
    assert "tail" not in found


def test_a_failure_comes_with_its_last_lines(module: str, tmp_path: Path) -> None:
    found = run_part(module, "fails", tmp_path, {"pack": "there"}, 30)
    assert (found["seen"], found["ended"]) == ("there", 1)
    assert found["tail"] == ["it broke"]


def test_what_takes_too_long_is_ended(module: str, tmp_path: Path) -> None:
    found = run_part(module, "hangs", tmp_path, {"pack": "there"}, 3)
    assert found["seen"] == "there"
    assert found["ended"] == "ended after 3 s"
    assert found["seconds"] < 30


def test_results_are_whole_or_not_there(tmp_path: Path) -> None:
    assert read(tmp_path / "none.json") == {}
    write(tmp_path / "one.json", {"a": 1})
    with pytest.raises(TypeError):
        write(tmp_path / "one.json", {"a": sys})
    assert read(tmp_path / "one.json") == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["one.json"]
