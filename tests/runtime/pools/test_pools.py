"""Pools of decoders: what they give, how they fail, and that nothing is left running."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from unibrain_rt import Decoder, DecoderPool, Reconstruction, Request, open_pool
from unibrain_rt.engines import EngineError
from unibrain_rt.errors import BundleError, InputError
from unibrain_rt.pools.decoder_pool import LocalPool
from unibrain_rt.pools.process_pool import ProcessPool

OPTIONS: dict[str, Any] = {"preset": "realtime", "engine": "onnxruntime"}


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def children_of(parent: int) -> set[int]:
    """Processes that decode for ``parent``; what multiprocessing starts beside them does not."""
    children = set()
    for folder in Path("/proc").iterdir():
        try:
            if not folder.name.isdecimal() or int(status(int(folder.name))["PPid"]) != parent:
                continue
            if b"spawn_main" in (folder / "cmdline").read_bytes():
                children.add(int(folder.name))
        except (OSError, KeyError):
            continue  # it has just ended
    return children


def running(pid: int) -> bool:
    try:
        return not status(pid)["State"].startswith("Z")
    except OSError:
        return False


def ended(pids: set[int], within_s: float = 30.0) -> bool:
    deadline = time.monotonic() + within_s
    while any(map(running, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(running, pids))


@pytest.fixture(scope="module")
def bundle(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tiny.make_bundle(tmp_path_factory.mktemp("pools") / "bundle", ("sub-01", "sub-02"))
    return folder


@pytest.fixture(scope="module")
def two(bundle: Path) -> Iterator[DecoderPool]:
    with open_pool(bundle, workers=2, subject="sub-01", **OPTIONS) as pool:
        yield pool


def check_same(one: Any, other: Any) -> None:
    """Byte for byte, but for the times."""
    assert isinstance(one, Reconstruction)
    assert isinstance(other, Reconstruction)
    for record in (one.record(), other.record()):
        assert record["timings_ms"]
    assert {**one.record(), "timings_ms": 0} == {**other.record(), "timings_ms": 0}
    assert one.tokens == other.tokens
    assert one.image.tobytes() == other.image.tobytes()
    for arrays, others in ((one.predictions, other.predictions), (one.latents, other.latents)):
        assert arrays.keys() == others.keys()
        assert all(arrays[name].tobytes() == others[name].tobytes() for name in arrays)


def test_results_are_those_of_a_decoder_in_the_order_of_the_requests(
    bundle: Path, two: DecoderPool, tiny: Any
) -> None:
    contexts = ("image_context", "text_context")
    requests = [
        *(Request(tiny.scan(number), seed=number) for number in range(9)),
        Request(tiny.scan(1), "sub-02", 3),
        Request(tiny.scan(1), "sub-01", 1, contexts),
    ]
    results = list(two.decode(iter(requests)))
    with open_pool(bundle, workers=1, subject="sub-01", **OPTIONS) as one:
        assert isinstance(one, LocalPool)
        alone = list(one.decode(requests))
    assert len(results) == len(requests)
    for result, same in zip(results, alone, strict=True):
        check_same(result, same)
    first = Decoder.open(bundle, subject="sub-01", threads=1, **OPTIONS)
    second = Decoder.open(bundle, subject="sub-02", threads=1, **OPTIONS)
    check_same(results[4], first.decode(tiny.scan(4), seed=4))
    check_same(results[9], second.decode(tiny.scan(1), seed=3))
    check_same(results[10], first.decode(tiny.scan(1), seed=1, inputs=contexts))


def test_requests_and_results_are_plain_data(two: DecoderPool, tiny: Any) -> None:
    request = Request(tiny.scan(), "sub-02", 5)
    (result,) = two.decode([pickle.loads(pickle.dumps(request))])
    check_same(pickle.loads(pickle.dumps(result)), result)
    assert isinstance(result, Reconstruction)
    assert (result.subject, result.seed) == ("sub-02", 5)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_scan_that_cannot_be_decoded_is_a_result(
    bundle: Path, two: DecoderPool, tiny: Any, workers: int
) -> None:
    pool = two if workers == 2 else open_pool(bundle, workers=1, subject="sub-01", **OPTIONS)
    bad = [
        Request(tiny.scan()[:-1]),
        Request(tiny.scan(), "sub-09"),
        Request(tiny.scan(), inputs=("latent",)),
    ]
    results = list(pool.decode([Request(tiny.scan()), *bad, Request(tiny.scan())]))
    assert [type(result) for result in results] == [Reconstruction, *[InputError] * 3, Reconstruction]
    check_same(results[0], results[-1])
    said = [str(result) for result in results[1:4]]
    assert "voxels" in said[0]
    assert said[1].startswith("no subject 'sub-09'")
    assert said[2].startswith("unknown input 'latent'")


def test_requests_are_taken_a_few_at_a_time(two: DecoderPool, tiny: Any) -> None:
    taken = 0

    def requests() -> Iterator[Request]:
        nonlocal taken
        for taken in range(1, 41):
            yield Request(tiny.scan())

    for given, _ in enumerate(two.decode(requests()), start=1):
        assert taken - given <= 8
    assert taken == given == 40


def test_workers_are_started_when_there_is_work_and_end_with_the_pool(bundle: Path, tiny: Any) -> None:
    before = children_of(os.getpid())
    with open_pool(bundle, workers=2, subject="sub-01", **OPTIONS) as pool:
        assert isinstance(pool, ProcessPool)
        assert children_of(os.getpid()) == before
        list(pool.decode(Request(tiny.scan()) for _ in range(4)))
        workers = children_of(os.getpid()) - before
        assert len(workers) == 2
        list(pool.decode(Request(tiny.scan()) for _ in range(4)))
        assert children_of(os.getpid()) - before == workers, "they stay"
        # A terminal sends Ctrl-C to all processes: the pool alone answers it.
        interrupt = 1 << (signal.SIGINT - 1)
        assert all(int(status(worker)["SigBlk"], 16) & interrupt for worker in workers)
    assert not children_of(os.getpid()) & workers


def test_a_stream_that_is_left_early_is_given_up_and_the_pool_decodes_on(bundle: Path, tiny: Any) -> None:
    before = children_of(os.getpid())
    with open_pool(bundle, workers=2, subject="sub-01", **OPTIONS) as pool:
        results = pool.decode(Request(tiny.scan(number)) for number in range(1000))
        first = next(results)
        workers = children_of(os.getpid()) - before
        assert workers
        with pytest.raises(RuntimeError, match="decoding other requests"):
            next(pool.decode([Request(tiny.scan())]))
        del results
        assert not any(map(running, workers))
        (again,) = pool.decode([Request(tiny.scan(0))])
        check_same(again, first)
    assert children_of(os.getpid()) == before


def test_requests_that_cannot_be_made_end_the_stream(two: DecoderPool, tiny: Any) -> None:
    def requests() -> Iterator[Request]:
        yield Request(tiny.scan())
        raise InputError("the disk is gone")

    with pytest.raises(InputError, match="the disk is gone"):
        list(two.decode(requests()))


def test_a_killed_worker_is_one_line(bundle: Path, tiny: Any) -> None:
    before = children_of(os.getpid())
    with open_pool(bundle, workers=2, subject="sub-01", **OPTIONS) as pool:
        results = pool.decode(Request(tiny.scan(), seed=seed) for seed in range(1000))
        next(results)
        workers = children_of(os.getpid()) - before
        os.kill(min(workers), signal.SIGKILL)
        with pytest.raises(EngineError) as failed:
            list(results)
        assert str(failed.value) == (
            "a decoding process was killed (signal 9), perhaps for memory; use fewer workers"
        )
        assert not any(map(running, workers)), "the others end with it"


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_of_opening_are_themselves(bundle: Path, tiny: Any, tmp_path: Path, workers: int) -> None:
    damaged = shutil.copytree(bundle, tmp_path / "bundle")
    (damaged / "graphs" / "unet_time.onnx").write_bytes(b"no graph")
    tiny.seal(damaged)
    before = children_of(os.getpid())
    for error, folder, options in (
        (EngineError, bundle, {**OPTIONS, "engine": "abacus"}),
        (InputError, bundle, {**OPTIONS, "subject": "sub-09"}),
        ((BundleError, EngineError), damaged, OPTIONS),
    ):
        with open_pool(folder, workers=workers, **{"subject": "sub-01", **options}) as pool:
            with pytest.raises(error) as failed:
                list(pool.decode([Request(tiny.scan())] * 3))
            assert "\n" not in str(failed.value)
    assert children_of(os.getpid()) == before


SCRIPT = """
import sys
import numpy as np
from unibrain_rt import Request, open_pool
if __name__ == "__main__":
    with open_pool(sys.argv[1], workers=2, subject="sub-01", preset="realtime", engine="onnxruntime") as pool:
        scan = np.load(sys.argv[2])
        for result in pool.decode(Request(scan) for _ in range(100_000)):
            print("one", flush=True)
"""


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_a_process_that_is_killed_or_interrupted(
    bundle: Path, tiny_scan: Path, tmp_path: Path, by: signal.Signals
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, "utf-8")
    parent = subprocess.Popen(
        [sys.executable, str(script), str(bundle), str(tiny_scan)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell starts what it puts in the background deaf to Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert parent.stdout is not None
    for _ in range(20):
        assert parent.stdout.readline() == b"one\n"
    workers = children_of(parent.pid)
    assert len(workers) == 2
    parent.send_signal(by)
    parent.communicate(timeout=30)
    assert ended(workers)
