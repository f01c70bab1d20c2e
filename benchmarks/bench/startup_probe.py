"""Runs the command line in this process and tells what it did when; for ``startup``, which starts it.

Arguments: when the process was started on the clock of ``time.perf_counter``, where to write the JSON, and what the
command line is given.
"""

import time

_BEGUN = time.perf_counter()

import json  # noqa: E402 - the clock comes first
import logging  # noqa: E402
import sys  # noqa: E402
from contextlib import suppress  # noqa: E402
from pathlib import Path  # noqa: E402

_ENDS = {
    "unibrain_rt.bundle": "bundle",
    "unibrain_rt.engines.catalogue": "engine",
    "unibrain_rt.decoder": "graphs",
    "unibrain_rt.files": "write",
}
"""By logger, the part that ends when it logs; a decoder logs when its graphs are there, and after every decode."""


class _Parts(logging.Handler):
    """Seconds by part: each lasts from the end of the one before."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.spent: dict[str, float] = {}
        self._last = time.perf_counter()

    def emit(self, record: logging.LogRecord) -> None:
        part = _ENDS.get(record.name)
        if (
            part is not None and record.levelno == logging.DEBUG
        ):  # notes, as of engines passed over, end no part
            self.end("decode" if part in self.spent and part == "graphs" else part)

    def end(self, part: str) -> None:
        now = time.perf_counter()
        self.spent[part] = self.spent.get(part, 0.0) + now - self._last
        self._last = now


def main() -> None:
    started, out, *words = sys.argv[1:]
    from unibrain_rt.cli import decode, main  # noqa: F401 - the command is loaded when it is asked for

    imported = time.perf_counter()
    parts, logger = _Parts(), logging.getLogger("unibrain_rt")
    logger.addHandler(parts)
    with suppress(SystemExit):
        main(words)
    parts.end("other")
    spent = {**parts.spent, "interpreter": _BEGUN - float(started), "imports": imported - _BEGUN}
    Path(out).write_text(json.dumps({"seconds": spent, "files": _files(), "ended": time.perf_counter()}))


def _files() -> list[str]:
    """Files that this process loaded: modules, and libraries that are mapped."""
    names = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    names |= {getattr(module, "__cached__", None) for module in list(sys.modules.values())}
    with suppress(OSError):
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        names |= {line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6}
    return sorted(name for name in names if name and Path(name).is_file())


if __name__ == "__main__":
    main()
