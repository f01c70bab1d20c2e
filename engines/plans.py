"""The cache of compiled plans: a folder that several processes share, and that a kill at any moment leaves usable.

A plan lies beside a small JSON that describes it, both named by the digest of their key. Whoever builds one holds a
lock that the kernel releases when its process ends; what is found without such a lock and without both its files was
left by a process that died.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unibrain_rt.engines.errors import EngineError

CACHE_VARIABLE = "UNIBRAIN_RT_CACHE"
"""Environment variable: the folder of plans."""
LIMIT_VARIABLE = "UNIBRAIN_RT_CACHE_LIMIT"
"""Environment variable: how large the folder may grow, such as ``10GB``."""
LIMIT_BYTES = 40 * 10**9
TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX", "openvino": "OpenVINO"}
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) *([kmgt]?b?)", re.IGNORECASE)
_OURS = re.compile(r"([0-9a-f]{64})\.(plan|json|lock|tmp)")
_DESCRIPTION_BYTES = 2**20  # of a description, at most: ours have some hundred
_DAY_SECONDS = 24 * 60 * 60


@dataclass(frozen=True)
class PlanKey:
    """What a plan was made of: another value anywhere is another plan.

    ``files`` is the SHA-256 of the graph's file and of its weights, by file name. ``settings`` are the back end's own:
    ``version``, ``target`` (such as ``sm89``), ``free`` (size of the free axes), precision, and whatever else changes
    what is compiled.
    """

    engine: str
    graph: str
    files: Mapping[str, str]
    settings: Mapping[str, str]

    @property
    def digest(self) -> str:
        """SHA-256 over all of it, in hexadecimal."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class PlanRecord:
    """A plan that is there: its size, when it was built and last used (seconds since 1970), how long it took."""

    key: PlanKey
    path: Path
    size_bytes: int
    built: float
    used: float
    seconds: float


class PlanCache:
    """A folder of plans, made when the first of them is written."""

    def __init__(self, folder: Path | None = None, limit_bytes: int | None = None) -> None:
        """Without ``folder`` and ``limit_bytes``, those of the environment, or the user's cache folder and 40 GB.

        Raises:
            EngineError: the environment names no folder, or a limit that is no size.
        """
        self.folder = default_folder() if folder is None else Path(folder)
        self.limit_bytes = _default_limit() if limit_bytes is None else limit_bytes

    def find(self, key: PlanKey) -> Path | None:
        """The plan's file, which counts as used now; None where there is none that can be trusted."""
        record = self._record(key.digest)
        if record is None:
            return None
        with suppress(OSError):  # in a folder that is only read, when it was used is not known
            os.utime(self._path(key.digest, "json"))
        return record.path

    def why_missing(self, key: PlanKey) -> str:
        """Why ``find`` gives none, in a few words, by comparing with the plan of this graph that is most like it.

        Raises EngineError if the folder cannot be read.
        """
        with self._writing("read"):
            if self._path(key.digest, "json").exists():
                return "its plan is damaged"
        like = [record for record in self.plans() if _same_graph(record.key, key)]
        if not like:
            return "never built"
        nearest = min(like, key=lambda record: (len(_differences(record.key, key)), -record.used))
        return ", ".join(_differences(nearest.key, key)) or "it was removed just now"

    def build(
        self,
        key: PlanKey,
        make: Callable[[Path], None],
        waiting: Callable[[str], None] | None = None,
        *,
        anew: bool = False,
    ) -> tuple[Path, bool]:
        """The plan, and whether it was built now.

        Args:
            make: writes the plan into the file it is given.
            waiting: called with a line of text, once, where another process is building the same plan.
            anew: build it even if it is there.

        Raises:
            EngineError: the folder cannot be written, or ``make`` raised it or wrote nothing.
        """
        begun = time.time()
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._lock(
                key.digest, lambda: _say(waiting, f"{key.graph}: another process builds it; waiting")
            ):
                record = self._record(key.digest)
                # One that was finished while this process waited is as new as can be.
                if record is not None and (not anew or record.built > begun):
                    return record.path, False
                path = self._make(key, make)
                self._sweep()
                self._shrink(self.limit_bytes, keep=key.digest)
        return path, True

    def plans(self) -> list[PlanRecord]:
        """Every plan that can be used, the last used first. Raises EngineError if the folder cannot be read."""
        with self._writing("read"):
            digests = {digest for digest, kind in self._files() if kind == "json"}
        found = [record for digest in digests if (record := self._record(digest)) is not None]
        return sorted(found, key=lambda record: -record.used)

    def prune(
        self,
        *,
        limit_bytes: int | None = None,
        unused_for_days: float | None = None,
        everything: bool = False,
    ) -> list[PlanRecord]:
        """Remove plans, and what dead builders left; gives what was removed. What is being built stays.

        Args:
            limit_bytes: remove the longest unused until the others take no more than this; by default the cache's
                own limit.
            unused_for_days: remove what was not used for so long.
            everything: remove all.

        Raises:
            EngineError: the folder cannot be written.
        """
        with self._writing():
            self._sweep()
            removed = []
            if everything or unused_for_days is not None:
                oldest = time.time() - (unused_for_days or 0) * _DAY_SECONDS
                old = [record for record in self.plans() if everything or record.used < oldest]
                removed = [record for record in old if self._remove(record)]
            return removed + self._shrink(self.limit_bytes if limit_bytes is None else limit_bytes)

    def _make(self, key: PlanKey, make: Callable[[Path], None]) -> Path:
        """Write plan and description, each whole or not at all. The lock is held."""
        part, described = self._path(key.digest, "tmp"), self._path(key.digest, "json")
        path = self._path(key.digest, "plan")
        part.unlink(missing_ok=True)
        begun = time.perf_counter()
        try:
            make(part)
            size_bytes = part.stat().st_size if part.is_file() else 0
            if size_bytes == 0:
                raise EngineError(f"{key.graph}: {key.engine} wrote no plan")
            _flush(part)
            # While it is replaced, there must be no description that the new file could seem to fit.
            described.unlink(missing_ok=True)
            os.replace(part, path)
            seconds = time.perf_counter() - begun
            facts = {
                **asdict(key),
                "size_bytes": size_bytes,
                "built": time.time(),
                "seconds": round(seconds, 3),
            }
            part.write_text(json.dumps(facts, indent=1), encoding="utf-8")
            _flush(part)
            os.replace(part, described)
            _flush(self.folder)
        finally:
            part.unlink(missing_ok=True)
        return path

    def _record(self, digest: str) -> PlanRecord | None:
        """What is described under ``digest``, if that and its plan are whole."""
        described, path = self._path(digest, "json"), self._path(digest, "plan")
        try:
            used = described.stat()
            if used.st_size > _DESCRIPTION_BYTES:
                return None
            facts = json.loads(described.read_text(encoding="utf-8"))
            record = PlanRecord(
                key=PlanKey(
                    facts["engine"], facts["graph"], _texts(facts["files"]), _texts(facts["settings"])
                ),
                path=path,
                size_bytes=path.stat().st_size,
                built=float(facts["built"]),
                used=used.st_mtime,
                seconds=float(facts["seconds"]),
            )
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        whole = record.size_bytes == facts.get("size_bytes") and record.key.digest == digest
        return record if whole else None

    def _shrink(self, limit_bytes: int, keep: str | None = None) -> list[PlanRecord]:
        """Remove the longest unused plans until the others fit into the limit."""
        plans = self.plans()
        total = sum(record.size_bytes for record in plans)
        removed = []
        for record in reversed(plans):
            if total <= limit_bytes:
                break
            if record.key.digest != keep and self._remove(record):
                removed.append(record)
                total -= record.size_bytes
        return removed

    def _remove(self, record: PlanRecord) -> bool:
        """Remove a plan, unless somebody builds it at this moment."""
        digest = record.key.digest
        with self._lock(digest) as held:
            if held:
                self._path(digest, "json").unlink(missing_ok=True)
                self._path(digest, "plan").unlink(missing_ok=True)
        return held

    def _sweep(self) -> None:
        """Remove what dead builders left: parts, and plans and descriptions without the other."""
        kinds: dict[str, set[str]] = {}
        for digest, kind in self._files():
            kinds.setdefault(digest, set()).add(kind)
        for digest, there in kinds.items():
            if there == {"plan", "json"} and self._record(digest) is not None:
                continue
            with self._lock(digest) as held:
                if not held:
                    continue
                self._path(digest, "tmp").unlink(missing_ok=True)
                if self._record(digest) is None:
                    self._path(digest, "json").unlink(missing_ok=True)
                    self._path(digest, "plan").unlink(missing_ok=True)

    @contextmanager
    def _lock(self, digest: str, wait: Callable[[], None] | None = None) -> Iterator[bool]:
        """Hold the lock of a plan; without ``wait``, which is called before waiting, only if nobody else does."""
        path = self._path(digest, "lock")
        while True:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if wait is None:
                        yield False
                        return
                    wait()
                    fcntl.flock(handle, fcntl.LOCK_EX)
                if not _is_same_file(handle, path):
                    continue  # whoever held it removed the file; what is locked here is nobody's any more
                try:
                    yield True
                finally:
                    path.unlink(missing_ok=True)
                return
            finally:
                os.close(handle)

    def _files(self) -> list[tuple[str, str]]:
        """Digest and kind of every file of ours; the folder may hold what is somebody else's."""
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        return [(match[1], match[2]) for name in names if (match := _OURS.fullmatch(name))]

    def _path(self, digest: str, kind: str) -> Path:
        return self.folder / f"{digest}.{kind}"

    @contextmanager
    def _writing(self, verb: str = "written") -> Iterator[None]:
        """Make one EngineError of what the system refuses."""
        try:
            yield
        except BrokenPipeError:
            raise  # of whoever is told, not of the folder
        except OSError as error:
            full = error.errno in {errno.ENOSPC, errno.EDQUOT}
            advice = "free some space (unibrain-rt build --prune), or " if full else ""
            raise EngineError(
                f"plan cache {self.folder}: cannot be {verb} ({error.strerror or error}); "
                f"{advice}name another folder with --cache"
            ) from error


def default_folder() -> Path:
    """Where plans lie if no folder is named. Raises EngineError where the user has none."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # The standard says that a relative one is to be ignored.
        caches = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    except RuntimeError as error:
        raise EngineError("this user has no home folder for compiled plans; name one with --cache") from error
    return caches / "unibrain-rt" / "plans"


def size_from_text(text: str) -> int:
    """Bytes of a size such as ``10GB`` or ``500 MB``. Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no size such as 10GB or 500MB")
    unit = match[2].lower()
    return int(float(match[1]) * _UNITS[unit if unit.endswith("b") or not unit else f"{unit}b"])


def _default_limit() -> int:
    text = os.environ.get(LIMIT_VARIABLE)
    try:
        return size_from_text(text) if text else LIMIT_BYTES
    except ValueError as error:
        raise EngineError(f"{LIMIT_VARIABLE}: {error}") from error


def _same_graph(one: PlanKey, other: PlanKey) -> bool:
    """Whether both were made of a graph's file of the same name; its fp32 form has another."""
    graphs = ({name for name in key.files if name.endswith(".onnx")} for key in (one, other))
    return (one.engine, one.graph) == (other.engine, other.graph) and bool(set.intersection(*graphs))


def _differences(old: PlanKey, new: PlanKey) -> list[str]:
    """What changed from one key to another, a clause each."""
    found = []
    for name in sorted({*old.settings, *new.settings}):
        was, now = old.settings.get(name, "none"), new.settings.get(name, "none")
        if was == now:
            continue
        if name == "version":
            found.append(f"built with {TITLES.get(new.engine, new.engine)} {was}, this is {now}")
        elif name == "target":
            found.append(f"built for {was}, not {now}")
        else:
            found.append(f"built with {name} {was}, not {now}")
    changed = [
        name for name in sorted({*old.files, *new.files}) if old.files.get(name) != new.files.get(name)
    ]
    if changed:
        found.append(f"{' and '.join(changed)} {'has' if len(changed) == 1 else 'have'} changed")
    return found


def _texts(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise TypeError("not a table of texts")
    return value


def _flush(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _say(waiting: Callable[[str], None] | None, line: str) -> None:
    if waiting is not None:
        waiting(line)
