"""Programs of captured runs, replayed one after another.

While a graph is captured no other program runs, because no other thread may allocate on the device.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any

import numpy as np

from unibrain_rt.engines.base import Call, Program, Progress, Session
from unibrain_rt.engines.errors import EngineError
from unibrain_rt.engines.onnxruntime_cuda.device import on_device
from unibrain_rt.engines.onnxruntime_cuda.session import CudaSession, Launch

Turns = tuple[int, ...]
"""The turn of every call's session when the program starts: with it all addresses are settled."""


class CudaProgram(Program):
    """A thread that has the sessions' threads replay one captured run after another.

    Runs are captured when a program is first started, and again if it is started at other turns. An input that a table
    or another session gives is read where it lies: what the session's own buffer of that name holds is not changed.
    """

    def __init__(self, onnxruntime: Any, calls: Sequence[Call], running: set[Future[None]]) -> None:
        """``running``: of all programs of the engine. Raises EngineError: a session is of another engine."""
        super().__init__(calls)
        self._sessions = [_of_this_engine(call.session) for call in self.calls]
        self._rows = [
            [
                {name: on_device(onnxruntime, table[place]) for name, table in call.tables.items()}
                for place in range(call.runs)
            ]
            for call in self.calls
        ]
        self._every_running = running
        self._running: Future[None] | None = None
        self._prepared: dict[Turns, tuple[list[Any], list[list[Launch]]]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cuda-program")

    def start(self, progress: Progress | None = None) -> None:
        launches = self._prepare(tuple(session.turn for session in self._sessions))
        self._running = self._thread.submit(self._run, launches, progress)
        self._every_running.add(self._running)
        self._running.add_done_callback(self._every_running.discard)

    def finish(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def _prepare(self, starts: Turns) -> list[list[Launch]]:
        """Every run of a program that starts at these turns, bound, and captured at the first time."""
        known, launches = self._prepared.get(starts, ([], []))
        while known != (natives := [session.native for session in self._sessions]):
            # Another thread that allocates would break the capture.
            wait(set(self._every_running))
            # Where a capture is refused, a session is loaded anew, and is bound once more.
            known, launches = natives, self._captured(starts)
            self._prepared[starts] = known, launches
        return launches

    def _captured(self, starts: Turns) -> list[list[Launch]]:
        turn = dict(zip(self._sessions, starts, strict=True))
        # Capturing runs the graphs, which write over what they are fed.
        fed = [
            session.value(name, turn[session]) for session in turn for name in session.graph.feedback.values()
        ]
        kept = [np.array(value.numpy()) for value in fed]
        launches = []
        for call, session, rows in zip(self.calls, self._sessions, self._rows, strict=True):
            taken = {
                name: (giver := _of_this_engine(source)).result(output, turn.get(giver, giver.turn))
                for name, (source, output) in call.takes.items()
            }
            runs = []
            for row in rows:
                work = partial(session.prepare, turn[session], {**row, **taken})
                runs.append(session.in_thread(work).result())
                turn[session] = session.after(turn[session], 1)
            launches.append(runs)
        for value, array in zip(fed, kept, strict=True):
            value.update_inplace(array)
        return launches

    def _run(self, launches: list[list[Launch]], progress: Progress | None) -> None:
        spent = []
        for call, session, runs in zip(self.calls, self._sessions, launches, strict=True):
            begun = time.perf_counter()
            told = progress if call.counted else None
            session.in_thread(partial(session.launch, runs, told)).result()
            spent.append((time.perf_counter() - begun) * 1000)
        self.milliseconds = tuple(spent)


def _of_this_engine(session: Session) -> CudaSession:
    if not isinstance(session, CudaSession):
        raise EngineError(f"graph {session.graph.name}: its session is of another engine")
    return session
