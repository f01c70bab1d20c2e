"""Peers in processes of their own: each stays loaded and sleeps until it is told over a pipe to run a step.

Commands and replies are JSON, one a line. The worker's own standard output is kept for replies; whatever
libraries print goes to standard error, which the driver keeps in a file and shows when a worker fails.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np

from unibrain_rt.benchmarks.inputs import Float
from unibrain_rt.benchmarks.memory import Memory, PeakMemory, memory_of
from unibrain_rt.benchmarks.peers import PEERS, Peer, Source, step_weight_bytes

_TAIL_CHARACTERS = 2000
_PATIENCE_S = 30


class WorkerError(RuntimeError):
    """A worker ended or failed; the message ends with what it printed last."""


class Worker:
    """The driver's end of a worker."""

    def __init__(self, peer: str, source: Source) -> None:
        self.peer = peer
        # It outlives this method: the worker writes to it until it ends.
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        specification = json.dumps({**asdict(source), "peer": peer}, default=str)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "unibrain_rt.benchmarks.workers", specification],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.memory = PeakMemory(self._process.pid)
        self.memory.__enter__()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and wait for its reply.

        Raises:
            WorkerError: the worker failed or is gone.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps({"command": command, **arguments}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.close()
            code = self._process.returncode
            raise WorkerError(f"worker {self.peer} ended at {command!r} ({code}):\n{self._tail()}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def output(self) -> Float:
        """The next latent that the last step gave.

        Raises:
            WorkerError: the worker failed or is gone.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "output.npy"
            self.ask("output", path=str(path))
            array: Float = np.load(path)
        return array

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

    def _tail(self) -> str:
        self._log.seek(0)
        return self._log.read()[-_TAIL_CHARACTERS:]


class Pool:
    """The workers that are loaded now, by peer."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self._sources = sources
        self.workers: dict[str, Worker] = {}

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.keep([])

    def keep(self, peers: Sequence[str]) -> list[Worker]:
        """End all workers but these and start those that are missing, which are returned."""
        for peer in [peer for peer in self.workers if peer not in peers]:
            self.workers.pop(peer).close()
        started = [Worker(peer, self._sources[peer]) for peer in peers if peer not in self.workers]
        self.workers |= {worker.peer: worker for worker in started}
        return started


def serve(peer: Peer, commands: TextIO, replies: TextIO) -> None:
    """Answer commands until there are no more.

    ``weights`` gives the bytes a step reads; ``load`` loads; ``step`` runs one step of a variant and gives
    its wall and processor time; ``output`` saves what the last step gave as .npy; ``memory`` tells what the
    process takes.
    """
    for line in commands:
        request: Mapping[str, Any] = json.loads(line)
        print(json.dumps(_answer(peer, request)), file=replies, flush=True)


def _answer(peer: Peer, request: Mapping[str, Any]) -> dict[str, Any]:
    command = request["command"]
    if command == "weights":
        return {"bytes": step_weight_bytes(peer.source)}
    if command == "output":
        np.save(request["path"], peer.output())
        return {}
    if command == "memory":
        return (memory_of("self") or Memory()).to_mapping()
    if command not in ("load", "step"):
        raise ValueError(f"unknown command {command!r}")
    start, start_cpu = time.perf_counter(), time.process_time()
    if command == "load":
        peer.load()
    else:
        peer.step(request["variant"])
    return {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - start_cpu}


def main() -> None:
    """Serve on the standard streams; the only argument is JSON with the peer's name and source."""
    fields: dict[str, Any] = json.loads(sys.argv[1])
    name = fields.pop("peer")
    paths = {
        key: Path(fields.pop(key)) for key in ("checkpoint", "config", "bundle") if fields[key] is not None
    }
    # What libraries print to standard output must not be taken for a reply.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(PEERS[name](Source(**{**fields, **paths})), sys.stdin, replies)


if __name__ == "__main__":
    main()
