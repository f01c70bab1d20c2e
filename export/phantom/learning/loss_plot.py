"""The losses of a training run as one picture."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

LOSSES = "losses.png"
_SMOOTHING = 60  # log lines under one running mean, about a minute


def plot_losses(folder: Path) -> Path:
    """Draw every stage's ``<name>.jsonl`` in ``folder``, in the order they were begun, into ``losses.png``.

    A run that was stopped repeats the steps since it was last saved; the later lines count.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    paths = sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
    logs = [(path.stem, losses) for path in paths if (losses := _read(path))]
    columns = 4
    rows = max(1, -(-len(logs) // columns))
    figure = Figure(figsize=(3.2 * columns, 2.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (name, losses) in enumerate(logs):
        axes = figure.add_subplot(rows, columns, place + 1)
        steps = sorted(losses)
        values = [losses[step] for step in steps]
        width = max(1, min(_SMOOTHING, len(values) // 8))
        means = [fmean(values[max(0, end - width) : end]) for end in range(1, len(values) + 1)]
        axes.plot(steps, values, color="0.8", linewidth=0.7)
        axes.plot(steps, means, color="tab:blue", linewidth=1.3)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=7)
        if min(values) > 0:
            axes.set_yscale("log")
    path = folder / LOSSES
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return path


def _read(path: Path) -> dict[int, float]:
    lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}"))
    return {int(line["step"]): float(line["loss"]) for line in lines}
