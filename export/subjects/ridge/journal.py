"""What a long fit has done so far, kept in a folder: after a break it goes on from there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.errors import input_error
from unibrain_rt.files import whole_file, write_files

Report = Callable[[str], None]

_KEY = "fit.json"
_INTERVAL_S = 30.0


class Journal:
    """Named sets of arrays; without a folder nothing is kept, and every fit begins at its beginning.

    ``key`` tells what is fitted. What was entered comes back bit for bit, so that a fit that was interrupted ends with
    the bytes of one that was not. Raises `InputError` if the folder is of another fit or cannot be used.
    """

    def __init__(self, folder: Path | None = None, key: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self._entered = time.monotonic()
        if folder is None:
            return
        text = json.dumps(key, sort_keys=True, indent=1)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / _KEY).exists():
                if (folder / _KEY).read_text(encoding="utf-8") != text:
                    raise input_error(folder, "holds another fit: name another --work, or remove it")
            elif any(folder.iterdir()):
                raise input_error(folder, "holds something else: name another --work")
            else:
                write_files({folder / _KEY: text}, option="--work")
        except (OSError, ValueError) as error:
            raise input_error(folder, f"cannot be used ({error}): name another --work") from error

    def find(self, name: str) -> dict[str, NDArray[Any]] | None:
        """What was entered under a name last; None where nothing was."""
        if self.folder is None or not (path := self.folder / f"{name}.npz").exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as stored:
                return dict(stored)
        except (OSError, ValueError, EOFError) as error:
            raise input_error(path, f"damaged ({error}): remove {self.folder} and fit anew") from error

    def enter(self, name: str, **arrays: NDArray[Any] | float | int) -> None:
        """Keep these arrays under a name, in the place of those before."""
        if self.folder is None:
            return
        with whole_file(self.folder / f"{name}.npz", "--work") as part, part.open("wb") as file:
            np.savez(file, allow_pickle=False, **{key: np.asarray(value) for key, value in arrays.items()})
        self._entered = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether half a minute has passed since the last entry: what grows slowly is not kept at every block."""
        return self.folder is not None and time.monotonic() - self._entered >= _INTERVAL_S
