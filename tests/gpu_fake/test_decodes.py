"""Decodes of the phantom: what is captured, what is waited for, and how much memory it takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unibrain_rt.engines.repetition import BLOCK

PRESETS = ("paper", "realtime")
NODES = {"unet_image_step": 326, "unet_text_step": 346, "autokl_decode": 160, "optimus_decode": 68}
"""Kernels, copies and fills of a captured run in fp16. Raise one with a reason, such as speed that was measured."""
PEAK_MB = 30
COPIES_OF_PLAIN_STEPS = 4
"""Places of the modulation's pieces, which go from the host to the device in every step of a graph without a flavour. It is
sound: since 1.31, ONNX Runtime keeps what they are copied from."""


@pytest.fixture(scope="module")
def decoded(watched: Callable[..., Any], half: Path, repository: Path) -> tuple[Any, dict[str, Any]]:
    """Every example scan with each preset."""
    told: tuple[Any, dict[str, Any]] = watched(
        "decodes.py", half, repository / "examples" / "scans.npy", "", *PRESETS
    )
    return told


def all_of(parts: dict[str, Any]) -> Any:
    return parts[""].joined(parts.values())


def test_nothing_is_done_that_cuda_refuses(decoded: tuple[Any, dict[str, Any]]) -> None:
    told, parts = decoded
    assert all_of(parts).refused == []
    assert all(one["finite"] for one in told.values())


def test_nothing_that_is_captured_touches_the_host(decoded: tuple[Any, dict[str, Any]]) -> None:
    captured = all_of(decoded[1]).captured
    assert captured["copy on the device"] > 0, "copies are counted"
    assert not [name for name in captured if "host" in name]


def test_everything_is_captured_with_the_first_scan_and_replayed_after_it(
    decoded: tuple[Any, dict[str, Any]],
) -> None:
    told, parts = decoded
    for name, facts in told.items():
        part = parts[name]
        if name.endswith("scan 0"):
            assert len(part.graphs) >= facts["steps"]
            continue
        assert part.graphs == {}
        assert part.of("allocate") == part.of("release") == []
        # Heads, contexts, every step, AutoKL, and the tokens, of which a block may be written in vain.
        tokens = facts["tokens"] - 1
        assert 0 <= len(part.of("launch")) - (3 + facts["steps"] + tokens) < BLOCK


def test_a_decode_waits_ten_times_besides_its_tokens(
    decoded: tuple[Any, dict[str, Any]], report: Callable[[str], None]
) -> None:
    told, parts = decoded
    for name, facts in told.items():
        if name.endswith("scan 0"):
            continue
        blocks = -(-(facts["tokens"] - 1) // BLOCK)
        waits = len(parts[name].waits)
        report(f"GPU, {name}: the host waits {waits} times, {blocks} of them for blocks of tokens")
        assert waits - blocks <= 10
        # Voxels, two noises and the text latent go in; latents, picture, logits and what the heads predicted come back.
        copies = [one["way"] for one in parts[name].of("copy")]
        assert copies.count("copy from the host") == 4
        assert copies.count("copy to the host") - blocks <= 8
        assert "copy on the device" not in copies


def test_the_flows_run_on_streams_of_their_own(decoded: tuple[Any, dict[str, Any]]) -> None:
    """So do the tokens: their stream waits for no step of the image."""
    _, parts = decoded
    for preset in PRESETS:
        launches = Counter(one["stream"] for one in parts[f"{preset}: scan 2"].of("launch"))
        assert len(launches) == 6
        assert 0 not in launches, "the legacy stream would wait for all others"


def test_a_change_that_adds_launches_fails(
    watched: Callable[..., Any], half: Path, report: Callable[[str], None]
) -> None:
    _, parts = watched("graphs.py", half)
    for name, most in NODES.items():
        (graph,) = parts[name].graphs.values()
        report(f"GPU, phantom in fp16: {name} is {graph['nodes']} nodes")
        assert graph["nodes"] <= most, sorted(graph["operations"].items(), key=lambda item: -item[1])


def test_memory_is_what_doctor_says(
    decoded: tuple[Any, dict[str, Any]], half: Path, report: Callable[[str], None]
) -> None:
    from unibrain_rt.bundle import Bundle
    from unibrain_rt.graph_size import decode_memory
    from unibrain_rt.sessions import decode_graphs

    bundle = Bundle.open(half)
    needed = decode_memory(bundle, decode_graphs(bundle, ["paper"])).needed_bytes()
    peak = all_of(decoded[1]).peak_bytes
    report(f"GPU, phantom in fp16: {peak / 1e6:.1f} MB at most, {needed / 1e6:.1f} MB by estimate")
    assert peak < PEAK_MB * 1e6


@pytest.mark.parametrize("options", [("--low-memory",), ()])
def test_fp32_and_little_memory_are_sound_too(
    run: Callable[..., Any], repository: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    words = ("--engine", "cuda", "--preset", "realtime", "--out", tmp_path, *options)
    ran = run("decode", repository / "examples" / "scan.npy", *words)
    assert (ran.code, ran.err) == (0, "")
    assert ran.journal.refused == []
    assert bool(ran.journal.graphs) == (not options)
    captured = ran.journal.captured
    assert {name for name in captured if "host" in name} <= {"copy from the host"}
    assert all(
        graph["operations"].get("copy from the host", 0) <= COPIES_OF_PLAIN_STEPS
        for graph in ran.journal.graphs.values()
    )
    assert (tmp_path / "scan.png").exists()


def test_without_graphs_nothing_is_captured(
    run: Callable[..., Any], half: Path, repository: Path, tmp_path: Path
) -> None:
    words = ("--bundle", half, "--engine", "cuda", "--preset", "realtime", "--out", tmp_path)
    ran = run(
        "decode",
        repository / "examples" / "scan.npy",
        *words,
        environment={"UNIBRAIN_RT_CUDA_GRAPHS": "0"},
    )
    assert (ran.code, ran.err) == (0, "")
    assert ran.journal.graphs == {}


def test_the_kernels_it_was_made_for_are_there(run: Callable[..., Any], half: Path) -> None:
    ran = run("build", half, "--engine", "cuda", "--preset", "realtime")
    assert ran.code == 0, ran.err
