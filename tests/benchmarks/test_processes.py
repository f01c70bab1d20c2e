"""Workers and their driver: one that is killed leaves nobody behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

fcntl = pytest.importorskip("fcntl", reason="file locks as POSIX has them")

WORKER = """
import fcntl, time
from unibrain_rt.benchmarks import processes

def make(specification):
    def answer(request):
        lock = open(specification["lock"], "w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        open(specification["busy"], "w").close()
        time.sleep(600)
    return answer

processes.main(make)
"""
DRIVER = """
import sys
from unibrain_rt.benchmarks.processes import WorkerProcess

WorkerProcess("busy", "busy_worker", {"lock": sys.argv[1], "busy": sys.argv[2]}).ask("anything")
"""


def _wait(done: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_busy_worker_ends_with_its_driver(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "busy_worker.py").write_text(WORKER, encoding="utf-8")
    lock, busy = tmp_path / "lock", tmp_path / "busy"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(lock), str(busy)], env=environment)
    try:
        _wait(busy.exists)
        with lock.open("r+") as file:

            def is_free() -> bool:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    return False
                return True

            assert not is_free()
            driver.send_signal(number)
            driver.wait(30)
            _wait(is_free)
    finally:
        driver.kill()
        driver.wait()
