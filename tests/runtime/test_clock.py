"""Times of stages: here, elsewhere, and of all."""

from __future__ import annotations

import time

from unibrain_rt.clock import Clock


def test_what_a_stage_took_in_two_places_is_added_up() -> None:
    clock = Clock()
    with clock("ridge"):
        time.sleep(0.005)
    clock.add({"ridge": 100.0, "context": 7.0})
    found = clock.finished()
    assert list(found) == ["ridge", "context", "total"]
    assert 105 <= found["ridge"] < 200
    assert found["context"] == 7
    assert 5 <= found["total"] < 100
