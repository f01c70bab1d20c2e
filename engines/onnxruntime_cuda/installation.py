"""Whether ONNX Runtime for NVIDIA GPUs is installed, whole, and runs on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata

from unibrain_rt.engines.catalogue import Probe
from unibrain_rt.engines.cuda.driver import cuda_driver, device_name
from unibrain_rt.engines.engine_errors import first_line
from unibrain_rt.engines.onnxruntime_cuda.provider import PROVIDER
from unibrain_rt.engines.onnxruntime_cuda.trial import failure

NAME = "cuda"
_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")


def probe() -> Probe:
    """Whether onnxruntime-gpu is here, alone, and runs on a GPU: it is tried, once a process."""
    installed = onnxruntimes()
    version = installed.get("onnxruntime-gpu")
    both = 'pip uninstall -y onnxruntime onnxruntime-gpu && pip install "onnxruntime-gpu[cuda,cudnn]"'
    if version is None:
        advice = both if installed else 'pip install "unibrain-rt[cuda]"'
        return Probe(NAME, problem="onnxruntime-gpu is not installed", advice=f"run: {advice}")
    if len(installed) == 2:
        problem = "onnxruntime and onnxruntime-gpu are both installed, and overwrite each other's files"
        return Probe(NAME, version, problem=problem, advice=f"run: {both}")
    device = device_name(cuda_driver())
    if device is None:
        problem = "there is no NVIDIA driver, or it offers no device"
        return Probe(
            NAME, version, problem=problem, advice="install NVIDIA's driver, or let the container use it"
        )
    try:
        import onnxruntime

        providers = onnxruntime.get_available_providers()
    except Exception as error:  # of a broken installation it may be any
        return Probe(NAME, version, device, f"does not load ({first_line(error)})", f"run: {both}")
    if PROVIDER not in providers:
        return Probe(NAME, version, device, "this onnxruntime-gpu has no CUDA provider", f"run: {both}")
    broken = failure(onnxruntime)
    if broken is not None:
        return Probe(NAME, version, device, broken.problem, broken.advice)
    return Probe(NAME, version, device)


def onnxruntimes(installed: Callable[[str], str] = metadata.version) -> dict[str, str]:
    """Version of every distribution that brings a module ``onnxruntime``; two of them overwrite each other's files."""
    versions = {}
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = installed(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
