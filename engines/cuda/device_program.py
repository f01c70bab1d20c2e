"""A decode's runs as one CUDA graph, on a stream of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

from unibrain_rt.engines.cuda.device_memory import DeviceBuffer, DeviceMemory, DeviceTable
from unibrain_rt.engines.cuda.device_session import DeviceSession
from unibrain_rt.engines.cuda.replay import Replay, Work
from unibrain_rt.engines.cuda.stream import Event, Stream
from unibrain_rt.engines.engine_errors import EngineError
from unibrain_rt.engines.program import Call, Program, Progress
from unibrain_rt.engines.session import Session

Turns = tuple[int, ...]
"""The turn of every session when the program starts: with it all addresses are settled."""


class DeviceProgram(Program):
    """Tables lie on the device from the start, and a run is given the address of its row; what is fed back swaps
    addresses; what is taken from another session is read where it lies. So the device runs from the first call to
    the last without the host, and programs run beside each other: one that needs what a call of another gives waits,
    on the device, for that call and not for the others after it.

    An input that a table or another session gives is not left in the session's own buffer.
    """

    def __init__(
        self,
        calls: Sequence[Call],
        memory: DeviceMemory,
        *,
        capture: bool = True,
    ) -> None:
        """Raises EngineError: a session is not on the device, or the device is out of memory."""
        super().__init__(calls)
        self._memory, self._capture = memory, capture
        self._sessions = list(dict.fromkeys(_on_device(call) for call in self.calls))
        for place, call in enumerate(self.calls):
            before = [earlier.session for earlier in self.calls[:place]]
            started = [source for source, _ in call.starts.values() if source in self._sessions]
            if any(
                source not in before for source in (*(taken for taken, _ in call.takes.values()), *started)
            ):
                raise EngineError(f"graph {call.session.graph.name}: takes what no earlier call gives")
        sources = [_checked(source) for call in self.calls for source, _ in call.starts.values()]
        self._givers = [giver for giver in dict.fromkeys(sources) if giver not in self._sessions]
        self._tables: list[Mapping[str, DeviceTable]] = [
            {name: DeviceTable(memory, rows) for name, rows in call.tables.items()} for call in self.calls
        ]
        self._initial: list[Mapping[str, DeviceTable]] = [
            {name: DeviceTable(memory, value[None]) for name, value in call.initial.items()}
            for call in self.calls
        ]
        self._stream = Stream(memory.cuda)
        self._ready, self._end = Event(memory.cuda), Event(memory.cuda)
        # Events in a graph happen anew at every launch: a replay is timed like a run without a graph.
        self._marks = [Event(memory.cuda, timing=True) for _ in range(len(self.calls) + 1)]
        self._written_at: dict[DeviceBuffer, Event] = {}
        """When each buffer that is written holds what others may read."""
        for call, mark in zip(self.calls, self._marks[1:], strict=True):
            self._written_at.update(dict.fromkeys(_on_device(call).written, mark))
        self._replays: dict[Turns, Replay] = {}
        self._progress: Progress | None = None
        self._running = False

    def __del__(self) -> None:
        # What runs may not lose its buffers: a decode may have failed in another program.
        if getattr(self, "_running", False):
            with suppress(EngineError):
                self.finish()

    def start(self, progress: Progress | None = None) -> None:
        if self._running:
            self.finish()
        turns = tuple(session.turn for session in (*self._sessions, *self._givers))
        # What was written and run before in the memory's stream is what this works on.
        self._ready.record(self._memory.stream)
        self._stream.wait(self._ready)
        self._memory.before(self._reads(), self._written_at, self._stream)
        if turns not in self._replays:
            self._replays[turns] = Replay(self._memory, self._stream, capture=self._capture)
        try:
            self._replays[turns].launch(self._work(turns))
        except EngineError:
            self._memory.cuda.release("cudaStreamSynchronize", self._stream.handle)
            raise
        self._end.record(self._stream)
        self._running, self._progress = True, progress
        for buffer in (*self._reads(), *self._written_at):
            buffer.readers.add(self._end)  # later calls may read what earlier ones wrote
        for buffer, mark in self._written_at.items():
            buffer.writers.add(mark)
        for call in self.calls:
            _on_device(call).advance(call.runs)

    def finish(self) -> None:
        if not self._running:
            return
        self._running = False
        try:
            self._end.synchronize()
        finally:
            for buffer in (*self._reads(), *self._written_at):
                buffer.readers.discard(self._end)
                buffer.writers.difference_update(self._marks)
        self._note(end.since(start) for start, end in zip(self._marks, self._marks[1:], strict=False))
        if self._progress is not None:
            # The device does not tell the host of single runs.
            self._progress(sum(call.runs for call in self.calls if call.counted))

    def _work(self, turns: Turns) -> Work:
        starts = dict(zip(self._sessions, turns, strict=False))
        return Work(
            name=" and ".join(session.graph.name for session in self._sessions),
            enqueue=lambda capturing: self._enqueue(turns, capturing),
            pieces=sum(call.runs for call in self.calls),
            marks=self._marks,
            carried=[buffer for session, turn in starts.items() for buffer in session.carried(turn)],
            written=list(self._written_at),
            keeps=(self._sessions, self._givers, self._tables, self._initial, self._marks),
        )

    def _enqueue(self, turns: Turns, capturing: bool) -> None:
        """Give the stream every run, with what it reads and writes."""
        now = dict(zip((*self._sessions, *self._givers), turns, strict=True))
        self._marks[0].record(self._stream, inside_graph=capturing)
        for call, tables, initial, mark in zip(
            self.calls, self._tables, self._initial, self._marks[1:], strict=True
        ):
            session = _on_device(call)
            taken, first = (_addresses(given, now) for given in (call.takes, call.starts))
            first |= {name: table.row(0) for name, table in initial.items()}
            for number in range(call.runs):
                rows = {name: table.row(number) for name, table in tables.items()}
                given = {**taken, **(first if number == 0 else {})}
                session.enqueue({**session.addresses(now[session]), **rows, **given}, self._stream)
                now[session] = session.roles.after(now[session])
            mark.record(self._stream, inside_graph=capturing)

    def _reads(self) -> list[DeviceBuffer]:
        own = [buffer for session in self._sessions for buffer in session.unwritten]
        return own + [buffer for giver in self._givers for buffer in giver.written]


def _addresses(given: Mapping[str, tuple[Session, str]], now: Mapping[DeviceSession, int]) -> dict[str, int]:
    """Where what other sessions gave lies, at the turns they are at."""
    addresses = {}
    for name, (source, output) in given.items():
        giver = _checked(source)
        addresses[name] = giver.result(output, now[giver]).address
    return addresses


def _on_device(call: Call) -> DeviceSession:
    return _checked(call.session)


def _checked(session: object) -> DeviceSession:
    if not isinstance(session, DeviceSession):
        raise EngineError("a program on the device takes sessions of the device's engine alone")
    return session
