"""Peak memory of a whole decode, with all graphs in memory and with one at a time (``--low-memory``).

Each decode runs in a process of its own that is watched from outside. The subject is made up: its heads predict
noise of the right shapes, and take no memory to speak of, so that what is measured is the graphs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np

from unibrain_rt.benchmarks import machine
from unibrain_rt.benchmarks.kept_results import result_option, write_results
from unibrain_rt.benchmarks.made_up_subject import MadeUpSubject
from unibrain_rt.benchmarks.markdown import machine_line, table
from unibrain_rt.benchmarks.memory import PeakMemory
from unibrain_rt.bundle import Bundle
from unibrain_rt.graph_size import decode_memory
from unibrain_rt.sessions import decode_graphs

_DECODE = "import sys; from unibrain_rt.benchmarks.decode_memory import decode; decode(*sys.argv[1:])"


def decode(bundle: str, engine: str, preset: str, memory: str) -> None:
    """One decode, in this process; prints its seconds by stage as JSON."""
    from unibrain_rt import Decoder
    from unibrain_rt.captions import CaptionOptions
    from unibrain_rt.engines import create_engine

    opened = Bundle.open(bundle, verify=False)
    runner = create_engine(engine, low_memory=memory == "low")
    subject: Any = MadeUpSubject(opened)
    decoder = Decoder(opened, subject, runner, preset, CaptionOptions(max_tokens=8))
    result = decoder.decode(np.zeros(1, np.float32))
    print(json.dumps({"timings_ms": result.timings_ms, "mean": float(result.image.mean())}))


def measure(bundle: Path, engine: str, preset: str, memory: str) -> dict[str, Any]:
    """Peak memory of one decode; RuntimeError with the last lines if it fails."""
    process = subprocess.Popen(
        [sys.executable, "-c", _DECODE, str(bundle), engine, preset, memory],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with PeakMemory(process.pid) as watched:
        out, err = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"decode exited {process.returncode}:\n{err[-2000:]}")
    return {"memory": memory, **watched.peak.to_mapping(), **json.loads(out.splitlines()[-1])}


def page(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    rows = [
        [
            "one graph at a time" if run["memory"] == "low" else "all graphs",
            _gib(run["anonymous_bytes"]),
            _gib(run["total_bytes"]),
            f"{run['timings_ms']['total'] / 1000:.1f} s",
        ]
        for run in results["runs"]
    ]
    need = results["estimate"]
    return (
        "\n\n".join(
            [
                "# Memory of a decode",
                f"`python -m unibrain_rt.benchmarks.decode_memory`: bundle in {results['precision']}, engine "
                f"{results['engine']}, preset {results['preset']}, 8 tokens of caption. GiB is 2³⁰ bytes.",
                machine_line(results["machine"]),
                f"Weights of all graphs {_gib(need['weights_bytes'])}, of the largest {_gib(need['largest_bytes'])}; "
                f"activations of all graphs {_gib(need['held_bytes'])}; inputs and outputs "
                f"{_gib(need['buffers_bytes'])}.",
                table(["loaded", "peak own memory", "peak RSS", "decode"], rows),
                "RSS includes pages of the bundle's files, which the kernel drops when it needs room.",
            ]
        )
        + "\n"
    )


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@result_option
@click.option("--engine", default="onnxruntime", show_default=True)
@click.option("--preset", default="realtime", show_default=True)
def main(bundle: Path, out: Path, engine: str, preset: str) -> None:
    """Decode once with all graphs of BUNDLE in memory and once with one at a time."""
    opened = Bundle.open(bundle, verify=False)
    estimate = decode_memory(opened, decode_graphs(opened, [preset]))
    runs = [measure(bundle, engine, preset, memory) for memory in ("low", "all")]
    results = {
        "machine": machine.collect(),
        "engine": engine,
        "preset": preset,
        "precision": opened.precision,
        "estimate": {
            "weights_bytes": estimate.weights_bytes,
            "largest_bytes": estimate.largest_bytes,
            "held_bytes": estimate.held_bytes,
            "buffers_bytes": estimate.buffers_bytes,
        },
        "runs": runs,
    }
    write_results(out, results, page(results))


if __name__ == "__main__":
    main()
