"""A machine with an NVIDIA GPU that computes nothing: onnxruntime-gpu as it is, on stand-ins of CUDA's libraries.

The stand-ins are the C++ sources in ``tests/gpu_fake/stand_ins``. ONNX Runtime loads them, shares out a graph's nodes,
plans memory, captures and replays as it does on a GPU; numbers that come out are zeros. So this shows what is launched,
copied, allocated and waited for, and never whether it is right or how fast it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from built_wheel import install, make_environment

SOURCES = Path(__file__).resolve().parent.parent / "gpu_fake" / "stand_ins"
ONNXRUNTIME = "onnxruntime-gpu==1.31.1"
HEADERS = ("nvidia-cuda-runtime==13.0.96", "nvidia-cuda-crt==13.0.88")
"""Of CUDA 13, for the layout of what passes between ONNX Runtime and the runtime."""
COMPILER = "ziglang==0.17.1"
"""A C++ compiler from the package index, for machines that have none."""
CUDART = "libcudart.so.13"
LIBRARIES = {
    CUDART: ("cudart.cpp", True),
    "libcublas.so.13": ("cublas.cpp", True),
    "libcublasLt.so.13": ("cublaslt.cpp", True),
    "libcudnn.so.9": ("cudnn.cpp", False),
    "libcurand.so.10": ("curand.cpp", False),
    "libcuda.so.1": ("driver.cpp", False),
}
"""Of each its source, and whether its symbols bear its name as their version."""


@dataclass(frozen=True)
class Journal:
    """What happened on the device in one process, in its order."""

    events: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Journal:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return cls([json.loads(line) for line in lines])

    @classmethod
    def joined(cls, parts: Iterable[Journal]) -> Journal:
        """What stands in several, one after another."""
        return cls([event for part in parts for event in part.events])

    def of(self, event: str) -> list[dict[str, Any]]:
        return [one for one in self.events if one["event"] == event]

    def parts(self) -> dict[str, Journal]:
        """What came after each mark that a script made, by the mark's name, up to the next."""
        parts: dict[str, Journal] = {"": Journal()}
        for event in self.events:
            if event["event"] == "mark":
                parts[event["name"]] = Journal()
            else:
                parts[list(parts)[-1]].events.append(event)
        return parts

    @property
    def graphs(self) -> dict[int, dict[str, Any]]:
        """What was captured, by number."""
        return {one["graph"]: one for one in self.of("graph")}

    @property
    def refused(self) -> list[str]:
        """What CUDA would not have done while a stream captured."""
        return [one["what"] for one in self.of("refused")]

    @property
    def peak_bytes(self) -> int:
        """Memory of the device at its fullest."""
        return max((one["used_bytes"] for one in self.of("allocate")), default=0)

    @property
    def waits(self) -> list[str]:
        """What the host waited for the device with, other than copies."""
        return [one["what"] for one in self.of("synchronize")]

    @property
    def captured(self) -> Counter[str]:
        """Nodes of all captured graphs together, by what they do."""
        total: Counter[str] = Counter()
        for graph in self.of("graph"):
            total.update(graph["operations"])
        return total


@dataclass(frozen=True)
class Ran:
    """A process that came to its end."""

    code: int
    out: str
    err: str
    journal: Journal


class GpuMachine:
    """An environment of its own with onnxruntime-gpu and this package, and the stand-ins beside it."""

    def __init__(self, folder: Path, interpreter: str = sys.executable) -> None:
        """Made once a folder: what is whole there already is used. Skips the test where no package index answers."""
        self._folder = folder
        self.python = folder / "venv" / "bin" / "python"
        if not (folder / "installed").exists():
            folder.mkdir(parents=True, exist_ok=True)
            make_environment(interpreter, folder / "venv")
            install(self.python, "--no-deps", ONNXRUNTIME)
            install(self.python, "numpy", "click", "pillow", "flatbuffers", "protobuf", "packaging")
            (folder / "installed").touch()
        sources = b"".join(path.read_bytes() for path in sorted(SOURCES.iterdir()))
        self.libraries = folder / f"libraries-{hashlib.sha256(sources).hexdigest()[:12]}"
        if not (self.libraries / "built").exists():
            build(self.libraries, self._headers(), self._compiler())
            (self.libraries / "built").touch()

    def run(
        self,
        *arguments: str,
        package: Path,
        without: Iterable[str] = (),
        memory_bytes: int | None = None,
        copied_bytes: int | None = None,
        environment: dict[str, str] | None = None,
    ) -> Ran:
        """Run Python with ``arguments`` on this machine.

        Args:
            package: a folder that holds the package ``unibrain_rt``.
            without: libraries that are not installed.
            memory_bytes: the device's, if not 80 GiB.
            copied_bytes: larger copies are counted, and not made.
        """
        journal = self._folder / f"journal-{os.getpid()}"
        journal.unlink(missing_ok=True)
        libraries = self.libraries
        missing = sorted(without)
        if missing:
            libraries = self.libraries / "-".join(["without", *missing])
            libraries.mkdir(exist_ok=True)
            for name in set(LIBRARIES) - set(missing):
                if not (libraries / name).exists():
                    (libraries / name).symlink_to(self.libraries / name)
        variables = {
            **{name: value for name, value in os.environ.items() if not name.startswith("UNIBRAIN_RT_")},
            "PYTHONPATH": str(package),
            "LD_LIBRARY_PATH": str(libraries),
            "GPU_JOURNAL": str(journal),
            "UNIBRAIN_RT_CACHE": str(self._folder / "cache"),
            **({} if memory_bytes is None else {"GPU_MEMORY_BYTES": str(memory_bytes)}),
            **({} if copied_bytes is None else {"GPU_COPIED_BYTES": str(copied_bytes)}),
            **(environment or {}),
        }
        done = subprocess.run(
            [str(self.python), *arguments], env=variables, capture_output=True, text=True, timeout=900
        )
        return Ran(done.returncode, done.stdout, done.stderr, Journal.read(journal))

    def _headers(self) -> Path:
        folder = self._folder / "headers"
        install(self.python, "--no-deps", "--target", str(folder), *HEADERS)
        return next(folder.rglob("driver_types.h")).parent

    def _compiler(self) -> Sequence[str]:
        for name in ("g++", "c++", "clang++"):
            if (found := shutil.which(name)) is not None:
                return [found]
        install(self.python, "--no-deps", COMPILER)
        return [str(self.python), "-m", "ziglang", "c++"]


def build(folder: Path, headers: Path, compiler: Sequence[str]) -> None:
    """Compile every stand-in into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (source, versioned) in LIBRARIES.items():
        options = ["-std=c++17", "-O1", "-fPIC", "-shared", f"-I{headers}", f"-Wl,-soname,{name}"]
        if versioned:
            script = folder / f"{name}.map"
            script.write_text(f"{name} {{ global: *; }};\n", encoding="utf-8")
            options.append(f"-Wl,--version-script={script}")
        # The others tell libcudart what they do.
        libraries = [] if name == CUDART else [str(folder / CUDART)]
        command = [*compiler, *options, "-o", str(folder / name), str(SOURCES / source), *libraries]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def lay_out(repository: Path, folder: Path, packages: dict[str, str]) -> Path:
    """The package as an installation has it, without building one: ``folder``, which Python is to search."""
    for source, target in packages.items():
        shutil.copytree(
            repository / source,
            folder / target,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("__pycache__", "results"),
        )
    return folder
