"""Peers in processes of their own: each stays loaded and sleeps until it is told to run a step."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from unibrain_rt.benchmarks import processes
from unibrain_rt.benchmarks.inputs import Float
from unibrain_rt.benchmarks.memory import ProcessMemory, memory_of
from unibrain_rt.benchmarks.peers.peer import Peer, Source
from unibrain_rt.benchmarks.peers.registry import peer_class, work_bytes
from unibrain_rt.benchmarks.processes import WorkerProcess

_PATHS = ("checkpoint", "config", "bundle")


class Worker(WorkerProcess):
    """The driver's end of a peer's worker."""

    def __init__(self, peer: str, source: Source) -> None:
        self.peer = peer
        super().__init__(peer, "unibrain_rt.benchmarks.peers.workers", {**asdict(source), "peer": peer})

    def __enter__(self) -> Worker:
        return self

    def output(self) -> Float:
        """What the last step gave, the next latent mostly.

        Raises:
            WorkerError: the worker failed or is gone.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "output.npy"
            self.ask("output", path=str(path))
            array: Float = np.load(path)
        return array


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

    def drop(self, peer: str) -> None:
        """End one worker."""
        self.workers.pop(peer).close()

    def keep(self, peers: Sequence[str]) -> list[Worker]:
        """End all workers but these and start those that are missing, which are returned."""
        for peer in [peer for peer in self.workers if peer not in peers]:
            self.workers.pop(peer).close()
        started = [Worker(peer, self._sources[peer]) for peer in peers if peer not in self.workers]
        self.workers |= {worker.peer: worker for worker in started}
        return started


class PeerAnswers:
    """Answers commands with a peer.

    ``weights`` gives the bytes a step reads; ``load`` loads; ``step`` runs one step of a variant and gives
    its wall and processor time; ``output`` saves what the last step gave as .npy; ``memory`` tells what the
    process takes.
    """

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def __call__(self, request: Mapping[str, Any]) -> dict[str, Any]:
        command, peer = request["command"], self._peer
        if command == "weights":
            return {"bytes": work_bytes(peer.source)}
        if command == "output":
            np.save(request["path"], peer.output())
            return {}
        if command == "memory":
            return (memory_of("self") or ProcessMemory()).to_mapping()
        if command not in ("load", "step"):
            raise ValueError(f"unknown command {command!r}")
        start, start_cpu = time.perf_counter(), time.process_time()
        if command == "load":
            peer.load()
        else:
            peer.step(request["variant"])
        return {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - start_cpu}


def _make(fields: dict[str, Any]) -> PeerAnswers:
    name = fields.pop("peer")
    paths = {key: Path(fields.pop(key)) for key in _PATHS if fields[key] is not None}
    source = Source(**{**fields, **paths})
    return PeerAnswers(peer_class(name, source.flow)(source))


if __name__ == "__main__":
    processes.main(_make)
