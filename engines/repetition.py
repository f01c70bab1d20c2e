"""A session run again and again until an output says that it is enough."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from unibrain_rt.engines.engine_errors import EngineError
from unibrain_rt.engines.graph_spec import Array
from unibrain_rt.engines.program import checked_initial
from unibrain_rt.engines.session import Session

BLOCK = 4
"""Runs that a device is given at a time. A wait for the host takes a few per cent of a token of the published size, a
run that nobody needs takes all of one, and on average half a block is run too often (estimated, not measured). Even, so
that all blocks begin at the same turn."""


class Repetition:
    """Runs of a session until an output has some value, as a text is written until its end.

    Back ends whose device would wait for the host after each run override `_run_on`: they may run more often than is
    told of, up to ``at_most``.
    """

    def __init__(
        self, session: Session, output: str, until: int, at_most: int, initial: Mapping[str, Array]
    ) -> None:
        """
        Args:
            output: a tensor of one whole number.
            at_most: so many runs, if it never is ``until``.
            initial: what inputs that are fed back are in the first run.

        Raises:
            EngineError: there are no such tensors, or a value does not fit its input.
        """
        graph = session.graph
        watched = graph.tensor(output)
        if watched not in graph.outputs or np.prod(watched.sized(session.free)) != 1:
            raise EngineError(f"graph {graph.name}: {output} is not an output of one number")
        self._session, self._output, self._until, self._at_most = session, output, until, at_most
        self._initial = checked_initial(session, initial)

    def run(self) -> list[int]:
        """From the start; what the output was after each run, the last one being ``until`` if it came to that.

        Raises:
            EngineError: the back end fails.
        """
        self._begin()
        found: list[int] = []
        while len(found) < self._at_most and self._until not in found:
            found += self._run_on(len(found))
        return found[: found.index(self._until) + 1] if self._until in found else found

    def _begin(self) -> None:
        self._session.rewind()
        for name, value in self._initial.items():
            self._session.write(name, value)

    def _rows_of(self, number: int) -> dict[str, int]:
        """Where outputs are kept in a block's rows: by tensor, the row that a run writes, and the one that it reads."""
        rows = {self._output: number % BLOCK}
        if (fed := self._session.graph.feedback.get(self._output)) is not None:
            rows[fed] = (number - 1) % BLOCK
        return rows

    def _run_on(self, done: int) -> list[int]:
        """One run or more, after so many, and what the output was after each."""
        self._session.run()
        return [int(self._session.read(self._output).item())]
