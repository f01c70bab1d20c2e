"""onnxruntime with a GPU that is the CPU: the real library underneath, and CUDA graphs as ONNX Runtime keeps them.

A graph belongs to the thread and the session that captured it, and a replay uses what was bound at the capture,
whatever is bound now: a binding under the wrong id, or a run in the wrong thread, gives wrong numbers here too. An id
that is new runs several times, as in ONNX Runtime.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as real

PROVIDER = "CUDAExecutionProvider"
OUT_OF_MEMORY = (
    "/onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:360 void* onnxruntime::BFCArena::AllocateRawInternal("
    "size_t, bool, onnxruntime::Stream*) Failed to allocate memory for requested buffer of size 400000000\n"
)
"""What onnxruntime-gpu 1.31.1 raises as a RuntimeError."""


class OrtValue:
    """Memory of the device, which numpy's is not."""

    def __init__(self, library: Library, array: np.ndarray[Any, Any]) -> None:
        self._library, self._array = library, np.array(array)
        self.value = real.OrtValue.ortvalue_from_numpy(self._array)

    def shape(self) -> list[int]:
        return list(self.value.shape())

    def data_type(self) -> str:
        return str(self.value.data_type())

    def data_ptr(self) -> int:
        return int(self.value.data_ptr())

    def numpy(self) -> np.ndarray[Any, Any]:
        self._library.check("from device")
        self._library.copies.append("from device")
        return self._array.copy()

    def update_inplace(self, array: np.ndarray[Any, Any]) -> None:
        assert (array.shape, array.dtype) == (self._array.shape, self._array.dtype)
        assert array.flags.c_contiguous
        self._library.check("to device")
        self._library.copies.append("to device")
        self._array[...] = array


class RunOptions:
    log_severity_level = 2

    def __init__(self) -> None:
        self.entries: dict[str, str] = {}

    def add_run_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value


class Binding:
    def __init__(self, binding: Any) -> None:
        self.binding = binding
        self.values: dict[str, object] = {}

    def bind_ortvalue_input(self, name: str, value: OrtValue) -> None:
        self.values[name] = value
        self.binding.bind_ortvalue_input(name, value.value)

    def bind_ortvalue_output(self, name: str, value: OrtValue) -> None:
        self.values[name] = value
        self.binding.bind_ortvalue_output(name, value.value)

    def bind_input(self, name: str, device: str, number: int, dtype: Any, shape: Any, address: int) -> None:
        assert (device, number) == ("cuda", 0)
        self.values[name] = address
        self.binding.bind_input(name, "cpu", 0, dtype, shape, address)

    def bind_output(self, name: str, device: str, number: int, dtype: Any, shape: Any, address: int) -> None:
        assert (device, number) == ("cuda", 0)
        self.values[name] = address
        self.binding.bind_output(name, "cpu", 0, dtype, shape, address)


class InferenceSession:
    def __init__(
        self, library: Library, path: str, sess_options: Any, providers: list[Any], enable_fallback: int
    ) -> None:
        ((provider, options),) = providers
        assert provider == PROVIDER
        assert all(isinstance(value, str) for value in options.values())
        self._captures = options["enable_cuda_graph"] == "1"
        if self._captures and library.refuses == "loading":
            raise RuntimeError("This session cannot use the graph capture feature\nas requested by the user")
        library.check("loading")
        library.options.append({"name": Path(path).stem, **options})
        self._library = library
        self._session = real.InferenceSession(path, sess_options, providers=["CPUExecutionProvider"])
        self._graphs: dict[tuple[int, str], Binding] = {}
        self.name = Path(path).stem

    def get_inputs(self) -> Any:
        return self._session.get_inputs()

    def get_outputs(self) -> Any:
        return self._session.get_outputs()

    def io_binding(self) -> Binding:
        return Binding(self._session.io_binding())

    def end_profiling(self) -> str:
        """The profile, as if the GPU had run all that the CPU did."""
        path = Path(self._session.end_profiling())
        events = json.loads(path.read_text())
        for event in events:
            if event.get("args", {}).get("provider"):
                event["args"]["provider"] = PROVIDER
        path.write_text(json.dumps(events))
        return str(path)

    def run_with_iobinding(self, binding: Binding, options: RunOptions) -> None:
        self._library.check("running")
        number = options.entries["gpu_graph_id"]
        place = (threading.get_ident(), number)
        waits = options.entries.get("disable_synchronize_execution_providers") != "1"
        kind = "run"
        if self._captures and number != "-1":
            if place in self._graphs:
                kind, binding = "replay", self._graphs[place]
            elif self._library.refuses == "capturing":
                raise RuntimeError("CUDA failure 900: operation not permitted when stream is capturing")
            else:
                kind = "capture"
                self._graphs[place] = binding
        self._library.runs.append((self.name, kind, number, waits))
        for _ in range(3 if kind == "capture" else 1):
            self._session.run_with_iobinding(binding.binding)


class Library:
    """What the module ``onnxruntime`` is to the engine; ``runs``, ``copies`` and ``options`` are what was done with it.

    ``full`` is at what the device is out of memory: ``allocating``, ``loading``, ``running``, or copying ``to device``
    or ``from device``.
    """

    def __init__(self, refuses: str | None = None, version: str = "1.31.1") -> None:
        """``refuses`` to capture: when ``loading``, or when ``capturing``."""
        self.refuses = refuses
        self.full: str | None = None
        self.options: list[dict[str, str]] = []
        self.severity: int | None = None
        self.runs: list[tuple[str, str, str, bool]] = []
        self.copies: list[str] = []
        self.__version__ = version
        self.SessionOptions = real.SessionOptions
        self.RunOptions = RunOptions
        library = self

        class Values:
            @staticmethod
            def ortvalue_from_numpy(array: np.ndarray[Any, Any], device: str, number: int) -> OrtValue:
                assert (device, number) == ("cuda", 0)
                library.check("allocating")
                library.copies.append("to device")
                return OrtValue(library, array)

        self.OrtValue = Values

    def InferenceSession(self, path: str, **options: Any) -> InferenceSession:  # noqa: N802 - its name there
        return InferenceSession(self, path, **options)

    def set_default_logger_severity(self, severity: int) -> None:
        self.severity = severity

    def check(self, doing: str) -> None:
        """Raise what ONNX Runtime does where it is out of memory."""
        if self.full == doing:
            raise RuntimeError(OUT_OF_MEMORY)
