"""The cache of plans: it looks them up, has them built, notes when they were used, and removes the oldest."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from unibrain_rt.engines.engine_errors import EngineError
from unibrain_rt.engines.plans.defaults import default_folder, default_limit
from unibrain_rt.engines.plans.folder import PlanFolder, PlanRecord
from unibrain_rt.engines.plans.key import PlanKey, differences, same_graph

_log = logging.getLogger(__name__)

_DAY_SECONDS = 24 * 60 * 60


class PlanCache:
    """A folder of plans, made when the first of them is written."""

    def __init__(self, folder: Path | None = None, limit_bytes: int | None = None) -> None:
        """Without ``folder`` and ``limit_bytes``, those of the environment, or the user's cache folder and 40 GB.

        Raises:
            EngineError: the environment names no folder, or a limit that is no size.
        """
        self.folder = default_folder() if folder is None else Path(folder)
        self._files = PlanFolder(self.folder)
        self.limit_bytes = default_limit() if limit_bytes is None else limit_bytes

    def find(self, key: PlanKey) -> Path | None:
        """The plan's file, which counts as used now; None where there is none that can be trusted."""
        record = self._files.record(key.digest)
        if record is None:
            return None
        with suppress(OSError):  # in a folder that is only read, when it was used is not known
            os.utime(self._files.file(key.digest, "json"))
        return record.path

    def why_missing(self, key: PlanKey) -> str:
        """Why ``find`` gives none, in a few words, by comparing with the plan of this graph that is most like it.

        Raises EngineError if the folder cannot be read.
        """
        with self._writing("read"):
            if self._files.file(key.digest, "json").exists():
                return "its plan is damaged"
        like = [record for record in self.plans() if same_graph(record.key, key)]
        if not like:
            return "never built"
        nearest = min(like, key=lambda record: (len(differences(record.key, key)), -record.used))
        return ", ".join(differences(nearest.key, key)) or "it was removed just now"

    def build(
        self,
        key: PlanKey,
        make: Callable[[Path], object],
        *,
        anew: bool = False,
    ) -> tuple[Path, bool]:
        """The plan, and whether it was built now.

        Args:
            make: writes the plan into the file it is given.
            anew: build it even if it is there.

        Raises:
            EngineError: the folder cannot be written, or ``make`` raised it or wrote nothing.
        """
        begun = time.time()
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._files.lock(
                key.digest, lambda: _log.info("%s: another process builds it; waiting", key.graph)
            ):
                record = self._files.record(key.digest)
                # One that was finished while this process waited is as new as can be.
                if record is not None and (not anew or record.built > begun):
                    return record.path, False
                path = self._files.write(key, make)
                self._files.sweep()
                self._shrink(self.limit_bytes, keep=key.digest)
        return path, True

    def plans(self) -> list[PlanRecord]:
        """Every plan that can be used, the last used first. Raises EngineError if the folder cannot be read."""
        with self._writing("read"):
            digests = {digest for digest, kind in self._files.files() if kind == "json"}
        records = [record for digest in digests if (record := self._files.record(digest)) is not None]
        return sorted(records, key=lambda record: -record.used)

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
            self._files.sweep()
            removed = []
            if everything or unused_for_days is not None:
                oldest = time.time() - (unused_for_days or 0) * _DAY_SECONDS
                old = [record for record in self.plans() if everything or record.used < oldest]
                removed = [record for record in old if self._files.remove(record)]
            return removed + self._shrink(self.limit_bytes if limit_bytes is None else limit_bytes)

    def _shrink(self, limit_bytes: int, keep: str | None = None) -> list[PlanRecord]:
        """Remove the longest unused plans until the others fit into the limit."""
        plans = self.plans()
        total = sum(record.size_bytes for record in plans)
        removed = []
        for record in reversed(plans):
            if total <= limit_bytes:
                break
            if record.key.digest != keep and self._files.remove(record):
                removed.append(record)
                total -= record.size_bytes
        return removed

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
