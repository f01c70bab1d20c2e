"""What the package logs, as a list of lines that a test can compare."""

from __future__ import annotations

import logging
import weakref


class LogLines(list[str]):
    """Lines logged as INFO or above since it was made, each once, for as long as somebody holds it."""

    def __init__(self) -> None:
        super().__init__()
        logger, handler = logging.getLogger("unibrain_rt"), _Handler(weakref.ref(self))
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        weakref.finalize(self, logger.removeHandler, handler)


class _Handler(logging.Handler):
    def __init__(self, lines: weakref.ref[LogLines]) -> None:
        super().__init__(logging.INFO)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        lines, line = self._lines(), record.getMessage()
        if lines is not None and line not in lines:
            lines.append(line)
