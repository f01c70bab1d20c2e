"""The command line as a whole: help, exit codes, one line a failure."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from unibrain_rt import __version__
from unibrain_rt import cli as command_line
from unibrain_rt.cli import COMMANDS, complain, main
from unibrain_rt.engines import EngineError
from unibrain_rt.errors import BundleError, InputError

Run = Callable[..., Any]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Makes ``unibrain-rt fail`` a command that raises what it is given."""

    def install(error: BaseException) -> None:
        @click.command("fail")
        def command() -> None:
            raise error

        original = command_line.LazyGroup.get_command
        monkeypatch.setattr(
            command_line.LazyGroup,
            "get_command",
            lambda self, ctx, name: command if name == "fail" else original(self, ctx, name),
        )

    return install


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_names_every_command(cli: Run, words: list[str]) -> None:
    done = cli(*words)
    assert (done.code, done.err) == (0, "")
    for name, (_, text) in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(text[:40])}", done.out, re.M), name


def test_help_does_not_load_the_commands(tmp_path: Path) -> None:
    code = """
import sys
from unibrain_rt.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
assert not {"numpy", "unibrain_rt.cli.decode", "unibrain_rt.bundle"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["decode", "info", "verify"])
def test_every_command_has_help(cli: Run, name: str) -> None:
    for flag in ("--help", "-h"):
        done = cli(name, flag)
        assert (done.code, done.err) == (0, "")
        assert done.out.startswith(f"Usage: unibrain-rt {name} ")
        assert "--json [FILE]" in done.out


def test_the_version(cli: Run) -> None:
    assert cli("--version").out == f"unibrain-rt, version {__version__}\n"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["nonsense"], "No such command 'nonsense' (see unibrain-rt --help)"),
        (["--nonsense"], "No such option '--nonsense' (see unibrain-rt --help)"),
        (["decode"], "Missing argument 'SCAN...' (see unibrain-rt decode --help)"),
        (["verify", "b"], "Missing option '--golden' (see unibrain-rt verify --help)"),
        (["info", "a", "b"], "Got unexpected extra argument (b) (see unibrain-rt info --help)"),
    ],
)
def test_wrong_words_are_one_line(cli: Run, words: list[str], problem: str) -> None:
    done = cli(*words)
    assert done.code == 2
    assert done.out == ""
    # click's own wording has changed before; that it is one line, and where help is, has not.
    assert len(done.complaints) == 1
    assert done.err.startswith(f"unibrain-rt: {problem[:14]}")
    assert problem[problem.index(" (see") :] in done.err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("no voxels: give some"), 2, "no voxels: give some"),
        (BundleError("no graphs"), 3, "no graphs"),
        (EngineError("no engine"), 3, "no engine"),
        (InputError("two\nlines\tand \x1b[31mcolour"), 2, "two lines and ?[31mcolour"),
        (click.UsageError("wrong."), 2, "wrong (see unibrain-rt fail --help)"),
        (click.ClickException("bad"), 1, "bad"),
        (click.exceptions.Exit(7), 7, None),
        (KeyboardInterrupt(), 130, "interrupted"),
        (click.Abort(), 130, "interrupted"),
        (ValueError("a\nb"), 1, "unexpected ValueError: a b (unibrain-rt --debug … shows a traceback)"),
        (MemoryError(), 1, "unexpected MemoryError:  (unibrain-rt --debug … shows a traceback)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_every_failure_has_its_code_and_its_line(
    cli: Run, failing: Callable[[BaseException], None], error: BaseException, code: int, line: str | None
) -> None:
    failing(error)
    done = cli("fail")
    assert done.code == code
    assert done.out == ""
    expected = "" if line is None else f"unibrain-rt: {' '.join(line.split())}\n"
    assert done.err == expected


@pytest.mark.parametrize(("error", "code"), [(InputError("no voxels"), 2), (ValueError("odd"), 1)])
def test_debug_shows_a_traceback(
    cli: Run, failing: Callable[[BaseException], None], error: BaseException, code: int
) -> None:
    failing(error)
    done = cli("--debug", "fail")
    assert done.code == code
    assert "Traceback (most recent call last)" in done.err
    assert done.err.rstrip().endswith(str(error))


def test_long_complaints_are_cut(capsys: pytest.CaptureFixture[str]) -> None:
    complain("x" * 5000)
    printed = capsys.readouterr().err
    assert len(printed) < 450
    assert "…" in printed


def test_a_command_that_needs_more_says_what(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("unibrain_rt.export")]:
        monkeypatch.delitem(sys.modules, name)
    done = cli("export", "nowhere", "--out", "nowhere")
    assert done.code != 0
    assert len(done.complaints) == 1
    assert "export needs torch, which is not installed" in done.err
    assert 'pip install "unibrain-rt[export]"' in done.err


def test_words_come_from_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["unibrain-rt", "--version"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert __version__ in capsys.readouterr().out


def test_a_full_disk_behind_stdout_is_not_passed_over(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    with full.open("w") as stdout:
        done = subprocess.run(
            [sys.executable, "-m", "unibrain_rt", "--help"],
            cwd=tmp_path,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr


def test_a_reader_may_leave(tmp_path: Path) -> None:
    script = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-m', 'unibrain_rt', '--help'], " \
             "stdout=subprocess.PIPE, stderr=subprocess.PIPE); p.stdout.close(); " \
             "sys.stdout.write(p.stderr.read().decode()); p.wait()"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == ""
