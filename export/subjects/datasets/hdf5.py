"""Arrays in HDF5 files; whatever h5py raises is an `InputError`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unibrain_rt.errors import InputError, input_error, one_line


@contextmanager
def hdf5_array(path: Path, name: str) -> Iterator[Any]:
    """The array of numbers called ``name``, open for reading. Raises `InputError`."""
    try:
        import h5py
    except ImportError as error:
        raise input_error(path, 'to read HDF5, pip install "unibrain-rt[export]"') from error
    if not path.is_file():
        raise input_error(path, "no such file: copy it there")
    try:
        with h5py.File(path, "r") as file:
            array = file[name]
            if not isinstance(array, h5py.Dataset) or array.dtype.hasobject:
                raise TypeError(f"{name} is no array of numbers")
            yield array
    except InputError:
        raise
    except (OSError, RuntimeError, LookupError, ValueError, TypeError) as error:
        problem = f"damaged, or no HDF5 file with {name} ({one_line(str(error), 90)})"
        raise input_error(path, f"{problem}: copy it again") from error
