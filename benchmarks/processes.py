"""Processes that stay loaded and do what they are told over a pipe, so that each has its own memory and libraries.

Commands and replies are JSON, one a line. A worker's own standard output is kept for replies; whatever libraries print
goes to standard error, which the driver keeps in a file and shows when a worker fails.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from threading import Thread
from types import TracebackType
from typing import Any, TextIO

from unibrain_rt.benchmarks.memory import PeakMemory
from unibrain_rt.engines.engine_errors import EngineError
from unibrain_rt.errors import UnibrainError, one_line

Answer = Callable[[Mapping[str, Any]], dict[str, Any]]
_TAIL_CHARACTERS = 2000
_PATIENCE_S = 30
_WATCH_S = 0.5


class WorkerError(RuntimeError):
    """A worker ended or failed; the message ends with what it printed last."""

    exit_code = 1


class WorkerProcess:
    """The driver's end of a worker: ``module`` run with the JSON of ``specification`` as its only argument."""

    def __init__(self, name: str, module: str, specification: Mapping[str, Any]) -> None:
        self.name = name
        # It outlives this method: the worker writes to it until it ends.
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(specification, default=str)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self._asked = ""
        self.memory = PeakMemory(self._process.pid)
        self.memory.__enter__()

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and wait for its reply; see ``receive``."""
        self.send(command, **arguments)
        return self.receive()

    def send(self, command: str, **arguments: Any) -> None:
        """Send a command; ``receive`` waits for its reply."""
        assert self._process.stdin is not None
        self._asked = command
        # If it is gone, there will be no reply, either.
        with suppress(BrokenPipeError):
            print(json.dumps({"command": command, **arguments}), file=self._process.stdin, flush=True)

    def receive(self) -> dict[str, Any]:
        """The reply to what was sent last.

        Raises:
            WorkerError: the worker failed or is gone. What went wrong in a way that users can cause keeps its exit
            code.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.close()
            code = self._process.returncode
            raise WorkerError(f"worker {self.name} ended at {self._asked!r} ({code}):\n{self._tail()}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            error = WorkerError(reply["error"])
            error.exit_code = reply["exit_code"]
            raise error
        return reply

    def close(self) -> None:
        """End the worker, which gives its memory back."""
        if self._process.returncode is None:
            assert self._process.stdin is not None
            self.memory.__exit__(None, None, None)
            with suppress(BrokenPipeError):
                self._process.stdin.close()
            try:
                self._process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def kill(self) -> None:
        """End the worker at once, whatever it is doing."""
        self._process.kill()
        self.close()

    def _tail(self) -> str:
        self._log.seek(0)
        return self._log.read()[-_TAIL_CHARACTERS:]


def serve(answer: Answer, commands: TextIO, replies: TextIO) -> None:
    """Answer commands until there are no more. An error that users can cause is a reply, any other ends the process."""
    for line in commands:
        try:
            reply = answer(json.loads(line))
        except (UnibrainError, EngineError) as error:
            reply = {"error": one_line(str(error), 400), "exit_code": error.exit_code}
        print(json.dumps(reply), file=replies, flush=True)


def main(make: Callable[[dict[str, Any]], Answer]) -> None:
    """Serve on the standard streams with what ``make`` makes of the JSON in the only argument.

    A driver that is killed takes its workers along, also one that is loading and would not look for commands for
    minutes, with gigabytes in its hands.
    """
    Thread(target=_end_without, args=(os.getppid(),), daemon=True).start()
    answer = make(json.loads(sys.argv[1]))
    # What libraries print to standard output must not be taken for a reply.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(answer, sys.stdin, replies)


def _end_without(driver: int) -> None:
    while os.getppid() == driver:
        time.sleep(_WATCH_S)
    os._exit(1)
