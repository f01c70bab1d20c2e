"""Decoding processes on this machine: started when there is work, fed over pipes, and ended with their pool."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from typing import Any

from unibrain_rt.decoder import Decoder
from unibrain_rt.engines import EngineError
from unibrain_rt.errors import BundleError, InputError
from unibrain_rt.pools.decoder_pool import DecoderPool, LocalPool, Request, Result, StepProgress

ROOT_LOGGER = "unibrain_rt"
_ASKED = 2  # requests a worker has at a time: one that it decodes, and one that it finds when that is done
_AHEAD = 4  # requests a worker that may be taken and not yet given back: what bounds the memory
_PATIENCE_S = 5.0
_ERRORS: dict[str, type[Exception]] = {kind.__name__: kind for kind in (EngineError, BundleError, InputError)}


class ProcessPool(DecoderPool):
    """Decodes in worker processes. They are started when there is work for them, and stay until the end."""

    def __init__(self, options: dict[str, Any], workers: int) -> None:
        """``options`` are those of `Decoder.open`, for every worker. What workers log is logged here, notes once."""
        self._options, self._count = options, workers
        self._logged = set[_Logged]()
        self._workers: list[_Worker] = []
        self._streams = False

    def decode(self, requests: Iterable[Request], progress: StepProgress | None = None) -> Iterator[Result]:
        if self._streams:
            raise RuntimeError("the pool is decoding other requests: read their results to the end first")
        self._streams = True
        done: dict[int, Result] = {}
        taken = given = 0
        left = iter(requests)
        try:
            while True:
                while taken - given < _AHEAD * self._count and (worker := self._free()) is not None:
                    request = next(left, None)
                    if request is None:
                        break
                    worker.ask(taken, request)
                    taken += 1
                if taken == given:
                    return
                self._gather(done, at_once=given in done)
                if given in done:
                    given += 1
                    yield done.pop(given - 1)
        finally:
            self._streams = False
            if any(worker.asked for worker in self._workers):
                self.close()  # nobody waits for what is under way

    def close(self) -> None:
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.end()
        for worker in workers:
            worker.join()

    def _free(self) -> _Worker | None:
        """The worker with the least to do, if it can have more; one that is started where all have some."""
        least = min(self._workers, key=lambda worker: len(worker.asked), default=None)
        if (least is None or least.asked) and len(self._workers) < self._count:
            self._workers.append(_Worker(self._options))
            return self._workers[-1]
        return least if least is not None and len(least.asked) < _ASKED else None

    def _gather(self, done: dict[int, Result], *, at_once: bool) -> None:
        """Put results that are there into ``done``, by their places; without ``at_once``, wait for one message."""
        busy: dict[Any, _Worker] = {worker.connection: worker for worker in self._workers if worker.asked}
        for connection in wait(list(busy), 0 if at_once else None):
            worker = busy[connection]
            message = worker.receive()
            if isinstance(message, _Logged):
                # Steps are each scan's; what a user wants to know, every worker has to say.
                if message.level == logging.DEBUG or message not in self._logged:
                    self._logged.add(message)
                    logging.getLogger(message.logger).log(message.level, "%s", message.line)
            elif isinstance(message, _Failure):
                raise message.error()
            else:
                done[worker.asked.popleft()] = message


@dataclass(frozen=True)
class _Failure:
    """What ended a worker. An exception itself might not survive the way to another process."""

    kind: str
    line: str
    trace: str

    @classmethod
    def of(cls, error: BaseException) -> _Failure:
        kind = next((name for name, known in _ERRORS.items() if isinstance(error, known)), "")
        return cls(kind, str(error) if kind else repr(error), traceback.format_exc())

    def error(self) -> Exception:
        if self.kind in _ERRORS:
            return _ERRORS[self.kind](self.line)
        error = RuntimeError(f"a decoding process failed: {self.line}")
        error.__cause__ = RuntimeError(self.trace)
        return error


@dataclass(frozen=True)
class _Logged:
    """What a worker logged."""

    logger: str
    level: int
    line: str


class _Sending(logging.Handler):
    """Sends what is logged in a worker to its pool."""

    def __init__(self, send: Callable[[object], None]) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        self._send(_Logged(record.name, record.levelno, record.getMessage()))


class _Worker:
    """This process' end of a worker. ``asked`` are the places of the requests that it has not answered."""

    def __init__(self, options: dict[str, Any]) -> None:
        # A forked copy of a process with threads may hang: workers start afresh.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.asked: deque[int] = deque()
        self._process = context.Process(
            target=_work,
            args=(theirs, options, logging.getLogger(ROOT_LOGGER).getEffectiveLevel()),
            daemon=True,
        )
        with _interrupts_held():
            self._process.start()
        theirs.close()

    def ask(self, place: int, request: Request) -> None:
        self.asked.append(place)
        with suppress(BrokenPipeError, ConnectionResetError):  # `receive` tells what became of it
            self.connection.send(request)

    def receive(self) -> Result | _Logged | _Failure:
        """What the worker says next. Raises EngineError if it is gone."""
        try:
            message: Result | _Logged | _Failure = self.connection.recv()
            return message
        except (EOFError, OSError):  # between two messages, or in one
            self._process.join(_PATIENCE_S)
        code = self._process.exitcode
        if code is not None and code < 0:
            problem = f"was killed (signal {-code}), perhaps for memory; use fewer workers"
        else:
            problem = (
                f"ended (exit code {code}); see what it printed, and let a script start processes only where "
                "__name__ == '__main__'"
            )
        raise EngineError(f"a decoding process {problem}")

    def end(self) -> None:
        """Let the worker end, at once where it is busy."""
        if self.asked:
            self._process.kill()
        self.connection.close()

    def join(self) -> None:
        """Wait until the worker has ended."""
        self._process.join(_PATIENCE_S)
        self._process.kill()
        self._process.join()


def _work(connection: Connection, options: dict[str, Any], level: int) -> None:
    """A worker: answer requests until there are no more, or fail. ``level``: of messages that the pool hears."""
    sending = threading.Lock()

    def send(message: object) -> None:  # threads of an engine may log while a result is sent
        with sending:
            connection.send(message)

    logger = logging.getLogger(ROOT_LOGGER)
    logger.setLevel(level)
    logger.addHandler(_Sending(send))
    requests: SimpleQueue[Request | None] = SimpleQueue()
    threading.Thread(target=_listen, args=(connection, requests), daemon=True).start()
    pool = LocalPool(partial(Decoder.open, **options))
    with suppress(BrokenPipeError, ConnectionResetError):  # the pool is gone, and so is who would read of it
        try:
            while (request := requests.get()) is not None:
                send(pool.answer(request))
        except Exception as error:
            send(_Failure.of(error))


def _listen(connection: Connection, requests: SimpleQueue[Request | None]) -> None:
    """Take requests as they come, so that no pool waits until it can send one; end the process with its pool."""
    with suppress(EOFError, OSError):
        while True:
            requests.put(connection.recv())
    requests.put(None)
    time.sleep(_PATIENCE_S)
    os._exit(1)  # a decode that nobody waits for could take minutes more


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C goes to every process of a terminal; a worker that starts in here never hears of it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # else the first worker starts it in here, and it lets interrupts through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
