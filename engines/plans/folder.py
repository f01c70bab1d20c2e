"""The files of a cache of plans: written whole or not at all, and trusted only where they fit together."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unibrain_rt.engines.engine_errors import EngineError
from unibrain_rt.engines.plans.key import PlanKey
from unibrain_rt.engines.plans.lock import lock

_OURS = re.compile(r"([0-9a-f]{64})\.(plan|json|lock|tmp)")
_DESCRIPTION_BYTES = 2**20  # of a description, at most: ours have some hundred


@dataclass(frozen=True)
class PlanRecord:
    """A plan that is there: its size, when it was built and last used (seconds since 1970), how long it took."""

    key: PlanKey
    path: Path
    size_bytes: int
    built: float
    used: float
    seconds: float


class PlanFolder:
    """Plans and their descriptions, by the digest of their key. What the system refuses is an OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def files(self) -> list[tuple[str, str]]:
        """Digest and kind of every file of ours; the folder may hold what is somebody else's."""
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            return []
        return [(match[1], match[2]) for name in names if (match := _OURS.fullmatch(name))]

    def file(self, digest: str, kind: str) -> Path:
        return self.path / f"{digest}.{kind}"

    def lock(self, digest: str, wait: Callable[[], None] | None = None) -> AbstractContextManager[bool]:
        """Hold the lock of a plan; without ``wait``, only if nobody else does: see `lock`."""
        return lock(self.file(digest, "lock"), wait)

    def record(self, digest: str) -> PlanRecord | None:
        """What is described under ``digest``, if that and its plan are whole."""
        described, path = self.file(digest, "json"), self.file(digest, "plan")
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

    def write(self, key: PlanKey, make: Callable[[Path], object]) -> Path:
        """Write plan and description, each whole or not at all. The lock is held.

        Raises:
            EngineError: ``make`` raised it, or wrote nothing.
        """
        part, described = self.file(key.digest, "tmp"), self.file(key.digest, "json")
        path = self.file(key.digest, "plan")
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
            _flush(self.path)
        finally:
            part.unlink(missing_ok=True)
        return path

    def remove(self, record: PlanRecord) -> bool:
        """Remove a plan, unless somebody builds it at this moment."""
        digest = record.key.digest
        with self.lock(digest) as held:
            if held:
                self.file(digest, "json").unlink(missing_ok=True)
                self.file(digest, "plan").unlink(missing_ok=True)
        return held

    def sweep(self) -> None:
        """Remove what dead builders left: parts, and plans and descriptions without the other."""
        kinds: dict[str, set[str]] = {}
        for digest, kind in self.files():
            kinds.setdefault(digest, set()).add(kind)
        for digest, there in kinds.items():
            if there == {"plan", "json"} and self.record(digest) is not None:
                continue
            with self.lock(digest) as held:
                if not held:
                    continue
                self.file(digest, "tmp").unlink(missing_ok=True)
                if self.record(digest) is None:
                    self.file(digest, "json").unlink(missing_ok=True)
                    self.file(digest, "plan").unlink(missing_ok=True)


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
