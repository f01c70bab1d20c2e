"""Which buffer each tensor of a graph uses in a run, and what part each buffer plays.

A tensor has a buffer, which goes by the tensor's name. A session owns it, or shares another session's. Tensors that
are fed back swap theirs at every run, so that what one run gives is what the next one reads, and nothing is copied.
Of a graph whose ``next_x`` becomes ``x``:

    turn 0 reads x from the buffer "x" and writes next_x to the buffer "next_x"
    turn 1 reads x from the buffer "next_x" and writes next_x to the buffer "x"

After a run in turn 0, the session is in turn 1, and ``next_x`` is read from the buffer "next_x": that is where turn 1
finds its ``x``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class BufferRoles:
    """The table of one graph: names of its inputs and outputs, and which output becomes which input."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    feedback: Mapping[str, str]

    @property
    def turns(self) -> int:
        """2 where tensors are fed back, else 1."""
        return 2 if self.feedback else 1

    @property
    def fed_back(self) -> frozenset[str]:
        """Inputs and outputs that swap buffers. They cannot be shared with another session."""
        return frozenset({*self.feedback, *self.feedback.values()})

    @property
    def carried(self) -> tuple[str, ...]:
        """Inputs that a run finds as the run before left them."""
        return tuple(self.feedback.values())

    @property
    def written(self) -> tuple[str, ...]:
        """Buffers that runs write, whatever the turn."""
        return tuple(dict.fromkeys([*self.outputs, *self.carried]))

    @property
    def unwritten(self) -> tuple[str, ...]:
        """Buffers that runs only read."""
        return tuple(name for name in self.inputs if name not in self.carried)

    def at(self, turn: int) -> dict[str, str]:
        """The buffer of every tensor in a run of this turn."""
        buffers = {name: name for name in (*self.inputs, *self.outputs)}
        if turn:
            for output, carried in self.feedback.items():
                buffers[output], buffers[carried] = carried, output
        return buffers

    def after(self, turn: int, runs: int = 1) -> int:
        """The turn so many runs later."""
        return (turn + runs) % self.turns

    def result(self, name: str) -> str:
        """The tensor whose buffer holds ``name`` once a run is over and the turn has moved on."""
        return self.feedback.get(name, name)
