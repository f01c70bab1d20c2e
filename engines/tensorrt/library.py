"""The TensorRT libraries: which is here, and what differs between them and their versions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from unibrain_rt.engines.cuda.runtime import Device
from unibrain_rt.engines.engine_errors import EngineError, first_line

OLDEST = (10, 3)
"""JetPack 6 has it."""
_JETSON = Path("/etc/nv_tegra_release")
_BUILD_WORKSPACE_BYTES = 1 << 30
_WORKSPACE_SHARE = 4


@dataclass(frozen=True)
class Kind:
    """``tensorrt`` or ``tensorrt-rtx``: the modules that may hold it, and the project's extra that brings it.

    ``ahead``: it compiles for GPUs that are not here, and leaves their kernels to the machine that runs a plan.
    ``quick``: it compiles within seconds.
    """

    engine: str
    title: str
    modules: tuple[str, ...]
    ahead: bool
    quick: bool


NATIVE = Kind("tensorrt", "TensorRT", ("tensorrt",), ahead=False, quick=False)
RTX = Kind("tensorrt-rtx", "TensorRT-RTX", ("tensorrt_rtx", "tensorrt_rtx_bindings"), ahead=True, quick=True)


class Library:
    """One of the libraries. What a version of it has or lacks is asked of the module, never of its number."""

    def __init__(self, kind: Kind, module: Any = None) -> None:
        """``module``: the library itself, by default the one installed. Raises EngineError if it does not load."""
        self.kind = kind
        self.module = module if module is not None else _load(kind)
        self.version = str(getattr(self.module, "__version__", "?"))

    @property
    def too_old(self) -> bool:
        """Whether it is older than what this was written for."""
        numbers = [int(number) for number in re.findall(r"\d+", self.version)[:2]]
        return self.kind is NATIVE and tuple(numbers) < OLDEST

    def targets(self) -> tuple[str, ...]:
        """GPUs that it compiles for without having them, such as ``sm89``; none where it cannot."""
        names = getattr(self.module, "ComputeCapability", None)
        members = getattr(names, "__members__", {}) if self.kind.ahead else {}
        return tuple(sorted((name.lower() for name in members if name.startswith("SM")), key=_number))

    def runs_on(self, device: Device) -> bool:
        """Whether it has kernels for a device, as far as it tells."""
        return not self.kind.ahead or device.target in self.targets()

    @property
    def keeps_kernels(self) -> bool:
        """Whether what it compiles at the first run can be kept for later processes; its first versions had no way."""
        return self.kind.ahead and hasattr(self.module, "IRuntimeCache")

    def logger(self) -> Any:
        """A logger that keeps the last error as ``problem`` and prints nothing."""
        return _logger(self.module)

    @staticmethod
    def workspace_bytes(device: Device | None) -> int:
        """How much scratch memory a plan may take: a share of what is free, since decodes have buffers, too."""
        return _BUILD_WORKSPACE_BYTES if device is None else device.free_bytes // _WORKSPACE_SHARE


def is_jetson() -> bool:
    """Whether this is one of NVIDIA's embedded boards, whose libraries come with the system."""
    return _JETSON.exists()


def install_advice(kind: Kind) -> str:
    """How to get the library here."""
    if is_jetson():
        if kind.ahead:
            return "it has no kernels for a Jetson: use --engine tensorrt"
        return "it comes with JetPack: make the virtual environment with --system-site-packages"
    return f'run: pip install "unibrain-rt[{kind.engine}]"'


def _load(kind: Kind) -> Any:
    for name in kind.modules:
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise EngineError(f"{kind.title} does not load ({first_line(error)})") from error
        except (ImportError, OSError, RuntimeError) as error:  # its shared libraries are missing
            raise EngineError(f"{kind.title} does not load ({first_line(error)})") from error
    raise EngineError(f"{kind.title} is not installed")


def _logger(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        """TensorRT's own words, for the one line that a failure becomes."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.problem = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.problem = first_line(message)

    return Log()


def _number(target: str) -> int:
    return int(target.removeprefix("sm"))
