"""A place in the journal."""

from __future__ import annotations

import json
import os


def mark(name: str) -> None:
    """Let what follows stand under ``name``."""
    with open(os.environ["GPU_JOURNAL"], "a", encoding="utf-8") as journal:
        journal.write(json.dumps({"event": "mark", "name": name}) + "\n")
