"""A bundle in another precision, from the bundle alone: no checkpoint, and no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from unibrain_rt import __version__
from unibrain_rt.bundle import Bundle
from unibrain_rt.engines.graph_spec import GraphSpec
from unibrain_rt.errors import BundleError, InputError
from unibrain_rt.export.bundles.bundle_folder import (
    check_free,
    copy_files,
    new_folder,
    read_manifest,
    write_manifest,
)
from unibrain_rt.export.bundles.graph_folder import GRAPHS, GraphFolder
from unibrain_rt.export.bundles.precision import FP32_SCOPES, Precision, undo_half_weights
from unibrain_rt.export.subjects.ridge.graph import write_ridge_graph

Report = Callable[[str, int, int], None]


def convert_bundle(
    source: Path,
    out: Path,
    *,
    precision: Precision,
    name: str | None = None,
    overwrite: bool = False,
    report: Report | None = None,
) -> None:
    """Write the bundle ``source`` (fp32, or fp32 from weights in half) into the new folder ``out``.

    The graphs come out as an export of the checkpoint would make them now: what newer exports have, such as a
    ``next_token`` beside the caption's logits, is added, and so are the graphs of subjects' heads. The folder appears
    whole or not at all.

    Args:
        name: of the new bundle; by default that of ``source``.
        report: called with a graph's name, its number and how many there are, before it is converted.

    Raises:
        InputError: ``out`` exists, or ``source`` is of a precision that cannot be converted.
        BundleError: ``source`` is damaged.
    """
    check_free(out, overwrite=overwrite)
    bundle = Bundle.open(source)
    if bundle.precision == "fp16":
        raise InputError(
            f"{source}: is fp16, which is only made and never converted; name an fp32 bundle or the checkpoint"
        )
    with new_folder(out, overwrite=overwrite) as partial:
        with GraphFolder(partial / GRAPHS, precision) as written:
            for number, graph in enumerate(bundle.graphs.values(), start=1):
                if report is not None:
                    report(graph.name, number, len(bundle.graphs))
                model = _read(graph)
                undo_half_weights(model)
                feedback = {**graph.feedback, **_choose_token(model)}
                if precision == "fp16":
                    _check_described(model, graph)
                written.add(model, feedback)
        copy_files(source, partial, [file for file in bundle.files if not file.startswith(f"{GRAPHS}/")])
        for subject in bundle.subjects:
            write_ridge_graph(partial / "subjects" / subject)
        origin = {
            "name": bundle.name,
            "precision": bundle.precision,
            "fingerprint": bundle.fingerprint(),
            "unibrain_rt": __version__,
        }
        manifest = {
            **read_manifest(source),
            "name": name or bundle.name,
            "precision": precision,
            "graphs": written.records,
            "provenance": {**bundle.provenance, "converted_from": origin},
        }
        write_manifest(partial, manifest)


def _read(graph: GraphSpec) -> ir.Model:
    """The graph's file; weights stay where they are until they are written."""
    advice = "export the bundle again"
    try:
        model = ir.load(graph.path)
    except Exception as error:  # protobuf's, onnx_ir's and those of whatever is missing in the file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BundleError(f"{graph.path}: cannot be read as ONNX ({reason}); {advice}") from error
    model.graph.name = graph.name
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        path = graph.path.parent / tensor.location
        end = (tensor.offset or 0) + tensor.nbytes
        if str(tensor.location) not in graph.files or path.stat().st_size < end:
            raise BundleError(f"{graph.path}: its weight {value.name} is not in {path.name}; {advice}")
    return model


def _choose_token(model: ir.Model) -> dict[str, str]:
    """Let a caption graph from before 0.1.0 choose the likeliest token, too. Returns the feedback this adds."""
    outputs = {value.name: value for value in model.graph.outputs}
    if model.graph.name != "optimus_decode" or "logits" not in outputs or "next_token" in outputs:
        return {}
    # Of equals the lowest, as `unibrain_rt.captions.greedy` has it.
    attributes = [ir.AttrInt64(key, value) for key, value in (("axis", -1), ("keepdims", 0))]
    node = ir.Node("", "ArgMax", [outputs["logits"]], attributes, num_outputs=1, name="choose_token")
    token = node.outputs[0]
    token.name, token.type, token.shape = "next_token", ir.TensorType(ir.DataType.INT64), ir.Shape([1])
    model.graph.append(node)
    model.graph.outputs.append(token)
    return {"next_token": "token"}


def _check_described(model: ir.Model, graph: GraphSpec) -> None:
    """fp16 needs the type of everything, and to know which nodes are the sampler's update."""
    nodes = list(model.graph)
    typed = all(value.dtype is not None for node in nodes for value in node.outputs if value.name)
    scopes = " ".join(node.metadata_props.get("scope", "") for node in nodes)
    steps = any(value.name == "coefficients" for value in model.graph.inputs)
    if not typed or (steps and not all(scope in scopes for scope in FP32_SCOPES)):
        raise InputError(
            f"{graph.path}: does not say what of it must stay fp32; make fp16 from the checkpoint instead"
        )
