"""A lock beside a plan, which the kernel releases when its holder ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def lock(path: Path, wait: Callable[[], None] | None = None) -> Iterator[bool]:
    """Hold the lock at ``path``, whose file is gone afterwards. Gives whether it is held.

    Args:
        wait: called before waiting for somebody else; without it nobody waits, and the lock is not held.

    Raises:
        OSError: the file cannot be made.
    """
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


def _is_same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
