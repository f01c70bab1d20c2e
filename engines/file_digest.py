"""SHA-256 of a file: what bundles and plans are compared by."""

from __future__ import annotations

import hashlib
from pathlib import Path

_CHUNK_BYTES = 2**20


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
