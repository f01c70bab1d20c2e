"""Programs of captured runs, replayed one after another.

While a graph is captured no other program runs, because no other thread may allocate on the device.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from unibrain_rt.engines.engine_errors import EngineError
from unibrain_rt.engines.onnxruntime_cuda.cuda_session import CudaSession, Launch
from unibrain_rt.engines.onnxruntime_cuda.device_rows import DeviceRows, device_row
from unibrain_rt.engines.onnxruntime_cuda.provider import to_device, to_host
from unibrain_rt.engines.program import Call, Program, Progress
from unibrain_rt.engines.session import Session

Turns = tuple[int, ...]
"""The turn of every session when the program starts: with it all addresses are settled."""


@dataclass(frozen=True, eq=False)
class Underway:
    """Of all programs of an engine: those that run, and what their calls write until they are done, by its id."""

    programs: set[Future[None]] = field(default_factory=set)
    writers: dict[int, threading.Event] = field(default_factory=dict)

    def wait(self) -> None:
        """Until nothing runs: what another thread asks of CUDA meanwhile would break a capture."""
        wait(set(self.programs))


class CudaProgram(Program):
    """A thread that has the sessions' threads replay one captured run after another. One that needs what a call of
    another program gives waits for that call, and not for the others after it.

    Runs are captured when a program is first started, and again if it is started at other turns. An input that a table
    or another session gives is read where it lies: what the session's own buffer of that name holds is not changed.
    """

    def __init__(self, onnxruntime: Any, calls: Sequence[Call], underway: Underway) -> None:
        """Raises EngineError: a session is of another engine, or the device is out of memory."""
        super().__init__(calls)
        self._sessions = [_of_this_engine(call.session) for call in self.calls]
        self._givers = [_of_this_engine(source) for call in self.calls for source, _ in call.starts.values()]
        graphs = [f"graph {call.session.graph.name}" for call in self.calls]
        self._tables = [
            {name: DeviceRows(onnxruntime, rows, f"{graph}, {name}") for name, rows in call.tables.items()}
            for graph, call in zip(graphs, self.calls, strict=True)
        ]
        self._initial = [
            {name: device_row(onnxruntime, value, f"{graph}, {name}") for name, value in call.initial.items()}
            for graph, call in zip(graphs, self.calls, strict=True)
        ]
        self._underway = underway
        self._running: Future[None] | None = None
        self._prepared: dict[Turns, tuple[list[Any], list[list[Launch]]]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cuda-program")

    def start(self, progress: Progress | None = None) -> None:
        launches = self._prepare(tuple(session.turn for session in (*self._sessions, *self._givers)))
        writers = self._underway.writers
        values = [value for session in (*self._sessions, *self._givers) for value in session.buffers]
        needed = {writers[id(value)] for value in values if id(value) in writers}
        ends = [threading.Event() for _ in self.calls]
        for session, end in zip(self._sessions, ends, strict=True):
            writers.update({id(value): end for value in session.written})
        self._running = self._thread.submit(self._run, launches, needed, ends, progress)
        self._underway.programs.add(self._running)
        self._running.add_done_callback(self._underway.programs.discard)

    def finish(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def _prepare(self, starts: Turns) -> list[list[Launch]]:
        """Every run of a program that starts at these turns, bound, and captured at the first time."""
        known, launches = self._prepared.get(starts, ([], []))
        while known != (natives := [session.native for session in self._sessions]):
            self._underway.wait()
            # Where a capture is refused, a session is loaded anew, and is bound once more.
            known, launches = natives, self._captured(starts)
            self._prepared[starts] = known, launches
        return launches

    def _captured(self, starts: Turns) -> list[list[Launch]]:
        turn = dict(zip((*self._sessions, *self._givers), starts, strict=True))
        # Capturing runs the graphs, which write over what they are fed.
        carried = [
            (f"graph {session.graph.name}", value)
            for session in dict.fromkeys(self._sessions)
            for value in session.carried(turn[session])
        ]
        kept = [to_host(value, graph) for graph, value in carried]
        launches = []
        for call, session, tables, initial in zip(
            self.calls, self._sessions, self._tables, self._initial, strict=True
        ):
            taken, first = (
                {
                    name: (giver := _of_this_engine(source)).result(output, turn.get(giver, giver.turn))
                    for name, (source, output) in given.items()
                }
                for given in (call.takes, call.starts)
            )
            first |= initial
            runs: list[Launch] = []
            for place in range(call.runs):
                row = {name: rows[place] for name, rows in tables.items()}
                given = taken if place else {**taken, **first}
                work = partial(session.prepare, turn[session], {**row, **given})
                runs.append(session.in_thread(work).result())
                turn[session] = session.roles.after(turn[session])
            launches.append(runs)
        for (graph, value), array in zip(carried, kept, strict=True):
            to_device(value, array, graph)
        return launches

    def _run(
        self,
        launches: list[list[Launch]],
        needed: set[threading.Event],
        ends: list[threading.Event],
        progress: Progress | None,
    ) -> None:
        spent = []
        try:
            for end in needed:
                end.wait()
            for call, session, runs, end in zip(self.calls, self._sessions, launches, ends, strict=True):
                begun = time.perf_counter()
                told = progress if call.counted else None
                session.in_thread(partial(session.launch, runs, told)).result()
                spent.append((time.perf_counter() - begun) * 1000)
                end.set()
        finally:
            for end in ends:  # nobody waits for what failed
                end.set()
        self._note(spent)


def _of_this_engine(session: Session) -> CudaSession:
    if not isinstance(session, CudaSession):
        raise EngineError(f"graph {session.graph.name}: its session is of another engine")
    return session
