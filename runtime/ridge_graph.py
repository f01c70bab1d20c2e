"""The ridge heads as a graph that an engine runs, so that of a scan nothing but its voxels goes to the device.

``subjects/<name>/ridge.onnx`` is written with the heads (`unibrain_rt.export.subjects.ridge.graph`) and reads
its weights out of their file. With V voxels, all of it fp32:

================================  =======================================================================
input                             what it is
================================  =======================================================================
``voxels``                        (1, V), z-scored: that and the checks of a scan are the host's
``<flow>_noise``                  as the flow's latent: the noise that it starts from
``<flow>_start_coefficients``     (2,): √ᾱ and √(1 − ᾱ) of the level that the flow's sampler starts at
``unconditional_<flow>_context``  (1, L, D): the unconditional one; the same for all scans
================================  =======================================================================

================================  =======================================================================
output                            what it is
================================  =======================================================================
``<flow>_latent``                 what the head predicts, (1, …)
``noised_<flow>_latent``          the same under noise: where denoising begins
``guiding_<flow>_context``        (2, L, D): unconditional and predicted, as ``unet_context`` takes them
================================  =======================================================================
"""

from __future__ import annotations

from collections.abc import Iterable

from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import GraphSpec, TensorSpec
from unibrain_rt.flows import FLOWS
from unibrain_rt.subject import Subject
from unibrain_rt.subject_files import GRAPH_FILE, TENSOR_FILE


def ridge_tensors(subject: Subject) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of a subject's graph."""

    def tensor(name: str, *shape: int) -> TensorSpec:
        return TensorSpec(name, "float32", shape)

    latents = {flow: subject.head_shape(f"{flow}_latent") for flow in FLOWS}
    contexts = {flow: subject.head_shape(f"{flow}_context") for flow in FLOWS}
    inputs = [tensor("voxels", 1, subject.voxels)]
    inputs += [tensor(f"{flow}_noise", 1, *shape) for flow, shape in latents.items()]
    inputs += [tensor(f"{flow}_start_coefficients", 2) for flow in FLOWS]
    inputs += [tensor(f"unconditional_{flow}_context", 1, *shape) for flow, shape in contexts.items()]
    outputs = [tensor(f"{flow}_latent", 1, *shape) for flow, shape in latents.items()]
    outputs += [tensor(f"noised_{flow}_latent", 1, *shape) for flow, shape in latents.items()]
    outputs += [tensor(f"guiding_{flow}_context", 2, *shape) for flow, shape in contexts.items()]
    return tuple(inputs), tuple(outputs)


def ridge_graph(bundle: Bundle, subject: Subject) -> GraphSpec | None:
    """The graph of one of the bundle's subjects; None where the subject is from before there were such graphs."""
    folder = f"subjects/{subject.folder.name}"
    names = (GRAPH_FILE, TENSOR_FILE)
    if f"{folder}/{GRAPH_FILE}" not in bundle.files or subject.folder != bundle.folder / folder:
        return None
    inputs, outputs = ridge_tensors(subject)
    # The hashes are the manifest's: a large subject's file would take longer to hash than to decode with.
    files = {name: bundle.files[f"{folder}/{name}"].sha256 for name in names}
    return GraphSpec(
        f"ridge_{subject.folder.name}", subject.folder / GRAPH_FILE, inputs, outputs, files=files
    )


def ridge_graphs(bundle: Bundle, subjects: Iterable[Subject]) -> list[tuple[GraphSpec, int]]:
    """The graphs of those of these subjects that have one, with the size of their free axes: there are none."""
    graphs = (ridge_graph(bundle, subject) for subject in subjects)
    return [(graph, 1) for graph in graphs if graph is not None]
