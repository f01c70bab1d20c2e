from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from unibrain_rt.export.phantom.learning.loss_plot import plot_losses


def write(folder: Path, name: str, losses: list[tuple[int, float]]) -> None:
    lines = (json.dumps({"step": step, "loss": loss}) for step, loss in losses)
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_every_stage_gets_a_panel(tmp_path: Path) -> None:
    write(tmp_path, "one", [(step, 1.0 / step) for step in range(1, 200)])
    first = Image.open(plot_losses(tmp_path)).size
    for name in "abcd":
        write(tmp_path, name, [(1, 2.0), (2, 1.0)])
    second = np.asarray(Image.open(plot_losses(tmp_path)).convert("L"))
    assert second.shape[0] == 2 * first[1]
    assert second.std() > 10


def test_steps_that_were_repeated_and_a_line_cut_short_do_no_harm(tmp_path: Path) -> None:
    write(tmp_path, "one", [(1, 3.0), (2, 2.0), (2, 2.0), (3, -1.0)])
    with (tmp_path / "one.jsonl").open("a", encoding="utf-8") as log:
        log.write('{"step": 4, "lo')
    assert plot_losses(tmp_path).stat().st_size > 1000


def test_a_run_without_logs_gives_an_empty_picture(tmp_path: Path) -> None:
    assert plot_losses(tmp_path).is_file()
