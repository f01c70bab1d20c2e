"""Runs the command line in this process and tells what it did when; for ``startup``, which starts it.

Arguments: when the process was started on the clock of ``time.perf_counter``, where to write the JSON, and what the
command line is given.
"""

import time

_BEGUN = time.perf_counter()

import json  # noqa: E402 - the clock comes first
import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from contextlib import suppress  # noqa: E402
from functools import wraps  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

_spent: dict[str, float] = {}
_within: list[float] = []


def _timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, its time added to ``part``; what parts within it take is theirs alone."""

    @wraps(function)
    def timed(*arguments: Any, **options: Any) -> Any:
        begun = time.perf_counter()
        _within.append(0.0)
        try:
            return function(*arguments, **options)
        finally:
            whole = time.perf_counter() - begun
            _spent[part] = _spent.get(part, 0.0) + whole - _within.pop()
            if _within:
                _within[-1] += whole

    return timed


def main() -> None:
    started, out, *words = sys.argv[1:]
    from unibrain_rt.cli import decode, main

    imported = time.perf_counter()
    from unibrain_rt import bundle, decoder

    opened = _timed("bundle", bundle.Bundle.open.__func__)  # type: ignore[attr-defined]
    setattr(bundle.Bundle, "open", classmethod(opened))  # noqa: B010 - methods are not for assigning
    parts: list[tuple[str, Any, str]] = [
        ("engine", decoder, "create_engine"),
        ("graphs", decoder.Decoder, "__init__"),
        ("decode", decoder.Decoder, "decode"),
        ("write", decode, "write_pair"),
    ]
    for part, owner, name in parts:
        setattr(owner, name, _timed(part, getattr(owner, name)))
    with suppress(SystemExit):
        main(words)
    ended = time.perf_counter()
    _spent.update(interpreter=_BEGUN - float(started), imports=imported - _BEGUN)
    _spent["other"] = (
        ended - imported - sum(_spent[part] for part in _spent if part not in ("interpreter", "imports"))
    )
    Path(out).write_text(json.dumps({"seconds": _spent, "files": _files(), "ended": time.perf_counter()}))


def _files() -> list[str]:
    """Files that this process loaded: modules, and libraries that are mapped."""
    found = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    found |= {getattr(module, "__cached__", None) for module in list(sys.modules.values())}
    with suppress(OSError):
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        found |= {line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6}
    return sorted(name for name in found if name and Path(name).is_file())


if __name__ == "__main__":
    main()
