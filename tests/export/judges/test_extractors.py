from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from unibrain_rt.engines import Engine
from unibrain_rt.errors import InputError
from unibrain_rt.export.judges import features
from unibrain_rt.export.judges.extractors import NETWORKS, export_features
from unibrain_rt.export.judges.features import FeatureFile, network_extractor

WIDTHS = {
    "alexnet2": 192 * 27 * 27,
    "alexnet5": 256 * 13 * 13,
    "inception": 2048,
    "efficientnet": 1280,
    "swav": 2048,
}


def randomised(name: str) -> nn.Module:
    """The real architecture with random weights, its batch norms, too."""
    torch.manual_seed(3)
    module = NETWORKS[name].build().eval()
    for key, buffer in module.named_buffers():
        if key.endswith("running_mean"):
            buffer.normal_(0.0, 0.1)
        if key.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return module


def torch_features(module: Callable[[Tensor], Tensor], file: FeatureFile, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return module(torch.from_numpy(file.pixels(images))).flatten(1).numpy()


@pytest.mark.parametrize("name", NETWORKS)
def test_random_weights_give_torchs_features(
    name: str, engine: Engine, pictures: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "BATCH", 3)  # what fills up a batch would be computed for nothing
    module = randomised(name)
    behind = NETWORKS[name].rest[-1]
    # As published files do: with a classifier behind, and SwAV's names as of several GPUs.
    prefix = "module." if name == "swav" else ""
    state = {f"{prefix}{key}": value for key, value in module.state_dict().items()}
    torch.save({**state, f"{prefix}{behind}weight": torch.zeros(2)}, tmp_path / "weights.pth")
    path = export_features(name, tmp_path / "weights.pth", tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [f"{name}.json", f"{name}.onnx"]
    file = FeatureFile.load(path)
    found = network_extractor(file, engine).features(pictures[:3])
    expected = torch_features(module, file, pictures[:3])
    assert found.shape == (3, WIDTHS[name])
    scale = float(np.abs(expected).max())
    assert scale > 0
    np.testing.assert_allclose(found / scale, expected / scale, atol=1e-4)
    assert file.provenance["weights"].keys() == {"weights.pth"}
    assert str(Path(__file__).parents[3]).encode() not in file.graph.read_bytes(), "no path of this machine"


def test_our_networks_are_torchvisions() -> None:
    pytest.importorskip("torchvision", reason="torchvision is not installed", exc_type=Exception)
    import torchvision.models as theirs

    pixels = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for name, build, layer in (
        ("alexnet2", theirs.alexnet, lambda net: net.features[4]),
        ("alexnet5", theirs.alexnet, lambda net: net.features[11]),
        (
            "inception",
            lambda **options: theirs.inception_v3(init_weights=False, **options),
            lambda net: net.avgpool,
        ),
        ("efficientnet", theirs.efficientnet_b1, lambda net: net.avgpool),
        ("swav", theirs.resnet50, lambda net: net.avgpool),
    ):
        network, ours = build(weights=None).eval(), NETWORKS[name].build().eval()
        found: list[Tensor] = []
        layer(network).register_forward_hook(
            lambda *passed, found=found: found.append(passed[2].flatten(1).clone())
        )
        ours.load_state_dict(
            {key: value for key, value in network.state_dict().items() if key in ours.state_dict()}
        )
        with torch.no_grad():
            network(pixels)
            torch.testing.assert_close(ours(pixels).flatten(1), found[0], atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP in transformers' layout."""
    torch.manual_seed(4)
    folder = tmp_path_factory.mktemp("clip")
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=12,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def test_clip_from_transformers_folder(
    clip_folder: Path, engine: Engine, pictures: np.ndarray, tmp_path: Path
) -> None:
    file = FeatureFile.load(export_features("clip", clip_folder, tmp_path))
    assert (file.side, file.shape, file.measure) == (32, (12,), "identification")
    tower = CLIPVisionModelWithProjection.from_pretrained(clip_folder).eval()
    expected = torch_features(lambda pixels: tower(pixel_values=pixels).image_embeds, file, pictures)
    found = network_extractor(file, engine).features(pictures)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_clip_without_all_its_weights_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_text((clip_folder / "config.json").read_text("utf-8"), "utf-8")
    weights = load_file(clip_folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"visual_projection\.weight is missing"):
        export_features("clip", tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match=r"no config\.json"):
        export_features("clip", tmp_path / "nowhere", tmp_path / "out")


def damaged(change: Callable[[dict[str, Any]], object], folder: Path) -> Path:
    state = dict(NETWORKS["alexnet2"].build().state_dict())
    change(state)
    torch.save(state, folder / "weights.pth")
    return folder / "weights.pth"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda state: state.pop("features.3.bias"), r"no features\.3\.bias"),
        (lambda state: state.update(layer1=torch.zeros(1)), "layer1 is no weight of AlexNet"),
        (
            lambda state: state.update({"features.0.bias": torch.zeros(3)}),
            r"features\.0\.bias is \(3,\), not \(64,\)",
        ),
        (lambda state: state.update(epoch=3), "something else than weights"),
        (lambda state: state.update(hook=Path), "no weights that can be read"),
    ],
)
def test_other_weights_are_refused(change: Callable[[dict], object], problem: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=problem) as raised:
        export_features("alexnet2", damaged(change, tmp_path), tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_an_output_is_replaced_only_when_told(tmp_path: Path) -> None:
    weights = damaged(lambda state: None, tmp_path)
    path = export_features("alexnet2", weights, tmp_path)
    with pytest.raises(InputError, match="exists already"):
        export_features("alexnet2", weights, tmp_path)
    path.write_text("{}", "utf-8")
    export_features("alexnet2", weights, tmp_path, overwrite=True)
    assert json.loads(path.read_text("utf-8"))["name"] == "Alex(2)"
