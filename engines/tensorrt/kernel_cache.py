"""What TensorRT-RTX compiled on the GPU, kept for later processes.

A plan of TensorRT-RTX says what to compute; the kernels for it are compiled on the machine that runs it, which takes a
process seconds when it begins. The library gives all that it compiled as one block, its *runtime cache*, and takes that
back in another process.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unibrain_rt.engines.cuda.runtime import Device
from unibrain_rt.engines.engine_errors import EngineError
from unibrain_rt.engines.plans import KERNELS, PlanCache, PlanKey
from unibrain_rt.engines.tensorrt.library import Library

_log = logging.getLogger(__name__)

_SEAL_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class KernelFile:
    """The kernels of a plan as an entry of its own in the cache of plans, which limits, lists and prunes it as any.

    The content is sealed with its SHA-256: the library is not handed what a disk has damaged.
    """

    cache: PlanCache
    key: PlanKey

    @classmethod
    def beside(cls, plan: Path, graph: str, library: Library, device: Device, cache: PlanCache) -> KernelFile:
        """Where the kernels of ``plan`` lie for a device.

        A plan's file is named by the digest of its key, and so is all that a plan depends on in the key of its kernels.
        They fit one model of GPU, where the plan fits all of the same compute capability.
        """
        settings = {
            "holds": KERNELS,
            "version": library.version,
            "target": device.target,
            "device": device.name,
        }
        return cls(cache, PlanKey(library.kind.engine, graph, {plan.name: plan.stem}, settings))

    def read(self) -> bytes | None:
        """What was written; None if nothing was. Raises EngineError where that is not there as it was."""
        path = self.cache.find(self.key)
        if path is None:
            return None
        try:
            content = path.read_bytes()
        except OSError as error:
            raise EngineError(f"their file cannot be read: {error.strerror or error}") from error
        seal, kernels = content[:_SEAL_BYTES], content[_SEAL_BYTES:]
        if hashlib.sha256(kernels).digest() != seal:
            raise EngineError("their file is damaged")
        return kernels

    def write(self, kernels: bytes) -> None:
        """Replace what is there. Raises EngineError where the folder cannot be written."""
        content = hashlib.sha256(kernels).digest() + kernels
        self.cache.build(self.key, lambda path: path.write_bytes(content), anew=True)


class Kernels:
    """The kernels of one execution context, on their way between the library and their file.

    ``config`` is what to create the context with. Nothing that goes wrong here keeps a plan from running: it is told,
    and costs the time of compiling.
    """

    def __init__(self, library: Library, log: Any, engine: Any, file: KernelFile) -> None:
        """``engine``: the plan, deserialized. Raises EngineError: the library makes no runtime cache."""
        self._title, self._log, self._file = library.kind.title, log, file
        self.config = engine.create_runtime_config()
        cache: Any = None if self.config is None else self.config.create_runtime_cache()
        if cache is None:
            raise EngineError(self._complaint())
        self._cache = cache
        self._kept_bytes = self._load()
        if not self.config.set_runtime_cache(self._cache):
            raise EngineError(self._complaint())

    def save(self) -> None:
        """Write what was compiled, if that is more than what is kept."""
        kernels = self._cache.serialize()
        # Kernels are only ever added, in an order that need not be the same again: the size tells.
        if kernels is None or kernels.nbytes == self._kept_bytes:
            return
        self._kept_bytes = kernels.nbytes
        try:
            self._file.write(bytes(kernels))
        except EngineError as error:
            _log.warning(not_kept(self._title, error))

    def _load(self) -> int | None:
        """Give the library what was kept; how large it is in there, None if there is nothing to build on."""
        graph = self._file.key.graph
        try:
            kernels = self._file.read()
            if kernels is None:
                return None
            # It compares version, driver, device and more with what it finds here.
            if not self._cache.deserialize(kernels):
                raise EngineError(self._complaint())
        except EngineError as error:
            _log.warning(
                "%s: %s does not take the kernels of an earlier run (%s); it compiles them again",
                graph,
                self._title,
                str(error),  # whoever keeps the record need not keep what the error came through
            )
            return None
        loaded = self._cache.serialize()
        return None if loaded is None else int(loaded.nbytes)

    def _complaint(self) -> str:
        """The library's, which no later failure is to be blamed on."""
        problem, self._log.problem = self._log.problem, ""
        return problem or "it does not say why"


def not_kept(title: str, error: EngineError) -> str:
    """What to tell where kernels cannot be kept."""
    return f"{title} compiles kernels again in every process, for they cannot be kept ({error})"
