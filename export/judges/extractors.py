"""From weight files that lie here to feature networks in ONNX: those that the field compares reconstructions by.

The settings are Brain-Diffuser's, on which the published figures rest: pictures of 224 x 224, resized
bilinearly, with ImageNet's mean and standard deviation (CLIP with its own), also for Inception and
EfficientNet, which were trained on larger ones. Nothing is downloaded, and nothing is unpickled.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unibrain_rt import __version__
from unibrain_rt.bundle import sha256_of
from unibrain_rt.errors import InputError, input_error, one_line
from unibrain_rt.export.bundles.trace import OPSET
from unibrain_rt.export.judges.features import INPUT, OUTPUT, FeatureFile, Measure
from unibrain_rt.export.judges.networks import AlexNet, EfficientNetB1, InceptionV3, ResNet50
from unibrain_rt.export.subjects.pixels import CLIP_MEAN, CLIP_STD
from unibrain_rt.files import json_text, whole_files

Colours = tuple[float, float, float]
IMAGENET: tuple[Colours, Colours] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# torchvision's Inception takes ImageNet's statistics off again and works on -1 to 1: the same in one step.
HALF: tuple[Colours, Colours] = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
SIDE = 224
CLIP = "clip"


@dataclass(frozen=True)
class Network:
    """One of the field's judges. ``rest`` begins the names of weights behind the compared layer."""

    title: str
    measure: Measure
    build: Callable[[], nn.Module]
    layer: str
    rest: tuple[str, ...]
    colours: tuple[Colours, Colours] = IMAGENET


NETWORKS: dict[str, Network] = {
    "alexnet2": Network(
        "Alex(2)",
        "identification",
        lambda: AlexNet(4),
        "AlexNet features[4]",
        ("features.6.", "features.8.", "features.10.", "classifier."),
    ),
    "alexnet5": Network(
        "Alex(5)", "identification", lambda: AlexNet(11), "AlexNet features[11]", ("classifier.",)
    ),
    "inception": Network(
        "Inception", "identification", InceptionV3, "Inception v3 avgpool", ("AuxLogits.", "fc."), HALF
    ),
    "efficientnet": Network(
        "EffNet-B1", "distance", EfficientNetB1, "EfficientNet-B1 avgpool", ("classifier.",)
    ),
    "swav": Network(
        "SwAV", "distance", ResNet50, "ResNet-50 avgpool", ("fc.", "projection_head.", "prototypes.")
    ),
}
NAMES = (*NETWORKS, CLIP)


class ClipEmbedding(nn.Module):
    """Normalised pixels (N, 3, S, S) → CLIP's projected image embedding (N, D)."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: Tensor) -> Tensor:
        embeddings: Tensor = self.tower(pixel_values=pixels).image_embeds
        return embeddings


def export_features(name: str, weights: Path, out: Path, *, overwrite: bool = False) -> Path:
    """Make the feature network ``name`` of `NAMES` from ``weights``; gives the JSON file that `FeatureFile` reads.

    Args:
        weights: a file in torchvision's names (``.pth`` or ``.safetensors``); for ``clip``, a folder in transformers'
            layout (``config.json`` and ``model.safetensors`` or ``pytorch_model.bin``).
        out: folder of ``<name>.onnx`` and ``<name>.json``.

    Raises:
        InputError: the weights are missing, damaged or another network's, or an output exists.
    """
    if name not in NAMES:
        raise InputError(f"no feature network called {name!r}; there are {', '.join(NAMES)}")
    taken = [path for path in (out / f"{name}.onnx", out / f"{name}.json") if path.exists()]
    if taken and not overwrite:
        raise input_error(taken[0], "exists already: choose another --out, or replace it with --overwrite")
    if name == CLIP:
        module, side = _clip(weights)
        network = Network(
            "CLIP ViT-L/14",
            "identification",
            lambda: module,
            "CLIP image embedding",
            (),
            (CLIP_MEAN, CLIP_STD),
        )
        files = sorted(path for path in weights.iterdir() if path.suffix in (".safetensors", ".bin", ".json"))
    else:
        network, side, files = NETWORKS[name], SIDE, [weights]
        module = network.build()
        _load(module, weights, network)
    provenance = {
        "network": network.layer,
        "weights": {path.name: sha256_of(path) for path in files},
        "unibrain_rt": __version__,
        "torch": torch.__version__,
    }
    return write_features(
        module,
        out,
        name,
        title=network.title,
        measure=network.measure,
        side=side,
        colours=network.colours,
        provenance=provenance,
    )


def write_features(
    module: nn.Module,
    out: Path,
    name: str,
    *,
    title: str,
    measure: Measure,
    side: int,
    colours: tuple[Colours, Colours],
    provenance: Mapping[str, Any],
) -> Path:
    """Export a module, pixels (N, 3, side, side) → features (N, …), to ``<out>/<name>.onnx`` and ``.json``.

    Args:
        title: the column that its figures get in tables.
        colours: mean and standard deviation by which pixels in [0, 1] are normalised.

    Returns:
        The JSON file, which gets its name last: where it is, the graph is whole.
    """
    example = torch.zeros(2, 3, side, side)
    with torch.no_grad():
        shape = tuple(module.eval()(example).shape[1:])
    graph, path = out / f"{name}.onnx", out / f"{name}.json"
    with whole_files(graph, path) as (exported, described):
        _export(module, example, exported)
        features = FeatureFile(
            title, measure, graph, sha256_of(exported), side, *colours, shape, provenance=provenance
        )
        described.write_text(json_text(features.record()), encoding="utf-8")
    return path


def _export(module: nn.Module, pixels: Tensor, path: Path) -> None:
    """By torch's older exporter: these are straight lines of layers, on which the newer spends half a minute."""
    free = {name: {0: "N"} for name in (INPUT, OUTPUT)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (pixels,),
            str(path),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes=free,
            opset_version=OPSET,
            dynamo=False,
        )


def _load(module: nn.Module, path: Path, network: Network) -> None:
    """Fill the module, to the last weight, from a file that may hold what lies behind it, too."""
    given = {key.removeprefix("module."): value for key, value in _state(path).items()}
    wanted = module.state_dict()
    # Files of old have no count of the batches that a norm has seen; nothing reads it.
    missing = [key for key in wanted if key not in given and not key.endswith("num_batches_tracked")]
    if missing:
        problem = f"no {missing[0]}, so these are not the weights of {network.layer}"
        raise input_error(path, f"{problem}: give torchvision's")
    odd = [key for key in given if key not in wanted and not key.startswith(network.rest)]
    if odd:
        raise input_error(path, f"{odd[0]} is no weight of {network.layer}: give torchvision's")
    for key, value in wanted.items():
        if key in given and given[key].shape != value.shape:
            shapes = f"{tuple(given[key].shape)}, not {tuple(value.shape)}"
            raise input_error(path, f"{key} is {shapes}: give torchvision's weights of {network.layer}")
    module.load_state_dict({key: given[key] for key in wanted if key in given}, strict=False)


def _state(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise input_error(path, "no such file: name the file with the network's weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise a dozen types
        problem = f"no weights that can be read ({one_line(str(error), 90)})"
        raise input_error(path, f"{problem}: copy the file again") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise input_error(path, "holds something else than weights by name: give a state dict")
    return state


def _clip(folder: Path) -> tuple[nn.Module, int]:
    """The image tower in transformers' folder, and its pictures' side."""
    from transformers import CLIPVisionModelWithProjection

    if not (folder / "config.json").is_file():
        raise input_error(folder, "no config.json: name a folder in transformers' layout")
    try:
        tower, about = CLIPVisionModelWithProjection.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except Exception as error:  # transformers passes on whatever its readers raise
        problem = f"no CLIP that can be read ({one_line(str(error), 90)})"
        raise input_error(folder, f"{problem}: copy the folder again") from error
    if about["missing_keys"] or about["mismatched_keys"]:
        odd = sorted(map(str, [*about["missing_keys"], *about["mismatched_keys"]]))[0]
        raise input_error(folder, f"{odd} is missing or of another shape: give a whole CLIP")
    return ClipEmbedding(tower), int(tower.config.image_size)
