"""The cache of plans: what is a hit, what is a miss and why, and what processes that die leave behind."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unibrain_rt.engines import EngineError
from unibrain_rt.engines.plans import PlanCache, PlanKey

KEY = PlanKey(
    "tensorrt-rtx",
    "unet_image_step",
    {"unet_image_step.onnx": "a" * 64, "unet.weights": "b" * 64},
    {"version": "1.7.1", "target": "sm86", "free": "1"},
)


@pytest.fixture
def cache(tmp_path: Path) -> PlanCache:
    return PlanCache(tmp_path / "plans")


def written(size: int = 10) -> Callable[[Path], None]:
    """Writes a plan of so many bytes."""
    return lambda path: path.write_bytes(b"x" * size) and None


def never(path: Path) -> None:
    pytest.fail("what is there is not built again")


def changed(**settings: str) -> PlanKey:
    return replace(KEY, settings={**KEY.settings, **settings})


def used(cache: PlanCache, key: PlanKey, seconds_ago: float) -> None:
    """Make it so that the plan was used so long ago."""
    then = time.time() - seconds_ago
    os.utime(cache.folder / f"{key.digest}.json", (then, then))


def kinds(cache: PlanCache) -> list[str]:
    return sorted(path.suffix for path in cache.folder.iterdir())


# --- Hits and misses ----------------------------------------------------------------------------------------


def test_what_was_built_is_found(cache: PlanCache) -> None:
    assert cache.find(KEY) is None
    assert cache.plans() == []
    path, built = cache.build(KEY, written())
    assert built
    assert path.read_bytes() == b"x" * 10
    assert cache.find(KEY) == path
    assert PlanCache(cache.folder).build(KEY, never) == (path, False)
    assert kinds(cache) == [".json", ".plan"], "no lock and no temporary file stays"
    (record,) = cache.plans()
    assert (record.key, record.path, record.size_bytes) == (KEY, path, 10)
    assert abs(record.built - time.time()) < 60
    assert 0 <= record.seconds < 60


def test_a_digest_covers_all_of_a_key() -> None:
    others = [
        replace(KEY, engine="tensorrt"),
        replace(KEY, graph="unet_text_step"),
        replace(KEY, files={**KEY.files, "unet.weights": "c" * 64}),
        changed(version="1.8.0"),
        changed(workspace="4 GB"),
    ]
    assert len({key.digest for key in [KEY, *others]}) == 6
    assert replace(KEY, files=dict(reversed(KEY.files.items()))).digest == KEY.digest, "order is nothing"


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (changed(target="sm89"), "built for sm86, not sm89"),
        (changed(version="1.8.0"), "built with TensorRT-RTX 1.7.1, this is 1.8.0"),
        (changed(free="74"), "built with free 1, not 74"),
        (changed(workspace="4 GB"), "built with workspace none, not 4 GB"),
        (replace(KEY, files={**KEY.files, "unet.weights": "c"}), "unet.weights has changed"),
        (
            replace(changed(target="sm89"), files={**KEY.files, "unet_image_step.onnx": "c"}),
            "built for sm86, not sm89, unet_image_step.onnx has changed",
        ),
        (replace(KEY, engine="tensorrt"), "never built"),
        (replace(KEY, graph="unet_text_step"), "never built"),
        (replace(KEY, files={"unet_image_step.fp32.onnx": "d", "unet.weights": "b" * 64}), "never built"),
    ],
)
def test_a_miss_says_what_is_other(cache: PlanCache, key: PlanKey, reason: str) -> None:
    assert cache.why_missing(KEY) == "never built"
    cache.build(KEY, written())
    assert cache.find(key) is None
    assert cache.why_missing(key) == reason


def test_a_miss_is_explained_by_the_plan_that_is_most_alike(cache: PlanCache) -> None:
    cache.build(changed(target="sm120", version="1.6.0"), written())
    cache.build(changed(version="1.6.0"), written())
    assert cache.why_missing(KEY) == "built with TensorRT-RTX 1.6.0, this is 1.7.1"


def test_another_plan_can_be_asked_for(cache: PlanCache) -> None:
    cache.build(KEY, written(10))
    path, built = cache.build(KEY, written(20), anew=True)
    assert (built, path.stat().st_size) == (True, 20)
    assert cache.find(KEY) == path


# --- Damage -------------------------------------------------------------------------------------------------


def damage_plan(plan: Path, description: Path) -> None:
    plan.write_bytes(plan.read_bytes()[:-1])


def lose_plan(plan: Path, description: Path) -> None:
    plan.unlink()


def spoil(text: str) -> Callable[[Path, Path], None]:
    return lambda plan, description: description.write_text(text) and None


def foreign_key(plan: Path, description: Path) -> None:
    facts = json.loads(description.read_text())
    description.write_text(json.dumps({**facts, "settings": {"version": "2"}}))


@pytest.mark.parametrize(
    "damage",
    [
        damage_plan,
        lose_plan,
        spoil(""),
        spoil("[1]"),
        spoil("{}"),
        spoil("[" * 100_000),
        spoil('{"engine": 1, "graph": 2, "files": [], "settings": {}, "built": 0, "seconds": 0}'),
        foreign_key,
    ],
)
def test_a_damaged_plan_is_a_miss(cache: PlanCache, damage: Callable[[Path, Path], None]) -> None:
    plan, _ = cache.build(KEY, written())
    damage(plan, plan.with_suffix(".json"))
    assert cache.find(KEY) is None
    assert cache.plans() == []
    assert cache.why_missing(KEY) == "its plan is damaged"
    assert cache.build(KEY, written()) == (plan, True)
    assert cache.find(KEY) == plan


def test_damaged_plans_are_swept(cache: PlanCache) -> None:
    plan, _ = cache.build(KEY, written())
    damage_plan(plan, plan.with_suffix(".json"))
    cache.prune()
    assert kinds(cache) == []


def test_what_is_not_ours_stays(cache: PlanCache) -> None:
    cache.build(KEY, written())
    for name in ("notes.json", "my.plan", f"{'g' * 64}.plan", f"{'a' * 64}.txt"):
        (cache.folder / name).write_text("mine")
    cache.prune(everything=True)
    assert len(list(cache.folder.iterdir())) == 4


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.touch()])
def test_no_plan_is_no_success(cache: PlanCache, make: Callable[[Path], None]) -> None:
    with pytest.raises(EngineError, match="unet_image_step: tensorrt-rtx wrote no plan"):
        cache.build(KEY, make)
    assert kinds(cache) == []


@pytest.mark.parametrize(
    "error", [EngineError("unknown operator"), KeyboardInterrupt(), RuntimeError("crash")]
)
def test_a_build_that_fails_leaves_nothing(cache: PlanCache, error: BaseException) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    with pytest.raises(type(error)):
        cache.build(KEY, fail)
    assert kinds(cache) == []
    assert cache.build(KEY, written())[1]


# --- Size ---------------------------------------------------------------------------------------------------


def test_the_longest_unused_plans_go_first(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path, limit_bytes=25)
    first, second, third = (changed(target=target) for target in ("sm86", "sm89", "sm120"))
    for age, key in ((30, first), (20, second)):
        cache.build(key, written())
        used(cache, key, age)
    assert cache.find(first) is not None, "which counts as used now"
    cache.build(third, written())
    assert {record.key.settings["target"] for record in cache.plans()} == {"sm86", "sm120"}


def test_the_plan_just_built_stays_however_large(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path, limit_bytes=5)
    cache.build(KEY, written())
    assert cache.find(KEY) is not None
    cache.build(changed(target="sm89"), written())
    assert [record.key.settings["target"] for record in cache.plans()] == ["sm89"]


def test_pruning_by_size_and_by_age(cache: PlanCache) -> None:
    keys = [changed(target=f"sm{number}") for number in (75, 80, 86, 89)]
    for days, key in zip((40, 20, 10, 0), keys, strict=True):
        cache.build(key, written())
        used(cache, key, days * 86400)

    def targets(records: Any) -> list[str]:
        return [record.key.settings["target"] for record in records]

    assert cache.prune() == []
    assert targets(cache.prune(unused_for_days=30)) == ["sm75"]
    assert targets(cache.prune(limit_bytes=15)) == ["sm80", "sm86"]
    assert targets(cache.plans()) == ["sm89"]
    assert targets(cache.prune(everything=True)) == ["sm89"]
    assert kinds(cache) == []


# --- Folders that cannot be written -------------------------------------------------------------------------


def test_a_file_in_the_folders_place(tmp_path: Path) -> None:
    (tmp_path / "plans").write_text("mine")
    cache = PlanCache(tmp_path / "plans")
    assert cache.find(KEY) is None
    for act in (lambda: cache.build(KEY, never), cache.plans):
        with pytest.raises(
            EngineError, match="plan cache .*plans: cannot be .*; name another folder with --cache$"
        ):
            act()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_only_read_still_serves(cache: PlanCache) -> None:
    plan, _ = cache.build(KEY, written())
    cache.folder.chmod(0o555)
    try:
        assert cache.find(KEY) == plan
        with pytest.raises(EngineError, match="Permission denied.*--cache"):
            cache.build(changed(target="sm89"), never)
    finally:
        cache.folder.chmod(0o755)


def test_when_it_was_used_need_not_be_noted(cache: PlanCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EROFS, os.strerror(errno.EROFS))

    plan, _ = cache.build(KEY, written())
    monkeypatch.setattr(os, "utime", refuse)
    assert cache.find(KEY) == plan


def test_a_full_disk_leaves_nothing(cache: PlanCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", refuse)
        with pytest.raises(
            EngineError, match="No space left on device.*free some space .*--cache$"
        ) as caught:
            cache.build(KEY, written())
    assert "\n" not in str(caught.value)
    assert kinds(cache) == []
    assert cache.build(KEY, written())[1]


# --- Several processes --------------------------------------------------------------------------------------

BUILDER = """
import logging, os, sys, time
from pathlib import Path
from unibrain_rt.engines.plans import PlanCache, PlanKey

folder, marks = Path(sys.argv[1]), Path(sys.argv[2])
key = PlanKey("tensorrt-rtx", "unet_image_step", {"unet_image_step.onnx": "a"}, {"target": "sm86"})

def make(path):
    path.write_bytes(b"half of it")
    (marks / f"making-{os.getpid()}").touch()
    while not (marks / "go on").exists():
        time.sleep(0.01)
    path.write_bytes(b"all of it")

class Waiting(logging.Handler):
    def emit(self, record):
        print(record.getMessage(), flush=True)
        (marks / f"waiting-{os.getpid()}").touch()
logger = logging.getLogger("unibrain_rt")
logger.setLevel(logging.INFO)
logger.addHandler(Waiting())
path, built = PlanCache(folder).build(key, make)
print("built" if built else "found", path.read_text())
"""
BUILDER_KEY = PlanKey("tensorrt-rtx", "unet_image_step", {"unet_image_step.onnx": "a"}, {"target": "sm86"})


@pytest.fixture
def builder(tmp_path: Path) -> Any:
    """Starts processes that build the same plan, until the file ``go on`` lets them finish."""
    running: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        words = [sys.executable, "-c", BUILDER, str(tmp_path / "plans"), str(tmp_path)]
        running.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=tmp_path))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


def await_file(folder: Path, pattern: str, count: int = 1) -> None:
    until = time.monotonic() + 60
    while len(list(folder.glob(pattern))) < count:
        assert time.monotonic() < until, f"no {pattern} in a minute"
        time.sleep(0.01)


def test_two_processes_build_once(cache: PlanCache, builder: Any, tmp_path: Path) -> None:
    both = [builder(), builder()]
    await_file(tmp_path, "making-*")
    await_file(tmp_path, "waiting-*")
    assert cache.find(BUILDER_KEY) is None, "half a plan is none"
    (tmp_path / "go on").touch()
    told = sorted(process.communicate(timeout=60)[0].splitlines()[-1] for process in both)
    assert told == ["built all of it", "found all of it"]
    assert len(list(tmp_path.glob("making-*"))) == 1
    assert kinds(cache) == [".json", ".plan"]


def test_who_waits_is_told_so_once(cache: PlanCache, builder: Any, tmp_path: Path) -> None:
    builder()
    await_file(tmp_path, "making-*")
    second = builder()
    await_file(tmp_path, "waiting-*")
    (tmp_path / "go on").touch()
    assert second.communicate(timeout=60)[0].splitlines() == [
        "unet_image_step: another process builds it; waiting",
        "found all of it",
    ]


def test_a_kill_in_mid_build_leaves_a_usable_cache(cache: PlanCache, builder: Any, tmp_path: Path) -> None:
    other = changed(target="sm89")
    cache.build(other, written())
    killed = builder()
    await_file(tmp_path, "making-*")
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait(timeout=60)
    assert cache.find(BUILDER_KEY) is None
    assert cache.find(other) is not None
    assert ".tmp" in kinds(cache)
    assert cache.why_missing(BUILDER_KEY) == "never built" or "sm89" in cache.why_missing(BUILDER_KEY)
    plan, built = cache.build(BUILDER_KEY, written())
    assert built
    assert plan.read_bytes() == b"x" * 10
    assert kinds(cache) == [".json", ".json", ".plan", ".plan"]


def test_the_dead_builders_rest_is_swept_by_another_build(
    cache: PlanCache, builder: Any, tmp_path: Path
) -> None:
    killed = builder()
    await_file(tmp_path, "making-*")
    killed.kill()
    killed.wait(timeout=60)
    cache.build(KEY, written())
    assert kinds(cache) == [".json", ".plan"]


def test_who_waits_for_a_builder_that_dies_builds(cache: PlanCache, builder: Any, tmp_path: Path) -> None:
    killed = builder()
    await_file(tmp_path, "making-*")
    second = builder()
    await_file(tmp_path, "waiting-*")
    killed.kill()
    await_file(tmp_path, "making-*", count=2)
    (tmp_path / "go on").touch()
    assert second.communicate(timeout=60)[0].splitlines()[-1] == "built all of it"
    assert kinds(cache) == [".json", ".plan"]


def test_what_is_being_built_is_not_pruned(cache: PlanCache, builder: Any, tmp_path: Path) -> None:
    cache.build(KEY, written())
    running = builder()
    await_file(tmp_path, "making-*")
    assert [record.key for record in cache.prune(everything=True)] == [KEY]
    cache.build(changed(target="sm89"), written())
    assert ".tmp" in kinds(cache)
    (tmp_path / "go on").touch()
    assert running.communicate(timeout=60)[0].startswith("built all")


def test_a_kill_between_plan_and_description_is_a_miss(cache: PlanCache) -> None:
    plan, _ = cache.build(KEY, written())
    plan.with_suffix(".json").unlink()
    assert cache.find(KEY) is None
    assert cache.why_missing(KEY) == "never built"
    assert cache.build(KEY, written(20))[1]
