"""What commands say of their work: `-v`, `--quiet`, `--log-file`, and the loggers behind them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.fixture
def decode(cli: Run, tiny_template: Path, tiny_scan: Path, tmp_path: Path) -> Run:
    def run(*words: str | Path) -> Any:
        return cli(
            "decode", tiny_scan, "--bundle", tiny_template, "--out", tmp_path / "out", "--preset", "realtime",
            "--engine", "onnxruntime", *words,
        )  # fmt: skip

    return run


def test_by_default_a_decode_says_what_a_user_wants_to_know(decode: Run) -> None:
    first, again = decode(), decode()
    assert (first.code, first.err) == (0, "")
    assert "kept" in again.err
    assert again.err.count("\n") == 1


def test_verbose_tells_of_every_step(decode: Run) -> None:
    done = decode("-v")
    assert done.code == 0
    steps = [
        "opened bundle tiny",
        "engine onnxruntime",
        "opened the graphs of preset realtime",
        "decoded a scan",
        "wrote ",
    ]
    places = [done.err.index(step) for step in steps]
    assert places == sorted(places)
    assert done.out == decode("--overwrite").out, "what is printed is the same"


def test_quiet_says_nothing_but_what_is_wrong(decode: Run, tmp_path: Path) -> None:
    decode()
    done = decode("--quiet")
    assert (done.code, done.err) == (0, "")
    failed = decode("-q", "--subject", "nobody")
    assert failed.code == 2
    assert failed.err.startswith("unibrain-rt: no subject 'nobody'")


def test_both_at_once_are_refused(decode: Run) -> None:
    done = decode("-v", "-q")
    assert done.code == 2
    assert (
        done.err == "unibrain-rt: --verbose and --quiet cannot go together (see unibrain-rt decode --help)\n"
    )


def test_a_log_file_gets_all_of_it_with_times_and_is_added_to(decode: Run, tmp_path: Path) -> None:
    log = tmp_path / "decode.log"
    assert decode("--log-file", log, "-q").code == 0
    lines = log.read_text("utf-8").splitlines()
    assert any("DEBUG unibrain_rt.decoder: decoded a scan of sub-01" in line for line in lines)
    assert all(line[:4].isdigit() for line in lines)
    failed = decode("--log-file", log, "--preset", "slow")
    assert failed.code == 2
    text = log.read_text("utf-8")
    assert text.startswith("\n".join(lines))
    assert "ERROR unibrain_rt.cli: no preset 'slow' in this bundle" in text
    assert "Traceback" in text


def test_a_log_file_that_cannot_be_written_is_one_line(decode: Run, tmp_path: Path) -> None:
    done = decode("--log-file", tmp_path / "no" / "decode.log")
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "cannot be written (No such file or directory): name another --log-file" in done.err
    assert not (tmp_path / "out").exists()


def test_workers_log_through_their_pool(decode: Run, tmp_path: Path) -> None:
    log = tmp_path / "decode.log"
    assert decode("--workers", "2", "--log-file", log).code == 0
    assert "DEBUG unibrain_rt.decoder: decoded a scan of sub-01" in log.read_text("utf-8")


def test_nothing_of_a_command_stays(decode: Run) -> None:
    logger = logging.getLogger("unibrain_rt")
    before = (logger.level, list(logger.handlers))
    decode("-v")
    decode("--preset", "slow")
    assert (logger.level, list(logger.handlers)) == before


def test_what_an_engine_says_of_every_graph_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    from unibrain_rt.cli.messages import _Stderr, handling

    with handling(_Stderr(logging.INFO)):
        for _ in range(2):
            logging.getLogger("unibrain_rt.engines.some").warning("kernels cannot be kept")
            logging.getLogger("unibrain_rt.files").info("round")
    assert capsys.readouterr().err.splitlines() == ["kernels cannot be kept", "round", "round"]


@pytest.mark.parametrize(
    "words", [("info",), ("doctor",), ("build",), ("verify",), ("export",), ("fit",), ("evaluate",), ("bench",),
              ("export-features",), ("subjects", "import"), ("phantom", "train"), ("phantom", "report")]
)  # fmt: skip
def test_every_command_has_the_options(cli: Run, words: tuple[str, ...]) -> None:
    if words[0] not in ("info", "doctor", "build", "verify", "bench"):
        pytest.importorskip("torch")
    done = cli(*words, "--help")
    assert done.code == 0
    for option in ("-v, --verbose", "-q, --quiet", "--log-file"):
        assert option in done.out
