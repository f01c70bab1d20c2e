"""``unibrain-rt info``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from unibrain_rt.bundle import Bundle
from unibrain_rt.cli.json_report import JsonCommand, JsonReport, json_option
from unibrain_rt.cli.tables import cell_text, size_text, table
from unibrain_rt.engines import GraphSpec
from unibrain_rt.errors import one_line
from unibrain_rt.presets import Preset
from unibrain_rt.samplers import Schedule
from unibrain_rt.subject import Subject
from unibrain_rt.subject_files import TENSOR_FILE


@click.command("info", cls=JsonCommand, short_help="Show what a bundle holds.")
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option("--subject", help="Show this subject alone.  [default: all of the bundle]")
@json_option("one object with all of it")
def command(bundle: Path | None, subject: str | None, json_file: str | None) -> None:
    """Show what BUNDLE holds: sizes, graphs, presets, subjects and where it comes from.

    BUNDLE is the shipped phantom where none is named. Of the files, sizes are checked and contents are not, so that it
    is quick for large bundles: decode and verify compare every SHA-256.
    """
    opened = Bundle.open(bundle, verify=False)
    report = JsonReport(json_file, bundle=opened.folder)
    names = opened.subjects if subject is None else (subject,)
    described = describe(opened, [opened.subject(name) for name in names])
    if not report.on_stdout:
        for line in _lines(described):
            click.echo(line)
    report.add(described)
    report.close()


def describe(bundle: Bundle, subjects: Iterable[Subject]) -> dict[str, Any]:
    """What the command prints, as JSON has it. Raises `BundleError` if a graph of a decode is missing."""
    size_bytes = {name: record.size_bytes for name, record in bundle.files.items()}
    return {
        "bundle": str(bundle.folder),
        "name": bundle.name,
        "precision": bundle.precision,
        "fingerprint": bundle.fingerprint(),
        "size_bytes": sum(size_bytes.values()),
        "captions": bundle.has_captions,
        "sizes": _sizes(bundle),
        "graphs": {name: _graph(bundle, graph, size_bytes) for name, graph in sorted(bundle.graphs.items())},
        "weights": {
            name: {"size_bytes": size}
            for name, size in sorted(size_bytes.items())
            if name.startswith("graphs/")
            and name not in {_file(bundle, graph) for graph in bundle.graphs.values()}
        },
        "presets": {name: _preset(preset, bundle.schedule) for name, preset in bundle.presets.items()},
        "subjects": {subject.folder.name: _subject(subject, size_bytes) for subject in subjects},
        "provenance": dict(bundle.provenance),
    }


def _sizes(bundle: Bundle) -> dict[str, Any]:
    """Shapes without the batch, of what a decode takes and gives."""
    image = bundle.graph("autokl_decode").tensor("image").shape
    context = bundle.graph("unet_context")
    sizes: dict[str, Any] = {
        "image": list(image[2:]),
        "image_latent": list(bundle.graph("unet_image_step").tensor("latent").shape[1:]),
        "text_latent": list(bundle.graph("unet_text_step").tensor("latent").shape[1:]),
        "image_context": list(context.tensor("image_context").shape[1:]),
        "text_context": list(context.tensor("text_context").shape[1:]),
    }
    parameters = bundle.provenance.get("parameters")
    if isinstance(parameters, int):
        sizes["parameters"] = parameters
    return sizes


def _file(bundle: Bundle, graph: GraphSpec) -> str:
    return graph.path.relative_to(bundle.folder).as_posix()


def _graph(bundle: Bundle, graph: GraphSpec, size_bytes: Mapping[str, int]) -> dict[str, Any]:
    file = _file(bundle, graph)
    return {
        "file": file,
        "size_bytes": size_bytes[file],
        **{
            part: {spec.name: {"dtype": spec.dtype, "shape": list(spec.shape)} for spec in specs}
            for part, specs in (("inputs", graph.inputs), ("outputs", graph.outputs))
        },
    }


def _preset(preset: Preset, schedule: Schedule) -> dict[str, Any]:
    """The manifest's form and how many steps of it run."""
    return {**preset.to_mapping(), "steps_run": len(preset.table(schedule, "image").timesteps)}


def _subject(subject: Subject, size_bytes: Mapping[str, int]) -> dict[str, Any]:
    mask = subject.voxel_space.mask
    return {
        "name": subject.name,
        "voxels": subject.voxels,
        "beta_scale": subject.beta_scale,
        "mask": None if mask is None else list(mask.shape),
        "size_bytes": size_bytes.get(f"subjects/{subject.folder.name}/{TENSOR_FILE}"),
        "heads": {
            name: {
                "shape": list(head.shape),
                "rank": head.rank,
                "alpha": head.alpha,
                "held_out_correlation": head.held_out_correlation,
                "fidelity": head.fidelity,
                "storage": subject.storage(name),
                "size_bytes": subject.size_bytes(name),
            }
            for name, head in subject.heads.items()
        },
        "fitted_on": dict(subject.fitted_on),
    }


def _lines(described: Mapping[str, Any]) -> Iterable[str]:
    sizes = described["sizes"]
    yield f"{cell_text(described['name'])}  {cell_text(described['precision'])}  {described['fingerprint']}"
    yield f"{described['bundle']}, {size_text(described['size_bytes'])}"
    yield ""
    yield from table(
        [
            ["image", _shape(sizes["image"]), "latent", _shape(sizes["image_latent"])],
            ["caption", "yes" if described["captions"] else "no", "latent", _shape(sizes["text_latent"])],
            ["image context", _shape(sizes["image_context"])],
            ["text context", _shape(sizes["text_context"])],
            *([["parameters", f"{sizes['parameters']:,}"]] if "parameters" in sizes else []),
        ]
    )
    yield ""
    files = {**described["graphs"], **described["weights"]}
    rows = [[name, size_text(part["size_bytes"])] for name, part in files.items()]
    total = sum(part["size_bytes"] for part in files.values())
    yield from table([["graph", "size"], *rows, ["all graphs", size_text(total)]], right={1})
    yield ""
    yield from table(
        [
            ["preset", "sampler", "steps", "strength", "guidance", "image context in images, in captions"],
            *(
                [
                    name,
                    preset["sampler"],
                    f"{preset['steps_run']} of {preset['steps']}",
                    f"{preset['strength']:g}",
                    _guidance(preset),
                    f"{preset['image_ratio']:g}, {preset['caption_image_ratio']:g}",
                ]
                for name, preset in described["presets"].items()
            ),
        ]
    )
    for name, subject in described["subjects"].items():
        yield ""
        mask = "no mask" if subject["mask"] is None else f"mask {_shape(subject['mask'])}"
        size = "" if subject["size_bytes"] is None else f", {size_text(subject['size_bytes'])}"
        yield f"subject {cell_text(name)}: {subject['voxels']:,} voxels, {mask}{size}"
        yield from table(
            [
                ["head", "shape", "rank", "stored as", "size", "alpha", "held-out r", "fidelity"],
                *(
                    [
                        head,
                        _shape(values["shape"]),
                        "exact" if values["rank"] is None else f"{values['rank']}",
                        values["storage"],
                        size_text(values["size_bytes"]),
                        *(_number(values[key]) for key in ("alpha", "held_out_correlation", "fidelity")),
                    ]
                    for head, values in subject["heads"].items()
                ),
            ],
            right={2, 4, 5, 6, 7},
        )
        yield from _facts(subject["fitted_on"], "fitted on")
    if not described["subjects"]:
        yield ""
        yield "no subject: fit one before decoding"
    if described["provenance"]:
        yield ""
        yield from _facts(described["provenance"], "provenance")


def _facts(facts: Mapping[str, Any], title: str) -> Iterable[str]:
    """``key value`` pairs on one line; nested ones are for ``--json``."""
    plain = [f"{key} {value}" for key, value in facts.items() if isinstance(value, (str, int, float))]
    if plain:
        yield f"{title}: {one_line(', '.join(plain))}"


def _shape(shape: Sequence[object]) -> str:
    return " × ".join(str(size) for size in shape)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _guidance(preset: Mapping[str, Any]) -> str:
    interval = preset["guidance_interval"]
    limits = "" if interval is None else f" in {interval[0]:g} to {interval[1]:g}"
    return f"{preset['guidance_scale']:g}{limits}"
