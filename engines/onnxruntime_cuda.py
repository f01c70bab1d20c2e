"""ONNX Runtime on an NVIDIA GPU: buffers on the device, and every step a captured CUDA graph that is replayed.

ONNX Runtime captures a graph for each ``gpu_graph_id``, of the addresses that were bound at its first run, and keeps
it for the thread that ran it. So every session runs in a thread of its own, and every row of a program's tables lies
at its own address under an id of its own: nothing is copied between steps. While a graph is captured no other program
runs, because no other thread may allocate on the device.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from unibrain_rt.engines.base import Array, Call, Engine, GraphSpec, Program, Progress, Session, TensorSpec
from unibrain_rt.engines.catalogue import Probe, Settings
from unibrain_rt.engines.errors import EngineError
from unibrain_rt.engines.host import first_line, turns
from unibrain_rt.engines.onnx_nodes import count_nodes
from unibrain_rt.engines.onnxruntime import LOG_NOTHING, ONNX_TYPES, load

NAME = "cuda"
GRAPHS_VARIABLE = "UNIBRAIN_RT_CUDA_GRAPHS"
"""Environment variable: ``0`` runs without CUDA graphs."""
PROVIDER = "CUDAExecutionProvider"
ATTENTION = "MultiHeadAttention"
"""The node of self-attention. Where no kernel is taken for it, its body is put in its place, which is slower."""
FUSED = frozenset(
    {
        *("Attention", ATTENTION, "BiasGelu", "FastGelu", "FusedConv", "FusedMatMul", "Gelu", "GroupNorm"),
        *("LayerNormalization", "NhwcConv", "QuickGelu", "SkipGroupNorm", "SkipLayerNormalization"),
    }
)
"""Operators that stand for several, where kernels of that name are run."""
_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")
_NOT_CAPTURED = "-1"
_DEVICE = 0
_NAME_BYTES = 256
T = TypeVar("T")


def probe() -> Probe:
    """Whether onnxruntime-gpu is here, alone, and a GPU."""
    installed = [name for name in _DISTRIBUTIONS if _version(name)]
    version = _version("onnxruntime-gpu")
    both = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
    if version is None:
        advice = both if installed else 'pip install "unibrain-rt[cuda]"'
        return Probe(NAME, problem="onnxruntime-gpu is not installed", advice=f"run: {advice}")
    if len(installed) == 2:
        problem = "onnxruntime and onnxruntime-gpu are both installed, and overwrite each other's files"
        return Probe(NAME, version, problem=problem, advice=f"run: {both}")
    device = device_name()
    if device is None:
        problem = "there is no NVIDIA driver, or it offers no device"
        return Probe(
            NAME, version, problem=problem, advice="install NVIDIA's driver, or let the container use it"
        )
    try:
        import onnxruntime
    except ImportError as error:
        return Probe(NAME, version, device, f"does not load ({first_line(error)})", f"run: {both}")
    if PROVIDER not in onnxruntime.get_available_providers():
        return Probe(NAME, version, device, "this onnxruntime-gpu has no CUDA provider", f"run: {both}")
    return Probe(NAME, version, device)


def device_name() -> str | None:
    """Of the first GPU, asked of the driver itself; None without one."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, name = ctypes.c_int(0), ctypes.create_string_buffer(_NAME_BYTES)
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), _DEVICE):
        return None
    if driver.cuDeviceGetName(name, len(name), device):
        return None
    return name.value.decode(errors="replace")


def create(settings: Settings) -> Engine:
    return CudaEngine(settings)


class CudaEngine(Engine):
    """ONNX Runtime's CUDA provider. Programs run at the same time, each session on a stream of its own."""

    name = NAME
    concurrent = True
    on_device = True

    def __init__(self, settings: Settings, *, graphs: bool | None = None, onnxruntime: Any = None) -> None:
        """
        Args:
            graphs: capture CUDA graphs; by default yes, unless the environment says no.
            onnxruntime: the library, if not the installed one.
        """
        self._onnxruntime = onnxruntime if onnxruntime is not None else _import()
        self._tell = settings.tell if settings.tell is not None else _tell_nobody
        self.graphs = os.environ.get(GRAPHS_VARIABLE) != "0" if graphs is None else graphs
        self._underway = _Underway()
        with suppress(AttributeError):  # finds CUDA's libraries where pip put them; not in every version
            self._onnxruntime.preload_dlls()

    def describe(self) -> dict[str, str | int]:
        version = str(self._onnxruntime.__version__)
        graphs = "captured" if self.graphs else "none"
        return {"engine": self.name, "version": version, "device": device_name() or "cuda", "graphs": graphs}

    def program(self, calls: Sequence[Call]) -> Program:
        return CudaProgram(self._onnxruntime, calls, self._underway)

    def allocate(self, spec: TensorSpec, free: int = 1) -> object:
        return _on_device(self._onnxruntime, np.zeros(spec.sized(free), spec.dtype))

    def fetch(self, buffer: object) -> Array:
        value: Any = buffer
        return np.array(value.numpy())

    def _open_impl(self, graph: GraphSpec, free: int, shared: Mapping[str, object]) -> Session:
        return CudaSession(self._onnxruntime, graph, free, shared, self._tell, graphs=self.graphs)


@dataclass(frozen=True, eq=False)
class _Launch:
    """What a run is bound to, and its options: ``queued`` does not wait for the device."""

    binding: Any
    waiting: Any
    queued: Any


@dataclass(frozen=True, eq=False)
class _Underway:
    """Of all programs of an engine: those that run, and what their calls write until they are done, by its id."""

    programs: set[Future[None]] = field(default_factory=set)
    writers: dict[int, threading.Event] = field(default_factory=dict)


class CudaSession(Session):
    """Buffers are OrtValues on the device. Tensors that are fed back own two, which swap roles every run.

    ``kernels`` counts what the provider ran as one kernel, by operator, as far as the operators are in `FUSED`.
    """

    def __init__(
        self,
        onnxruntime: Any,
        graph: GraphSpec,
        free: int,
        shared: Mapping[str, object],
        tell: Callable[[str], None],
        *,
        graphs: bool,
    ) -> None:
        super().__init__(graph, free)
        self._onnxruntime, self._tell = onnxruntime, tell
        self._graphs = graphs
        self._ids = itertools.count(1)
        self._turn, self._turns = 0, turns(graph)
        self._values: dict[str, Any] = {}
        for spec in (*graph.inputs, *graph.outputs):
            if spec.name in shared:
                self._values[spec.name] = _checked(shared[spec.name], spec, graph, free)
            else:
                self._values[spec.name] = _on_device(onnxruntime, np.zeros(spec.sized(free), spec.dtype))
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=f"cuda-{graph.name}")
        self._native = self._load()
        self._own: dict[int, _Launch] = {}
        self.kernels = self.in_thread(self._count_kernels).result()
        promised = count_nodes(graph.path)[ATTENTION]
        if self.kernels[ATTENTION] != promised:
            told = f"{self.kernels[ATTENTION]} of {promised} attention nodes have a kernel"
            tell(f"{graph.name}: {told} in this onnxruntime-gpu; the others are slower")

    def in_thread(self, work: Callable[[], T]) -> Future[T]:
        """Have the session's own thread do it: what was captured can be replayed there alone."""
        return self._worker.submit(work)

    @property
    def turn(self) -> int:
        return self._turn

    def rewind(self) -> None:
        self._turn = 0

    def run(self) -> None:
        self.in_thread(self._run_once).result()

    def buffer(self, name: str) -> object:
        return self._values[self.graph.tensor(name).name]

    def value(self, name: str, turn: int) -> Any:
        """What a tensor is bound to at a turn."""
        return self._values[self._turns[turn][name]]

    def result(self, name: str, turn: int) -> Any:
        """Where an output lies when the session has come to ``turn``: fed back, it is its input already."""
        return self.value(self.graph.feedback.get(name, name), turn)

    @property
    def values(self) -> list[Any]:
        """All that its tensors are bound to."""
        return list(self._values.values())

    @property
    def written(self) -> list[Any]:
        """What its runs write, at any turn."""
        names = [*(spec.name for spec in self.graph.outputs), *self.graph.feedback.values()]
        return [self._values[name] for name in names]

    def after(self, turn: int, runs: int) -> int:
        """The turn that so many runs from ``turn`` on lead to."""
        return (turn + runs) % len(self._turns)

    def prepare(self, turn: int, instead: Mapping[str, Any]) -> _Launch:
        """Bind a run at a turn, with other values for some inputs, and capture it. In the session's own thread.

        It is run for that, as often as ONNX Runtime needs; what it writes is void.
        """
        launch = self._bind(turn, instead)
        if not self._graphs:
            return launch
        try:
            self._native.run_with_iobinding(launch.binding, launch.waiting)
        except Exception as error:
            # A stream in which a capture broke is of no more use: begin again without.
            self._without_graphs(error)
            launch = self._bind(turn, instead)
        return launch

    def launch(self, launches: Sequence[_Launch], progress: Progress | None = None) -> None:
        """Run all of them and wait for the last. In the session's own thread. Raises EngineError."""
        for place, launch in enumerate(launches):
            last = place == len(launches) - 1
            try:
                self._native.run_with_iobinding(launch.binding, launch.waiting if last else launch.queued)
            except Exception as error:
                raise EngineError(
                    f"graph {self.graph.name}: onnxruntime failed ({first_line(error)})"
                ) from error
            if progress is not None:
                progress(1)
        self._turn = self.after(self._turn, len(launches))

    @property
    def native(self) -> Any:
        """ONNX Runtime's session; another one after a capture was refused."""
        return self._native

    def _run_once(self) -> None:
        if self._turn not in self._own:
            self._own[self._turn] = self.prepare(self._turn, {})
        self.launch([self._own[self._turn]])

    def _load(self) -> Any:
        if self._graphs:
            try:
                return load(self._onnxruntime, self.graph, self._options(), [_provider(graphs=True)])
            except EngineError as error:
                native = load(self._onnxruntime, self.graph, self._options(), [_provider(graphs=False)])
                # The file is sound, so it was the capture that was refused.
                self._graphs = False
                self._tell(f"{self.graph.name}: runs without CUDA graphs ({error})")
                return native
        return load(self._onnxruntime, self.graph, self._options(), [_provider(graphs=False)])

    def _without_graphs(self, error: Exception) -> None:
        self._tell(f"{self.graph.name}: runs without CUDA graphs ({first_line(error)})")
        self._graphs = False
        self._native = self._load()
        self._own = {}

    def _options(self) -> Any:
        options = self._onnxruntime.SessionOptions()
        options.log_severity_level = LOG_NOTHING
        # The host has little to do, and other sessions' threads need the cores to launch.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        folder = Path(tempfile.gettempdir())
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / f"unibrain-rt-{os.getpid()}-{self.graph.name}-{id(self)}")
        return options

    def _count_kernels(self) -> Counter[str]:
        """Run once, profiled and not captured."""
        options = self._run_options(_NOT_CAPTURED, wait=True)
        try:
            self._native.run_with_iobinding(self._binding(0, {}), options)
        except Exception as error:
            raise EngineError(f"graph {self.graph.name}: onnxruntime failed ({first_line(error)})") from error
        finally:
            profile = Path(self._native.end_profiling())
        events = json.loads(profile.read_text(encoding="utf-8"))
        profile.unlink()
        nodes = {
            (event["name"], event["args"]["op_name"])
            for event in events
            if event.get("cat") == "Node" and event["args"].get("provider") == PROVIDER
        }
        return Counter(operator for _, operator in nodes if operator in FUSED)

    def _bind(self, turn: int, instead: Mapping[str, Any]) -> _Launch:
        number = str(next(self._ids)) if self._graphs else _NOT_CAPTURED
        return _Launch(
            self._binding(turn, instead),
            self._run_options(number, wait=True),
            self._run_options(number, wait=False),
        )

    def _binding(self, turn: int, instead: Mapping[str, Any]) -> Any:
        binding = self._native.io_binding()
        for spec in self.graph.inputs:
            value = instead[spec.name] if spec.name in instead else self.value(spec.name, turn)
            binding.bind_ortvalue_input(spec.name, value)
        for spec in self.graph.outputs:
            binding.bind_ortvalue_output(spec.name, self.value(spec.name, turn))
        return binding

    def _run_options(self, number: str, *, wait: bool) -> Any:
        options = self._onnxruntime.RunOptions()
        options.log_severity_level = LOG_NOTHING
        options.add_run_config_entry("gpu_graph_id", number)
        if not wait:
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        return options

    def _write_impl(self, name: str, value: Array) -> None:
        spec = self.graph.tensor(name)
        self.value(name, self._turn).update_inplace(np.ascontiguousarray(value, dtype=spec.dtype))

    def _read_impl(self, name: str) -> Array:
        return np.array(self.result(name, self._turn).numpy())


Turns = tuple[int, ...]
"""The turn of every session when the program starts: with it all addresses are settled."""


class CudaProgram(Program):
    """A thread that has the sessions' threads replay one captured run after another. One that needs what a call of
    another program gives waits for that call, and not for the others after it.

    Runs are captured when a program is first started, and again if it is started at other turns. An input that a table
    or another session gives is read where it lies: what the session's own buffer of that name holds is not changed.
    """

    def __init__(self, onnxruntime: Any, calls: Sequence[Call], underway: _Underway) -> None:
        """Raises EngineError: a session is of another engine."""
        super().__init__(calls)
        self._sessions = [_of_this_engine(call.session) for call in self.calls]
        self._givers = [_of_this_engine(source) for call in self.calls for source, _ in call.starts.values()]
        self._rows = [
            [
                {name: _on_device(onnxruntime, table[place]) for name, table in call.tables.items()}
                for place in range(call.runs)
            ]
            for call in self.calls
        ]
        self._underway = underway
        self._running: Future[None] | None = None
        self._prepared: dict[Turns, tuple[list[Any], list[list[_Launch]]]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cuda-program")

    def start(self, progress: Progress | None = None) -> None:
        launches = self._prepare(tuple(session.turn for session in (*self._sessions, *self._givers)))
        writers = self._underway.writers
        values = [value for session in (*self._sessions, *self._givers) for value in session.values]
        needed = {writers[id(value)] for value in values if id(value) in writers}
        ends = [threading.Event() for _ in self.calls]
        for session, end in zip(self._sessions, ends, strict=True):
            writers.update({id(value): end for value in session.written})
        self._running = self._thread.submit(self._run, launches, needed, ends, progress)
        self._underway.programs.add(self._running)
        self._running.add_done_callback(self._underway.programs.discard)

    def finish(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def _prepare(self, starts: Turns) -> list[list[_Launch]]:
        """Every run of a program that starts at these turns, bound, and captured at the first time."""
        known, launches = self._prepared.get(starts, ([], []))
        while known != (natives := [session.native for session in self._sessions]):
            # Another thread that allocates would break the capture.
            wait(set(self._underway.programs))
            # Where a capture is refused, a session is loaded anew, and is bound once more.
            known, launches = natives, self._captured(starts)
            self._prepared[starts] = known, launches
        return launches

    def _captured(self, starts: Turns) -> list[list[_Launch]]:
        turn = dict(zip((*self._sessions, *self._givers), starts, strict=True))
        # Capturing runs the graphs, which write over what they are fed.
        fed = [
            session.value(name, turn[session])
            for session in dict.fromkeys(self._sessions)
            for name in session.graph.feedback.values()
        ]
        kept = [np.array(value.numpy()) for value in fed]
        launches = []
        for call, session, rows in zip(self.calls, self._sessions, self._rows, strict=True):
            taken, first = (
                {
                    name: (giver := _of_this_engine(source)).result(output, turn.get(giver, giver.turn))
                    for name, (source, output) in given.items()
                }
                for given in (call.takes, call.starts)
            )
            runs: list[_Launch] = []
            for row in rows:
                given = taken if runs else {**taken, **first}
                work = partial(session.prepare, turn[session], {**row, **given})
                runs.append(session.in_thread(work).result())
                turn[session] = session.after(turn[session], 1)
            launches.append(runs)
        for value, array in zip(fed, kept, strict=True):
            value.update_inplace(array)
        return launches

    def _run(
        self,
        launches: list[list[_Launch]],
        needed: set[threading.Event],
        ends: list[threading.Event],
        progress: Progress | None,
    ) -> None:
        spent = []
        try:
            for end in needed:
                end.wait()
            for call, session, runs, end in zip(self.calls, self._sessions, launches, ends, strict=True):
                begun = time.perf_counter()
                told = progress if call.counted else None
                session.in_thread(partial(session.launch, runs, told)).result()
                spent.append((time.perf_counter() - begun) * 1000)
                end.set()
        finally:
            for end in ends:  # nobody waits for what failed
                end.set()
        self.milliseconds = tuple(spent)


def _of_this_engine(session: Session) -> CudaSession:
    if not isinstance(session, CudaSession):
        raise EngineError(f"graph {session.graph.name}: its session is of another engine")
    return session


def _on_device(onnxruntime: Any, array: Array) -> Any:
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), "cuda", _DEVICE)


def _checked(buffer: object, spec: TensorSpec, graph: GraphSpec, free: int) -> Any:
    value: Any = buffer
    try:
        found = tuple(value.shape()), ONNX_TYPES.get(value.data_type())
    except (AttributeError, TypeError):
        found = None
    if found != (spec.sized(free), spec.dtype):
        raise EngineError(f"graph {graph.name}: the shared buffer of {spec.name} has another shape or type")
    return value


def _provider(*, graphs: bool) -> tuple[str, dict[str, str]]:
    options = {
        "device_id": str(_DEVICE),
        "enable_cuda_graph": "1" if graphs else "0",
        # What fp32 graphs promise; those in fp16 say so themselves.
        "use_tf32": "0",
        # Taken once: shapes do not change.
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "arena_extend_strategy": "kSameAsRequested",
    }
    return PROVIDER, options


def _import() -> Any:
    import onnxruntime

    return onnxruntime


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _tell_nobody(line: str) -> None:
    """Where nobody listens."""
