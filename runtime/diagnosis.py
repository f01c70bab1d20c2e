"""What ``doctor`` finds: one check after another, each with its state, and its cure where it has one."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unibrain_rt import __version__, platform_facts
from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import ENGINES, Engine, EngineError, GraphSpec, Probe, create_engine, probe
from unibrain_rt.engines.catalogue import ENGINE_VARIABLE
from unibrain_rt.engines.cuda.driver import Gpus, cuda_driver, gpus
from unibrain_rt.engines.onnxruntime_cuda.installation import onnxruntimes
from unibrain_rt.engines.plans import PlanCache
from unibrain_rt.errors import BundleError
from unibrain_rt.graph_size import DecodeMemory, decode_memory
from unibrain_rt.platform_facts import ROOT, Jetson, Memory, Processor
from unibrain_rt.ridge_graph import ridge_graphs
from unibrain_rt.sessions import decode_graphs

OK, WARNING, PROBLEM, NOTHING = "ok", "warning", "problem", "–"
"""States of a check; the last is of what is not there and need not be."""
GPU_ENGINES = frozenset({"tensorrt", "tensorrt-rtx", "cuda"})
_PRESET = "paper"
_LEAST_FREE_BYTES = 10**10  # on the disk: some more than the plans of one bundle of the published size
_JETSON_ADVICE = {
    "tensorrt": (
        "TensorRT comes with JetPack, not from pip: sudo apt install python3-libnvinfer, and make the environment "
        "with python3 -m venv --system-site-packages"
    ),
    "tensorrt-rtx": "not for a Jetson: use tensorrt",
    "cuda": "needs a wheel of onnxruntime-gpu that was built for this JetPack, or use tensorrt",
}


@dataclass(frozen=True)
class Check:
    """One line of the report. ``cure`` is what to do about it."""

    name: str
    state: str
    text: str
    cure: str | None = None


_UNKNOWN_COSTS = Check(
    "memory",
    WARNING,
    "the bundle is from before graphs told what they cost, and decodes all the same; neither the memory it needs nor "
    "missing kernels can be told",
    "export the bundle again",
)


@dataclass(frozen=True)
class Machine:
    """Where we are; see `platform_facts`. ``onnxruntimes`` are versions of distributions by name."""

    system: str
    architecture: str
    python: str
    cores: int
    processor: Processor
    jetson: Jetson | None
    driver: str | None
    gpus: Gpus
    memory: Memory | None
    onnxruntimes: Mapping[str, str]

    @classmethod
    def here(cls, root: Path = ROOT) -> Machine:
        return cls(
            platform.system(),
            platform.machine(),
            platform.python_version(),
            os.cpu_count() or 1,
            platform_facts.processor(root),
            platform_facts.jetson(root),
            platform_facts.nvidia_driver(root),
            gpus(cuda_driver()),
            platform_facts.memory(root),
            onnxruntimes(),
        )


@dataclass(frozen=True)
class Choice:
    """What ``auto`` takes: an engine, or the ``problem`` why none, and what it passed over before.

    ``slow`` has a line for every graph that the engine does not run as fast as it was made to.
    """

    engine: str | None
    device: str | None = None
    problem: str | None = None
    passed_over: tuple[Probe, ...] = ()
    variable: str | None = None
    slow: tuple[str, ...] = ()


@dataclass(frozen=True)
class Diagnosis:
    """All of it. ``memory`` and ``cache`` are None where they could not be looked at."""

    machine: Machine
    engines: tuple[Probe, ...]
    choice: Choice
    checks: tuple[Check, ...]
    memory: DecodeMemory | None
    cache: Mapping[str, Any] | None = None
    bundle_ok: bool = True

    @property
    def ok(self) -> bool:
        """Whether a decode can run here: some engine works, and the bundle is whole."""
        return self.bundle_ok and any(engine.usable for engine in self.engines)

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        memory = self.memory
        return {
            "ok": self.ok,
            "version": __version__,
            "platform": asdict(self.machine),
            "engines": [{**asdict(engine), "usable": engine.usable} for engine in self.engines],
            "auto": asdict(self.choice),
            "bundle_memory": None
            if memory is None
            else {
                **asdict(memory),
                "weights_bytes": memory.weights_bytes,
                "held_bytes": memory.held_bytes,
                "needed_bytes": memory.needed_bytes(),
                "needed_low_memory_bytes": memory.needed_bytes(low_memory=True),
            },
            "cache": self.cache,
            "checks": [asdict(check) for check in self.checks],
        }


def diagnose(bundle: Path | None = None, cache: Path | None = None) -> Diagnosis:
    """Look at everything. Raises InputError if there is no such bundle."""
    machine = Machine.here()
    engines = tuple(_probe(name) for name in ENGINES)
    opened, bundle_check = _open(bundle)
    choice = _choose(cache, opened)
    memory: DecodeMemory | None = None
    memory_checks: tuple[Check, ...] = ()
    if opened is not None:
        try:
            graphs = decode_graphs(opened, _presets(opened))
            if all(graph.costs is not None and graph.costs.complete for graph, _ in graphs):
                memory = decode_memory(opened, graphs)
                memory_checks = tuple(check_memory(memory, machine))
            else:
                memory_checks = (_UNKNOWN_COSTS,)
        except BundleError as error:
            bundle_check = Check("bundle", PROBLEM, str(error))
    cache_check, plans = check_cache(cache)
    checks = [
        *check_machine(machine),
        *(check_engine(engine, machine) for engine in engines),
        *check_onnxruntimes(machine.onnxruntimes),
        check_choice(choice, machine.gpus),
        *check_speed(choice),
        bundle_check,
        *memory_checks,
        cache_check,
    ]
    return Diagnosis(
        machine, engines, choice, tuple(checks), memory, plans, bundle_ok=bundle_check.state != PROBLEM
    )


def check_machine(machine: Machine) -> Iterator[Check]:
    """System, processor, and what NVIDIA's driver offers."""
    where = f"{machine.system} {machine.architecture}, Python {machine.python}, unibrain-rt {__version__}"
    yield Check("platform", OK, where)
    flags = " ".join(machine.processor.flags) or "no vector instructions of note"
    text = f"{machine.processor.model or machine.architecture}, {machine.cores} cores, {flags}"
    slow = machine.architecture == "x86_64" and "avx2" not in machine.processor.flags
    yield Check("processor", WARNING if slow else OK, f"{text}; slow without avx2" if slow else text)
    if machine.jetson is not None:
        jetson = machine.jetson
        release = f"Jetson Linux {jetson.l4t}" if jetson.l4t else "its release is not known"
        jetpack = f" (JetPack {jetson.jetpack})" if jetson.jetpack else ""
        yield Check("jetson", OK, f"{jetson.model}, {release}{jetpack}")
    gpus = machine.gpus
    if gpus.problem is not None:
        yield Check(
            "driver",
            WARNING,
            f"NVIDIA {machine.driver or 'driver'} does not answer: {gpus.problem}",
            "restart after an update of the driver; in a container, start it with --gpus all (or --runtime nvidia)",
        )
    elif machine.driver is not None and not gpus.devices:
        cure = "install the driver's CUDA library (libcuda.so.1); in a container, start it with --gpus all"
        yield Check("driver", WARNING, f"NVIDIA {machine.driver}, but it offers no device", cure)
    elif not gpus.devices:
        yield Check("driver", NOTHING, "no NVIDIA driver: engines for the CPU only")
    else:
        yield Check("driver", OK, f"NVIDIA {machine.driver or 'of unknown version'}")
    for number, gpu in enumerate(gpus.devices):
        free = "" if gpu.free_bytes is None else f", {gigabytes(gpu.free_bytes)} free"
        shared = ", the host's" if gpu.shared else ""
        yield Check(
            f"gpu {number}", OK, f"{gpu.name}, {gpu.capability}, {gigabytes(gpu.total_bytes)}{shared}{free}"
        )


def check_engine(probed: Probe, machine: Machine) -> Check:
    """Whether an engine works, and what to install for it on this platform."""
    if probed.usable:
        return Check(probed.engine, OK, f"{probed.version} on {probed.device}")
    if probed.version is not None:
        idle = (
            probed.engine in GPU_ENGINES and not machine.gpus.devices
        )  # as where it only compiles for others
        state = NOTHING if idle else WARNING
        return Check(probed.engine, state, f"{probed.version}: {probed.problem}", probed.advice)
    text = probed.problem or ""
    if machine.jetson is not None and probed.engine in _JETSON_ADVICE:
        return Check(probed.engine, NOTHING, text, _JETSON_ADVICE[probed.engine])
    if probed.engine in GPU_ENGINES and not machine.gpus.devices:
        return Check(probed.engine, NOTHING, f"{text}, and there is no NVIDIA GPU")
    return Check(probed.engine, NOTHING, text, probed.advice)


def check_onnxruntimes(versions: Mapping[str, str]) -> Iterator[Check]:
    """Both distributions have one module: which files of it are whose depends on what was installed last."""
    if len(versions) > 1:
        both = " and ".join(f"{name} {version}" for name, version in versions.items())
        yield Check(
            "onnxruntime twice",
            PROBLEM,
            f"{both} overwrite each other's files",
            'run: pip uninstall -y onnxruntime onnxruntime-gpu, then pip install "unibrain-rt[cuda]" (or [cpu])',
        )


def check_choice(choice: Choice, gpus: Gpus) -> Check:
    """What ``auto`` takes, and what it would rather have taken."""
    if choice.engine is None:
        return Check(
            "auto", PROBLEM, choice.problem or "no engine works here", 'run: pip install "unibrain-rt[cpu]"'
        )
    text = choice.engine if choice.device is None else f"{choice.engine} on {choice.device}"
    if choice.variable is not None:
        return Check("auto", OK, f"{text}, because {ENGINE_VARIABLE} says so")
    passed_over = [
        f"{passed.engine} ({passed.problem})" for passed in choice.passed_over if passed.version is not None
    ]
    if passed_over:
        text = f"{text}; passed over {', '.join(passed_over)}"
    idle = bool(gpus.devices) and choice.engine not in GPU_ENGINES
    if idle:
        return Check(
            "auto", WARNING, f"{text}; the GPU is not used", "make one of the GPU's engines work: see above"
        )
    return Check("auto", OK, text)


def check_speed(choice: Choice) -> Iterator[Check]:
    """Graphs that the engine of ``auto`` runs slower than it should, such as for want of a kernel."""
    for line in choice.slow:
        text, _, cure = line.rpartition("; ")
        yield Check("speed", WARNING, text or cure, cure if text else None)


def slow_graphs(engine: Engine, graphs: Iterable[tuple[GraphSpec, int]]) -> Iterator[str]:
    """A line for each graph that the engine does not run as fast as it was made to, or cannot open."""
    for graph, free in graphs:
        try:
            engine.check(graph, free)
        except EngineError as error:
            yield str(error)


def check_memory(needed: DecodeMemory, machine: Machine) -> Iterator[Check]:
    """Free memory against what a decode needs, on the host and on each device that has its own."""
    places: list[tuple[str, int, bool]] = []
    if machine.memory is not None:
        places.append(("memory", machine.memory.available_bytes, True))
    for number, gpu in enumerate(machine.gpus.devices):
        if gpu.free_bytes is not None and not gpu.shared:
            places.append((f"memory of gpu {number}", gpu.free_bytes, False))
    for name, free_bytes, host in places:
        whole = needed.needed_bytes()
        # With little memory, heads are applied on the host.
        low = needed.needed_bytes(low_memory=True, heads=host)
        text = (
            f"{gigabytes(free_bytes)} free; a decode needs {gigabytes(whole)}, with --low-memory {gigabytes(low)} "
            "(weights, activations, buffers and ridge heads; what an engine takes for itself comes on top)"
        )
        if whole <= free_bytes:
            yield Check(name, OK, text)
        elif low <= free_bytes:
            yield Check(name, WARNING, text, "decode with --low-memory, or close other programs")
        else:
            yield Check(
                name, WARNING, text, "close other programs, or export the bundle with --precision fp16"
            )


def check_cache(folder: Path | None) -> tuple[Check, dict[str, Any] | None]:
    """The folder of compiled plans: how full it is, and whether it can be written."""
    try:
        cache = PlanCache(folder)
        records = cache.plans()
    except EngineError as error:
        return Check("plans", WARNING, str(error)), None
    size_bytes = sum(record.size_bytes for record in records)
    plans = sum(record.key.is_plan for record in records)
    nearest = next(place for place in (cache.folder, *cache.folder.absolute().parents) if place.exists())
    writable = nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
    free_bytes = shutil.disk_usage(nearest).free
    facts = {
        "folder": str(cache.folder),
        "plans": plans,
        "size_bytes": size_bytes,
        "limit_bytes": cache.limit_bytes,
        "writable": writable,
        "free_bytes": free_bytes,
    }
    text = f"{plans}, {gigabytes(size_bytes)} of at most {gigabytes(cache.limit_bytes)}, in {cache.folder}"
    if not writable:
        return Check(
            "plans", WARNING, f"{text}: cannot be written", "name another folder with --cache"
        ), facts
    if free_bytes < _LEAST_FREE_BYTES:
        cure = "free some space, or name a folder elsewhere with --cache"
        return Check("plans", WARNING, f"{text}: {gigabytes(free_bytes)} are free there", cure), facts
    return Check("plans", OK, text), facts


def gigabytes(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:.3g} GB" if size_bytes >= 1e8 else f"{size_bytes / 1e6:.3g} MB"


def _probe(name: str) -> Probe:
    try:
        return probe(name)
    except Exception as error:  # whatever a broken installation raises, the other engines are to be looked at
        return Probe(name, version="?", problem=f"cannot be looked at ({type(error).__name__}: {error})")


def _open(folder: Path | None) -> tuple[Bundle | None, Check]:
    try:
        bundle = Bundle.open(folder, verify=False)
    except BundleError as error:
        return None, Check("bundle", PROBLEM, str(error))
    subjects = (
        f"{len(bundle.subjects)} subjects" if bundle.subjects else "no subject: fit one before decoding"
    )
    return bundle, Check("bundle", OK, f"{bundle.name}, {bundle.precision}, {subjects}, {bundle.folder}")


def _presets(bundle: Bundle) -> Sequence[str]:
    """The preset that a decode takes by default, or else the first one."""
    return [_PRESET] if _PRESET in bundle.presets else list(bundle.presets)[:1]


def _choose(cache: Path | None, bundle: Bundle | None) -> Choice:
    variable = os.environ.get(ENGINE_VARIABLE) or None
    try:
        graphs, heads = [], []
        if bundle is not None:
            graphs = decode_graphs(bundle, _presets(bundle))
            heads = ridge_graphs(bundle, [bundle.subject(name) for name in bundle.subjects])
        engine = create_engine(cache=cache, graphs=graphs, device_graphs=heads)
        device = str(engine.describe().get("device", "")) or None
        slow = tuple(slow_graphs(engine, graphs))
    except (EngineError, BundleError) as error:
        return Choice(None, problem=str(error), variable=variable)
    except Exception as error:  # see _probe
        return Choice(None, problem=f"{type(error).__name__}: {error}", variable=variable)
    passed_over = tuple(passed for passed in engine.passed_over if isinstance(passed, Probe))
    return Choice(engine.name, device, passed_over=passed_over, variable=variable, slow=slow)
