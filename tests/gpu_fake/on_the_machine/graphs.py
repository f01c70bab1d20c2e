"""BUNDLE: run every graph of a decode alone, each under a mark of its own."""

from __future__ import annotations

import json
import sys

from marks import mark

from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import create_engine
from unibrain_rt.sessions import decode_graphs


def main(folder: str) -> None:
    bundle = Bundle.open(folder, verify=False)  # weights may be missing
    engine = create_engine("cuda")
    opened = []
    for graph, free in decode_graphs(bundle, ["paper"]):
        mark(f"open {graph.name}")
        session = engine.open(graph, free=free)
        opened.append(session)
        mark(graph.name)
        session.run()
    mark("end")
    print(json.dumps({}))


main(*sys.argv[1:])
