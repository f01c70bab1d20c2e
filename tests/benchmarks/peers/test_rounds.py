"""One step in every implementation: that they compute the same, and that the driver measures what it says."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from unibrain_rt.benchmarks.inputs import step_inputs  # noqa: E402
from unibrain_rt.benchmarks.peers import rounds  # noqa: E402
from unibrain_rt.benchmarks.peers.peer import Peer, Source  # noqa: E402
from unibrain_rt.benchmarks.peers.registry import PEERS, work_bytes  # noqa: E402
from unibrain_rt.benchmarks.peers.rounds import group_peers, measure_flow, relative_errors, summarise  # noqa: E402
from unibrain_rt.benchmarks.peers.workers import PeerAnswers, Pool, Worker  # noqa: E402
from unibrain_rt.benchmarks.processes import WorkerError, serve  # noqa: E402
from unibrain_rt.flows import FLOWS  # noqa: E402
from unibrain_rt.samplers import COLUMNS  # noqa: E402

GIB = 2**30


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def outputs_of(source: Source, *names: str) -> dict[str, np.ndarray]:
    """The next latent of every variant; each runs twice, so that what a step leaves behind would show."""
    outputs = {}
    for name in names:
        peer = PEERS[name](source)
        peer.load()
        for variant in peer.variants:
            peer.step(variant)
            peer.step(variant)
            outputs[f"{name}/{variant}"] = peer.output()
    return outputs


@pytest.mark.parametrize("flow", FLOWS)
def test_torch_and_diffusers_compute_the_same_step(tiny_checkpoint, flow, report):
    errors = relative_errors(outputs_of(Source(flow, 1, tiny_checkpoint), "torch", "diffusers"))
    assert set(errors) == {"torch/whole", "torch/partitioned", "diffusers/whole"}
    report(f"steps: {flow} flow, diffusers against our torch module: {errors['diffusers/whole']:.1e}")
    assert max(errors.values()) < 1e-5


@pytest.mark.parametrize("flow", FLOWS)
def test_onnx_runtime_computes_the_same_step(golden_dir, golden_bundle, flow, report):
    source = Source(flow, 1, golden_dir, golden_dir / "config.json", golden_bundle)
    errors = relative_errors(outputs_of(source, "torch", "onnxruntime"))
    report(f"steps: {flow} flow, ONNX Runtime against torch: {errors['onnxruntime/whole']:.1e}")
    assert max(errors.values()) < 1e-4


def test_a_step_follows_the_sampler(tiny_checkpoint, tiny_architecture):
    """Torch's step is guidance and DDIM written out: checked against the formulas of ``samplers``."""
    from unibrain_rt.export.bundles import checkpoint as checkpoints

    inputs = step_inputs(tiny_architecture, "text")
    unet = checkpoints.load_unet(checkpoints.open_checkpoint(tiny_checkpoint), torch.float32)
    contexts = {name: torch.from_numpy(context) for name, context in inputs.contexts.items()}
    latent = torch.from_numpy(inputs.latent)
    with torch.inference_mode():
        timesteps = torch.tensor([inputs.timestep])
        noise = unet("text", torch.cat([latent] * 2), timesteps, contexts, inputs.image_ratio).numpy()
    row = dict(zip(COLUMNS, inputs.row, strict=True))
    assert row["guidance_scale"] == inputs.guidance_scale == 7.5
    guided = noise[:1] + row["guidance_scale"] * (noise[1:] - noise[:1])
    x0 = row["x0_from_latent"] * inputs.latent + row["x0_from_noise"] * guided
    expected = row["next_from_latent"] * inputs.latent + row["next_from_x0"] * x0
    found = outputs_of(Source("text", 1, tiny_checkpoint), "torch")["torch/whole"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_diffusers_holds_what_a_step_reads(tiny_checkpoint):
    sizes = {flow: work_bytes(Source(flow, 1, tiny_checkpoint)) for flow in FLOWS}
    peer = PEERS["diffusers"](Source("text", 1, tiny_checkpoint))
    peer.load()
    loaded = sum(4 * parameter.numel() for parameter in peer._unet.parameters())
    assert loaded == sizes["text"] != sizes["image"]
    assert not any(parameter.is_meta for parameter in peer._unet.parameters())


def test_peers_are_grouped_by_what_fits():
    needs = {"a": 5 * GIB, "b": 4 * GIB, "c": 4 * GIB, "d": 8 * GIB}
    assert group_peers("abc", needs, 13 * GIB) == [["a", "b", "c"]]
    assert group_peers("abc", needs, 10 * GIB) == [["a", "b"], ["a", "c"]]
    assert group_peers("abd", needs, 10 * GIB) == [["a", "b"], ["d"]]
    assert group_peers("a", needs, 1) == [["a"]]


def test_ratios_are_taken_within_a_round():
    def one(torch_seconds: float, engine_seconds: float) -> rounds.Round:
        pair = {"torch/whole": torch_seconds, "onnxruntime/partitioned": engine_seconds}
        return {name: {"seconds": value, "cpu_seconds": 2 * value} for name, value in pair.items()}

    found = summarise([[one(4, 1), one(2, 2)], [one(30, 10)]])
    ratio = found["ratios"]["ONNX Runtime partitioned over torch whole"]
    assert ratio == {"median": 3, "min": 1, "max": 4, "rounds": 3}
    assert found["seconds"]["torch/whole"] == {"median": 4, "min": 2, "max": 30, "rounds": 3}
    assert found["cpu_seconds"]["torch/whole"]["median"] == 8
    assert list(found["ratios"]) == ["ONNX Runtime partitioned over torch whole"]


def test_every_ratio_names_variants_that_exist():
    known = {f"{name}/{variant}" for name, peer in PEERS.items() for variant in peer.variants}
    assert {variant for _, *pair in rounds.RATIOS for variant in pair} <= known
    assert rounds.REFERENCE in known


class Counter(Peer):
    """A peer that counts."""

    variants = ("up",)

    def load(self) -> None:
        self.count = np.zeros(1, dtype=np.float32)

    def step(self, variant: str) -> None:
        assert variant == "up"
        self.count += 1

    def output(self) -> np.ndarray:
        return self.count


def test_a_worker_answers_commands_in_order(tmp_path):
    asked = [
        {"command": "load"},
        {"command": "step", "variant": "up"},
        {"command": "step", "variant": "up"},
        {"command": "output", "path": str(tmp_path / "count.npy")},
        {"command": "memory"},
    ]
    replies = io.StringIO()
    answers = PeerAnswers(Counter(Source("text", 1)))
    serve(answers, io.StringIO("".join(json.dumps(each) + "\n" for each in asked)), replies)
    found = [json.loads(line) for line in replies.getvalue().splitlines()]
    assert [set(reply) for reply in found[:4]] == [*[{"seconds", "cpu_seconds"}] * 3, set()]
    assert found[4]["high_water_bytes"] >= found[4]["total_bytes"] > 0
    assert np.load(tmp_path / "count.npy") == 2
    with pytest.raises(ValueError, match="unknown command 'jump'"):
        serve(answers, io.StringIO('{"command": "jump"}\n'), replies)


def test_a_worker_that_fails_shows_what_it_printed(tmp_path):
    with (
        Worker("onnxruntime", Source("text", 1, bundle=tmp_path / "no-such-bundle")) as worker,
        pytest.raises(WorkerError, match="no such bundle") as raised,
    ):
        worker.ask("load")
    assert raised.value.exit_code == 2


class Broken(Peer):
    """A peer with a mistake in it."""

    variants = ()

    def load(self) -> None:
        raise RuntimeError("out of order")

    def step(self, variant: str) -> None: ...

    def output(self) -> np.ndarray: ...


def test_what_no_user_caused_ends_the_worker():
    with pytest.raises(RuntimeError, match="out of order"):
        serve(PeerAnswers(Broken(Source("text", 1))), io.StringIO('{"command": "load"}\n'), io.StringIO())


def test_a_pool_keeps_who_stays(golden_bundle):
    source = Source("text", 1, bundle=golden_bundle)
    with Pool({"onnxruntime": source, "onnxruntime-fp16": replace(source, flow="image")}) as pool:
        (first,) = pool.keep(["onnxruntime"])
        first.ask("load")
        (second,) = pool.keep(["onnxruntime", "onnxruntime-fp16"])
        assert list(pool.workers) == ["onnxruntime", "onnxruntime-fp16"]
        assert second.ask("memory")["total_bytes"] > 0
        assert pool.keep(["onnxruntime"]) == []
        first.ask("step", variant="partitioned")
        assert np.isfinite(first.output()).all()
    assert pool.workers == {}


@pytest.mark.slow
def test_a_flow_is_measured_end_to_end(golden_dir, golden_bundle):
    found = measure_flow(
        "text",
        golden_dir,
        {"onnxruntime": golden_bundle},
        config=golden_dir / "config.json",
        peers=("onnxruntime", "torch"),
        rounds=2,
        threads=1,
    )
    json.dumps(found)
    assert found["timestep"] == 721
    assert [group["peers"] for group in found["groups"]] == [["onnxruntime", "torch"]]
    variants = {f"{name}/{variant}" for name in ("onnxruntime", "torch") for variant in PEERS[name].variants}
    assert [set(one) for one in found["groups"][0]["rounds"]] == [variants] * 2
    assert set(found["seconds"]) == set(found["relative_errors"]) == variants
    assert max(found["relative_errors"].values()) < 1e-4
    assert "partition alone, in torch" in found["ratios"]
    for peer in found["peers"].values():
        assert peer["load_seconds"] > 0
        assert set(peer["first_step_seconds"]) == {"whole", "partitioned"}
        assert peer["peak_rss_bytes"] >= peer["peaks"]["steps"]["total_bytes"] > 0
