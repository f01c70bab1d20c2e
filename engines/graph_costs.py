"""What a run of a graph takes, as the exporter counted it and wrote it into the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class GraphCosts:
    """Of one run, with free axes of size 1.

    ``flops`` are those of matrix products, convolutions and attention. ``weight_numbers`` and ``activation_numbers``
    are read and written as ``bytes_per_number`` each, the width that the graph computes in: weights that are stored in
    half are widened when a graph is loaded. ``stored_bytes`` are the weights as they lie in files, of whatever type.
    ``operators`` tells how many nodes of each operator the graph has. ``held_numbers`` are the most activations that
    are held at once, beside inputs and outputs, if each goes when it was last read; None where nobody counted them.
    """

    flops: int
    weight_numbers: int
    activation_numbers: int
    stored_bytes: int
    bytes_per_number: int
    operators: Mapping[str, int] = field(default_factory=dict)
    held_numbers: int | None = None

    @property
    def complete(self) -> bool:
        """Whether all was counted that is counted now."""
        return self.held_numbers is not None

    @property
    def weight_bytes(self) -> int:
        return self.weight_numbers * self.bytes_per_number

    @property
    def activation_bytes(self) -> int:
        return self.activation_numbers * self.bytes_per_number

    @property
    def held_bytes(self) -> int | None:
        return None if self.held_numbers is None else self.held_numbers * self.bytes_per_number

    @property
    def bytes(self) -> int:
        """What has to move where nothing is kept from one run to the next."""
        return self.weight_bytes + self.activation_bytes

    def sized(self, free: int) -> GraphCosts:
        """Of a graph that has free axes, with these of size ``free``. They are batches: weights are read as before."""
        held = None if self.held_numbers is None else free * self.held_numbers
        activations = free * self.activation_numbers
        return replace(self, flops=free * self.flops, activation_numbers=activations, held_numbers=held)
