from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.transformers.dual_transformer_2d import DualTransformer2DModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.pipelines.deprecated.versatile_diffusion.modeling_text_unet import UNetFlatConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from unibrain_rt.errors import InputError
from unibrain_rt.export.bundles import checkpoint as checkpoints
from unibrain_rt.export.bundles import layouts
from unibrain_rt.export.bundles.architecture import Architecture
from unibrain_rt.export.bundles.checkpoint import Checkpoint, check, open_checkpoint
from unibrain_rt.export.bundles.models.autokl import AutoKLDecode, AutoKLEncode

MAIN = "vd-four-flow-v1-0"
LOADERS = {
    "unet": checkpoints.load_unet,
    "autokl": checkpoints.load_autokl,
    "clip_image": checkpoints.load_clip_image,
    "clip_text": checkpoints.load_clip_text,
    "optimus_encoder": checkpoints.load_optimus_encoder,
    "optimus_decoder": checkpoints.load_optimus_decoder,
}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> dict[str, Tensor]:
    return load_file(golden_dir / "golden.safetensors")


@pytest.fixture(scope="module")
def opened(golden_dir: Path) -> Checkpoint:
    return open_checkpoint(golden_dir)


@pytest.fixture(scope="module")
def weights(golden_dir: Path) -> dict[str, Tensor]:
    return torch.load(golden_dir / f"{MAIN}.pth", weights_only=True)


@pytest.fixture
def config(golden_dir: Path) -> Path:
    return golden_dir / "config.json"


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def modules_of(checkpoint: Checkpoint, names: Iterable[str] = tuple(LOADERS)) -> dict[str, dict[str, Tensor]]:
    return {name: LOADERS[name](checkpoint, torch.float32).state_dict() for name in names}


def assert_same_modules(
    found: Checkpoint, expected: Checkpoint, names: Iterable[str] = tuple(LOADERS)
) -> None:
    others = modules_of(expected, names)
    for name, state in modules_of(found, names).items():
        assert state.keys() == others[name].keys()
        for key, value in state.items():
            assert torch.equal(value, others[name][key]), f"{name}: {key}"


def message(folder: Path, config: Path | None = None, *, checked: bool = True) -> str:
    with pytest.raises(InputError) as caught:
        checkpoint = open_checkpoint(folder, config)
        if checked:
            check(checkpoint)
    return str(caught.value)


# The published files


def test_golden_checkpoint_opens(opened, golden_dir):
    check(opened)
    assert opened.layout == "published"
    assert opened.has_captions
    assert opened.architecture == Architecture.load(golden_dir / "config.json")
    assert opened.tokenizers == {name: golden_dir / "tokenizers" / name for name in ("gpt2", "bert")}
    assert opened.shape("diffuser.image.data_blocks.0.0.weight") == (32, 4, 3, 3)
    assert "vae.image.quant_conv.weight" in opened.keys()  # noqa: SIM118 - a method of our own


def test_provenance_hashes_on_request(opened, golden_dir):
    path = golden_dir / f"{MAIN}.pth"
    entry = opened.provenance()["files"][path.name]
    assert entry == {"bytes": path.stat().st_size}
    assert len(opened.provenance(hashes=True)["files"][path.name]["sha256"]) == 64


def test_unet_is_the_reference(opened, golden, report):
    unet = checkpoints.load_unet(opened, torch.float32)
    contexts = {"image": golden["unet.context.image"], "text": golden["unet.context.text"]}
    worst = 0.0
    for flow in ("image", "text"):
        x, timesteps = golden[f"unet.{flow}.x"], golden["unet.timesteps"]
        for name, context in contexts.items():
            expected = golden[f"unet.{flow}.eps.context_{name}"]
            worst = max(worst, relative(unet(flow, x, timesteps, {name: context}), expected))
        for ratio in (0.1, 0.4, 0.6, 0.9):
            expected = golden[f"unet.{flow}.eps.dual_image_ratio_{ratio}"]
            worst = max(worst, relative(unet(flow, x, timesteps, contexts, ratio), expected))
    report(f"checkpoint: UNet against the reference, relative error {worst:.1e}")
    assert worst < 1e-4


def test_autokl_is_the_reference(opened, golden):
    vae = checkpoints.load_autokl(opened, torch.float32)
    scale = opened.architecture.autokl.scale_factor
    latent = golden["autokl.scaled_latent"]
    assert relative(AutoKLEncode(vae, scale)(golden["autokl.image"]), latent) < 1e-4
    assert relative(AutoKLDecode(vae, scale)(latent), golden["autokl.decoded_from_scaled_latent"]) < 1e-4


def test_clip_is_the_reference(opened, golden):
    image = checkpoints.load_clip_image(opened, torch.float32)(golden["clip.image.pixel_values"])
    text = checkpoints.load_clip_text(opened, torch.float32)(golden["clip.text.input_ids"])
    assert relative(image, golden["clip.image.context"]) < 1e-4
    assert relative(text, golden["clip.text.context"]) < 1e-4


def test_optimus_is_the_reference(opened, golden):
    latent = checkpoints.load_optimus_encoder(opened, torch.float32)(golden["optimus.encoder.input_ids"])
    assert relative(latent, golden["optimus.encoder.latent_mean"]) < 1e-4
    decoder = checkpoints.load_optimus_decoder(opened, torch.float32)
    logits = decoder(golden["optimus.decoder.latent"], golden["optimus.decoder.input_ids"])
    assert relative(logits[:, 0], golden["optimus.decoder.logits_first_position"]) < 1e-4
    assert relative(logits[:, -1], golden["optimus.decoder.logits_last_position"]) < 1e-4


def below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def without(weights: Mapping[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    return {key: value for key, value in weights.items() if not key.startswith(prefixes)}


def test_split_files_with_unprefixed_and_wrapped_keys(tmp_path, opened, weights, config):
    torch.save(without(weights, "vae."), tmp_path / f"{MAIN}.pth")
    extras = {"loss.logvar": torch.zeros(()), "model_ema.decay": torch.zeros(())}
    autokl = {"state_dict": {**below(weights, "vae.image."), **extras}, "global_step": 3}
    torch.save(autokl, tmp_path / "kl-f8.pth")
    torch.save({"model": below(weights, "vae.text.")}, tmp_path / "optimus-vae.pth")
    found = open_checkpoint(tmp_path, config)
    check(found)
    assert set(found.provenance()["files"]) == {f"{MAIN}.pth", "kl-f8.pth", "optimus-vae.pth"}
    assert_same_modules(found, opened)


def test_safetensors_with_prefixed_side_files(tmp_path, opened, weights, config):
    loose = {key: value.clone() for key, value in weights.items()}
    # Shared tensors are stored once by those who convert to safetensors.
    del loose["vae.text.decoder.lm_head.weight"]
    save_file(without(loose, "vae."), tmp_path / f"{MAIN}.safetensors")
    for name, prefix in (("kl-f8", "vae.image."), ("optimus-vae", "vae.text.")):
        part = {key: value for key, value in loose.items() if key.startswith(prefix)}
        save_file(part, tmp_path / f"{name}.safetensors")
    found = open_checkpoint(tmp_path, config)
    check(found)
    assert_same_modules(found, opened)


def test_half_precision_variant_and_files_of_old_torch(tmp_path, opened, weights, config):
    half = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    torch.save(half, tmp_path / f"{MAIN}-fp16.pth", _use_new_zipfile_serialization=False)
    found = open_checkpoint(tmp_path, config)
    check(found)
    key = "diffuser.image.data_blocks.1.0.in_layers.2.weight"
    assert found.tensor(key).dtype is torch.float16
    unet, exact = checkpoints.load_unet(found, torch.float32), checkpoints.load_unet(opened, torch.float32)
    others = exact.state_dict()
    for name, value in unet.state_dict().items():
        assert value.dtype is torch.float32
        assert torch.allclose(value, others[name], rtol=1e-3, atol=1e-6)


def test_full_precision_is_preferred(tmp_path, weights, config):
    torch.save({key: value.half() for key, value in weights.items()}, tmp_path / f"{MAIN}-fp16.pth")
    torch.save(weights, tmp_path / f"{MAIN}.pth")
    found = open_checkpoint(tmp_path, config)
    assert found.tensor("vae.image.quant_conv.weight").dtype is torch.float32


# Laziness


def test_modules_share_the_mapped_file(opened):
    parts = {
        "unet": ("diffuser.text.context_blocks.0.0.proj_in.weight", "text.context_blocks.0.0.proj_in.weight"),
        "autokl": ("vae.image.decoder.conv_out.weight", "decoder.conv_out.weight"),
    }
    for name, (key, parameter) in parts.items():
        module = LOADERS[name](opened, torch.float32)
        assert module.state_dict()[parameter].data_ptr() == opened.tensor(key).data_ptr()
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())


def test_opening_and_loading_take_no_anonymous_memory(tmp_path):
    def anonymous() -> int:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))

    if not Path("/proc/self/status").exists():
        pytest.skip("reads Linux's accounts of memory")
    key, big = "diffuser.image.data_blocks.0.0.weight", torch.zeros(64, 1 << 18)
    torch.save({key: big}, tmp_path / f"{MAIN}.pth")
    (tmp_path / "other").mkdir()
    save_file({key: big}, tmp_path / "other" / f"{MAIN}.safetensors")
    del big
    for folder in (tmp_path, tmp_path / "other"):
        before = anonymous()
        tensor = open_checkpoint(folder).tensor(key).reshape(-1).to(torch.float32)
        assert tensor.sum() == 0
        assert anonymous() - before < 16_000, "kB of a 64 MiB tensor were copied"


def test_only_the_parts_asked_for_are_loaded(opened):
    unet = checkpoints.load_unet(opened, torch.float32, ("image.data", "image.context", "text.context"))
    devices: dict[str, set[str]] = {}
    for key, value in unet.state_dict().items():
        devices.setdefault(checkpoints.unet_part(key), set()).add(value.device.type)
    assert devices == {
        "image.data": {"cpu"},
        "text.data": {"meta"},
        "image.context": {"cpu"},
        "text.context": {"cpu"},
        "time": {"meta"},
    }


def test_each_part_serves_its_graph(opened, golden):
    x, timesteps = golden["unet.text.x"], golden["unet.timesteps"]
    context = checkpoints.load_unet(opened, torch.float32, ("image.context",))
    pairs = {"image": context.context_keys_values("image", golden["unet.context.image"])}
    modulation = checkpoints.load_unet(opened, torch.float32, ("time",)).time_modulation("text", timesteps)
    step = checkpoints.load_unet(opened, torch.float32, ("text.data", "image.context"))
    noise = step.denoise("text", x, modulation, pairs)
    assert relative(noise, golden["unet.text.eps.context_image"]) < 1e-4


# What does not fit


def save_main(folder: Path, weights: Mapping[str, Tensor]) -> Path:
    torch.save(dict(weights), folder / f"{MAIN}.pth")
    return folder


def test_missing_unexpected_and_misshapen_tensors_are_listed(tmp_path, weights, config):
    gone, new = "diffuser.text.data_blocks.3.0.in_layers.0.weight", "diffuser.text.extra.weight"
    odd, integer = "vae.image.encoder.conv_in.weight", "vae.image.decoder.conv_in.weight"
    changed = {**without(weights, gone), new: torch.zeros(2), odd: torch.zeros(32, 3, 1, 1)}
    changed[integer] = weights[integer].to(torch.int8)
    lines = message(save_main(tmp_path, changed), config).splitlines()
    assert "1 missing, 1 unexpected, 1 wrong shape, 1 wrong type" in lines[0]
    assert lines[1:] == [
        f"missing: {gone}",
        f"unexpected: {new}",
        f"wrong shape: {odd} (found 32×3×1×1, expected 32×3×3×3)",
        f"wrong type: {integer} (found torch.int8, expected floating point)",
    ]


def test_long_lists_end_in_a_count_and_other_sizes_in_a_hint(tmp_path, weights):
    lines = message(save_main(tmp_path, weights)).splitlines()
    assert "the published model" in lines[0]
    assert "--config" in lines[0]
    assert len(lines) == 1 + 3 * 21
    assert all(line.endswith(" more") for line in lines[21::21])


def test_absent_autokl_names_its_file(tmp_path, weights, config):
    text = message(save_main(tmp_path, without(weights, "vae.image.")), config)
    assert "kl-f8.pth" in text.splitlines()[0]


def test_without_optimus_there_are_no_captions(tmp_path, weights, config):
    found = open_checkpoint(save_main(tmp_path, without(weights, "vae.text.")), config)
    check(found)
    assert not found.has_captions
    with pytest.raises(InputError, match=r"no tensor vae\.text\.decoder"):
        checkpoints.load_optimus_decoder(found, torch.float32)


@pytest.mark.parametrize("prefix", ["vae.text.encoder.", "vae.text.decoder.transformer.h.1.mlp"])
def test_a_part_of_optimus_is_an_error(tmp_path, weights, config, prefix):
    assert f"missing: {prefix}" in message(save_main(tmp_path, without(weights, prefix)), config)


def test_ones_in_a_shape_do_not_matter(tmp_path, weights, config, opened):
    squeezed = {key: v.flatten(1) if v.shape[2:] == (1, 1) else v for key, v in weights.items()}
    found = open_checkpoint(save_main(tmp_path, squeezed), config)
    check(found)
    assert_same_modules(found, opened)


def test_sizes_that_build_no_model(tmp_path, weights):
    sizes = {"clip": {"text": {"hidden_act": "no such activation"}}}
    (tmp_path / "sizes.json").write_text(json.dumps(sizes), encoding="utf-8")
    assert "no model can be built" in message(save_main(tmp_path, weights), tmp_path / "sizes.json")


class Code:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch unpickled",)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_that_hold_code_are_refused(tmp_path, zipped, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Code()}, tmp_path / f"{MAIN}.pth", _use_new_zipfile_serialization=zipped)
    text = message(tmp_path)
    assert "refused" in text
    assert ".safetensors" in text
    assert not Path("unpickled").exists()


DAMAGED = {
    "empty": b"",
    "text": b"<!DOCTYPE html> not found",
    "noise": bytes(range(256)) * 8,
    "zip": b"PK\x03\x04" + bytes(500),
    "pickle": pickle.dumps({"a": 1}),
}


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_files(tmp_path, content, suffix):
    (tmp_path / f"{MAIN}.{suffix}").write_bytes(content)
    text = message(tmp_path)
    assert f"{MAIN}.{suffix}: damaged" in text
    assert "\n" not in text


def test_truncated_files(tmp_path, golden_dir, weights):
    whole = (golden_dir / f"{MAIN}.pth").read_bytes()
    (tmp_path / f"{MAIN}.pth").write_bytes(whole[: len(whole) // 2])
    assert "damaged" in message(tmp_path)
    (tmp_path / f"{MAIN}.pth").unlink()
    path = tmp_path / f"{MAIN}.safetensors"
    save_file({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-1])
    assert "damaged" in message(tmp_path)


def test_files_without_named_tensors(tmp_path):
    for content in ([torch.zeros(2)], torch.zeros(2), {"epoch": 3}):
        torch.save(content, tmp_path / f"{MAIN}.pth")
        assert "no named tensors" in message(tmp_path)


def test_sources_that_are_no_checkpoint(tmp_path, config):
    assert "does not exist" in message(tmp_path / "nowhere")
    assert "is a file" in message(config)
    assert "no.json: cannot be read" in message(config.parent, tmp_path / "no.json")
    assert "no checkpoint in it" in message(tmp_path)


def test_nothing_is_written_beside_a_checkpoint(tmp_path, weights, config):
    save_main(tmp_path, weights)
    before = [(path, path.stat().st_mtime_ns) for path in sorted(tmp_path.rglob("*"))]
    found = open_checkpoint(tmp_path, config)
    check(found)
    modules_of(found)
    assert [(path, path.stat().st_mtime_ns) for path in sorted(tmp_path.rglob("*"))] == before


# The hub


def test_hub_without_a_network_is_one_line(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="owner/name: no folder here") as caught:
        open_checkpoint("owner/name")
    assert "\n" not in str(caught.value)


class Hub:
    """Stands in for the hub: a listing, and what was asked of the download."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, names: list[str], folder: Path) -> None:
        self.asked: dict[str, Any] = {}
        monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda api, name: names)
        monkeypatch.setattr("huggingface_hub.snapshot_download", self.download)
        self.folder = folder

    def download(self, name: str, **options: Any) -> str:
        self.asked = {"name": name, **options}
        return str(self.folder)


def test_hub_gives_the_needed_files_alone(monkeypatch, golden_dir, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = [f"{MAIN}.pth", f"{MAIN}-fp16.pth", "kl-f8.pth", "README.md", "other.bin"]
    hub = Hub(monkeypatch, names, golden_dir)
    found = open_checkpoint("owner/name")
    assert found.source == "owner/name"
    assert hub.asked["name"] == "owner/name"
    wanted = set(hub.asked["allow_patterns"])
    assert {f"{MAIN}.pth", "kl-f8.pth", "config.json", "tokenizers/*"} <= wanted
    assert not {f"{MAIN}-fp16.pth", "README.md", "other.bin"} & wanted


def test_hub_repository_of_something_else(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Hub(monkeypatch, ["pytorch_model.bin", "config.json"], tmp_path)
    with pytest.raises(InputError, match="no checkpoint in it"):
        open_checkpoint("owner/name")


# The diffusers folder


def randomise(module: nn.Module, generator: torch.Generator) -> None:
    """Every parameter gets its own values, so that no two can be taken for each other."""
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data += 0.1 * noise if parameter.dim() < 2 else 0.01 * noise


def unets(architecture: Architecture) -> tuple[UNet2DConditionModel, UNetFlatConditionModel]:
    sizes = architecture.unet
    shared = {
        "block_out_channels": tuple(sizes.model_channels * mult for mult in sizes.channel_mult),
        "layers_per_block": sizes.num_res_blocks[0],
        "cross_attention_dim": sizes.context_dim,
        "attention_head_dim": sizes.num_heads,
    }

    def kinds(flat: str) -> dict[str, tuple[str, ...]]:
        levels = sizes.attention_levels
        down = tuple(f"{'CrossAttn' * attends}DownBlock{flat}" for attends in levels)
        up = tuple(f"{'CrossAttn' * attends}UpBlock{flat}" for attends in reversed(levels))
        return {"down_block_types": down, "up_block_types": up}

    channels, features = sizes.latent_channels, (sizes.text_latent_dim, 1, 1)
    image = UNet2DConditionModel(
        sample_size=architecture.autokl.latent_size,
        in_channels=channels,
        out_channels=channels,
        **shared,
        **kinds("2D"),
    )
    text = UNetFlatConditionModel(in_channels=features, out_channels=features, **shared, **kinds("Flat"))
    return image.eval(), text.eval()


class Diffusers:
    """diffusers' and transformers' own models of the golden sizes, and the folder they were saved in."""

    def __init__(self, architecture: Architecture, folder: Path) -> None:
        generator = torch.Generator().manual_seed(5)
        self.folder = folder
        self.image_unet, self.text_unet = unets(architecture)
        widths = [architecture.autokl.channels * mult for mult in architecture.autokl.channel_mult]
        self.vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            block_out_channels=tuple(widths),
            layers_per_block=architecture.autokl.num_res_blocks,
            latent_channels=architecture.autokl.latent_channels,
            sample_size=256,
        ).eval()
        clip, dim = architecture.clip, architecture.clip.projection_dim
        self.image_encoder = CLIPVisionModelWithProjection(
            CLIPVisionConfig(**{**clip.vision, "projection_dim": dim})
        ).eval()
        self.text_encoder = CLIPTextModelWithProjection(
            CLIPTextConfig(**{**clip.text, "projection_dim": dim})
        ).eval()
        for module in self.modules().values():
            randomise(module, generator)
        self.text_unet.time_embedding.load_state_dict(self.image_unet.time_embedding.state_dict())
        for name, module in self.modules().items():
            module.save_pretrained(folder / name)

    def modules(self) -> dict[str, Any]:
        names = ("image_unet", "text_unet", "vae", "image_encoder", "text_encoder")
        return {name: getattr(self, name) for name in names}


@pytest.fixture(scope="module")
def diffusers(golden_dir, tmp_path_factory) -> Diffusers:
    folder = tmp_path_factory.mktemp("diffusers")
    (folder / "tokenizer").mkdir()
    return Diffusers(Architecture.load(golden_dir / "config.json"), folder)


@pytest.fixture(scope="module")
def from_diffusers(diffusers) -> Checkpoint:
    found = open_checkpoint(diffusers.folder)
    check(found)
    return found


def linked(diffusers: Diffusers, folder: Path, *without: str) -> Path:
    """A folder that shares the components' files, but for those named."""
    for path in sorted(diffusers.folder.rglob("*")):
        name = path.relative_to(diffusers.folder)
        if path.is_file() and name.as_posix() not in without:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(path)
    return folder


def test_diffusers_folder_tells_its_sizes(from_diffusers, diffusers, opened):
    assert from_diffusers.layout == "diffusers"
    assert from_diffusers.tokenizers == {"clip": diffusers.folder / "tokenizer"}
    assert not from_diffusers.has_captions
    found, expected = from_diffusers.architecture, opened.architecture
    assert (found.unet, found.autokl, found.schedule) == (expected.unet, expected.autokl, expected.schedule)
    assert found.clip.projection_dim == expected.clip.projection_dim
    for tower in ("text", "vision"):
        sizes = getattr(found.clip, tower)
        assert sizes.items() <= getattr(expected.clip, tower).items()


def test_image_flow_predicts_what_diffusers_predicts(from_diffusers, diffusers, golden, report):
    x, timesteps = golden["unet.image.x"], golden["unet.timesteps"]
    unet = checkpoints.load_unet(from_diffusers, torch.float32)
    context = golden["unet.context.image"]
    expected = diffusers.image_unet(x, timesteps, context).sample
    error = relative(unet("image", x, timesteps, {"image": context}), expected)
    report(f"checkpoint: image flow against diffusers, image context, relative error {error:.1e}")
    assert error < 1e-4


def test_text_flow_predicts_what_diffusers_predicts(from_diffusers, diffusers, golden, report):
    x, timesteps = golden["unet.text.x"], golden["unet.timesteps"]
    unet = checkpoints.load_unet(from_diffusers, torch.float32)
    context = golden["unet.context.text"]
    expected = diffusers.text_unet(x[:, :, None, None], timesteps, context).sample.flatten(1)
    error = relative(unet("text", x, timesteps, {"text": context}), expected)
    report(f"checkpoint: text flow against diffusers, text context, relative error {error:.1e}")
    assert error < 1e-4


class Dual(DualTransformer2DModel):
    """Takes the argument that diffusers 0.39 hands it and it does not know."""

    def forward(self, *inputs: Any, encoder_attention_mask: None = None, **options: Any) -> Any:
        return super().forward(*inputs, **options)


def dual(owner: nn.Module, other: nn.Module, tokens: list[int], text_weight: float) -> None:
    """Give every transformer of ``owner`` the one of ``other`` at its side, as diffusers' pipeline does.

    transformers[0] serves the image context and [1] the text context, which comes first in the sequence.
    """
    pair = (owner, other) if isinstance(owner, UNet2DConditionModel) else (other, owner)
    for name in [name for name, module in owner.named_modules() if isinstance(module, Transformer2DModel)]:
        parent, index = name.rsplit(".", 1)
        both = Dual(in_channels=32, num_attention_heads=1, attention_head_dim=32)
        for slot, unet in enumerate(pair):
            both.transformers[slot] = unet.get_submodule(name)
        both.mix_ratio, both.condition_lengths = text_weight, tokens
        owner.get_submodule(parent)[int(index)] = both


@pytest.mark.parametrize("flow", ["image", "text"])
def test_both_contexts_mix_as_in_diffusers(from_diffusers, diffusers, golden, report, flow):
    architecture, image_ratio = from_diffusers.architecture, 0.6
    contexts = {name: golden[f"unet.context.{name}"] for name in ("image", "text")}
    x, timesteps = golden[f"unet.{flow}.x"], golden["unet.timesteps"]
    unet = checkpoints.load_unet(from_diffusers, torch.float32)
    found = unet(flow, x, timesteps, contexts, image_ratio)

    image, text = unets(architecture)
    image.load_state_dict(diffusers.image_unet.state_dict())
    text.load_state_dict(diffusers.text_unet.state_dict())
    sequence = torch.cat([contexts["text"], contexts["image"]], dim=1)
    tokens = [contexts[name].shape[1] for name in ("text", "image")]
    if flow == "image":
        dual(image, text, tokens, 1 - image_ratio)
        expected = image(x, timesteps, sequence).sample
    else:
        dual(text, image, tokens, 1 - image_ratio)
        expected = text(x[:, :, None, None], timesteps, sequence).sample.flatten(1)
    error = relative(found, expected)
    report(f"checkpoint: {flow} flow against diffusers, both contexts, relative error {error:.1e}")
    assert error < 1e-4


def test_other_components_answer_as_in_diffusers(from_diffusers, diffusers, golden):
    vae = checkpoints.load_autokl(from_diffusers, torch.float32)
    scale = from_diffusers.architecture.autokl.scale_factor
    image, latent = golden["autokl.image"], golden["autokl.scaled_latent"]
    mean = diffusers.vae.encode(2 * image - 1).latent_dist.mean * diffusers.vae.config.scaling_factor
    assert relative(AutoKLEncode(vae, scale)(image), mean) < 1e-5
    decoded = (diffusers.vae.decode(latent / diffusers.vae.config.scaling_factor).sample / 2 + 0.5).clamp(
        0, 1
    )
    assert relative(AutoKLDecode(vae, scale)(latent), decoded) < 1e-5

    pixels, ids = golden["clip.image.pixel_values"], golden["clip.text.input_ids"]
    output = diffusers.image_encoder(pixels)
    tokens = diffusers.image_encoder.vision_model.post_layernorm(output.last_hidden_state)
    tokens = diffusers.image_encoder.visual_projection(tokens)
    context = checkpoints.load_clip_image(from_diffusers, torch.float32)(pixels)
    assert relative(context, tokens / tokens[:, :1].norm(dim=-1, keepdim=True)) < 1e-5
    output = diffusers.text_encoder(ids)
    tokens = diffusers.text_encoder.text_projection(output.last_hidden_state)
    context = checkpoints.load_clip_text(from_diffusers, torch.float32)(ids)
    assert relative(context, tokens / output.text_embeds.norm(dim=-1)[:, None, None]) < 1e-5


def test_both_layouts_of_the_same_weights_are_equal(
    from_diffusers, diffusers, weights, opened, tmp_path, config
):
    canonical = {
        key: from_diffusers.tensor(key).clone()
        for key in from_diffusers.keys()  # noqa: SIM118 - a method of our own
        if not key.startswith("diffuser.text.time_embed.")
    }
    optimus = {key: value for key, value in weights.items() if key.startswith("vae.text.")}
    published = tmp_path / "published"
    published.mkdir()
    torch.save({**canonical, **optimus}, published / f"{MAIN}.pth")
    first = open_checkpoint(published, config)
    check(first)

    folder = linked(diffusers, tmp_path / "folder")
    torch.save(below(optimus, "vae.text."), folder / "optimus-vae.pth")
    # The golden Optimus is too narrow to tell its heads, so its section comes from a file.
    sizes = json.loads(config.read_text(encoding="utf-8"))
    (tmp_path / "optimus.json").write_text(json.dumps({"optimus": sizes["optimus"]}), encoding="utf-8")
    second = open_checkpoint(folder, tmp_path / "optimus.json")
    check(second)
    assert second.has_captions
    assert_same_modules(second, first)


def test_golden_weights_in_diffusers_are_the_reference(opened, from_diffusers, diffusers, golden, report):
    """The names hold for the reference too: its weights in diffusers' modules give its noise."""
    image, text = unets(opened.architecture)
    prefix = {"image_unet": "diffuser.image.", "text_unet": "diffuser.text."}
    blocks = layouts.unet_blocks(opened.architecture.unet)
    for role, module in (("image_unet", image), ("text_unet", text)):
        state = {}
        for key, value in module.state_dict().items():
            name = layouts.diffusers_name(role, key, blocks, 0)
            assert name.startswith(prefix[role])
            shared = name.replace("text.time_embed", "image.time_embed")
            state[key] = opened.tensor(shared).reshape(value.shape)
        module.load_state_dict(state)
    timesteps = golden["unet.timesteps"]
    found = image(golden["unet.image.x"], timesteps, golden["unet.context.image"]).sample
    errors = [relative(found, golden["unet.image.eps.context_image"])]
    found = text(golden["unet.text.x"][:, :, None, None], timesteps, golden["unet.context.text"]).sample
    errors.append(relative(found.flatten(1), golden["unet.text.eps.context_text"]))
    report(f"checkpoint: diffusers on golden weights against the reference, relative error {max(errors):.1e}")
    assert max(errors) < 1e-4


@pytest.mark.slow
def test_golden_weights_in_a_diffusers_folder_make_a_bundle_that_verifies(
    opened, weights, golden_dir, config, cli, tmp_path
):
    """The whole way in the other layout: folder, sizes from its own files, command line, engine, reference."""
    source = Diffusers(opened.architecture, tmp_path / "checkpoint")
    blocks = layouts.unet_blocks(opened.architecture.unet)
    levels = len(opened.architecture.autokl.channel_mult)
    for role, module in source.modules().items():
        names = {key: layouts.diffusers_name(role, key, blocks, levels) for key in module.state_dict()}
        shared = {key: name.replace("text.time_embed", "image.time_embed") for key, name in names.items()}
        kept = {key: value for key, value in module.state_dict().items() if shared[key] not in weights}
        assert all(key.endswith("position_ids") for key in kept)
        state = {key: weights[name].reshape(module.state_dict()[key].shape) for key, name in shared.items()}
        module.load_state_dict({**state, **kept})
        module.save_pretrained(source.folder / role)
    torch.save(below(weights, "vae.text."), source.folder / "optimus-vae.pth")
    shutil.copytree(golden_dir / "tokenizers", source.folder / "tokenizers")
    # Neither the size of the pictures nor the heads of so narrow an Optimus are in the folder's own files.
    sizes = json.loads(config.read_text(encoding="utf-8"))
    given = {"optimus": sizes["optimus"], "autokl": sizes["autokl"]}
    (tmp_path / "sizes.json").write_text(json.dumps(given), encoding="utf-8")
    bundle = tmp_path / "bundle"
    exported = cli("export", source.folder, "--config", tmp_path / "sizes.json", "--out", bundle)
    assert exported.code == 0, exported.err
    verified = cli("verify", bundle, "--golden", golden_dir / "golden.safetensors")
    assert verified.code == 0, verified.out


def test_pickled_half_and_sharded_components(from_diffusers, diffusers, tmp_path):
    safetensors = "diffusion_pytorch_model.safetensors"
    gone = [f"{name}/{safetensors}" for name in ("vae", "image_unet")]
    folder = linked(diffusers, tmp_path, *gone, "text_unet/" + safetensors, "text_encoder/model.safetensors")
    diffusers.image_unet.save_pretrained(folder / "image_unet", max_shard_size="1MB")
    assert (folder / "image_unet" / f"{safetensors}.index.json").is_file()
    assert len(list((folder / "image_unet").glob("*-of-*"))) > 2
    torch.save(diffusers.vae.state_dict(), folder / "vae" / "diffusion_pytorch_model.bin")
    torch.save(diffusers.text_encoder.state_dict(), folder / "text_encoder" / "pytorch_model.bin")
    half = {key: value.half() for key, value in diffusers.text_unet.state_dict().items()}
    save_file(half, folder / "text_unet" / "diffusion_pytorch_model.fp16.safetensors")
    found = open_checkpoint(folder)
    check(found)
    names = ("unet", "autokl", "clip_text")
    others = modules_of(from_diffusers, names)
    for name, state in modules_of(found, names).items():
        for key, value in state.items():
            if name == "unet" and key.startswith("text."):
                assert torch.allclose(value, others[name][key], rtol=1e-3, atol=1e-6)
            else:
                assert torch.equal(value, others[name][key])


def test_time_embeddings_of_the_flows_must_agree(diffusers, tmp_path):
    folder = linked(diffusers, tmp_path, "text_unet/diffusion_pytorch_model.safetensors")
    state = dict(diffusers.text_unet.state_dict())
    state["time_embedding.linear_1.weight"] = -state["time_embedding.linear_1.weight"]
    save_file(state, folder / "text_unet" / "diffusion_pytorch_model.safetensors")
    lines = message(folder).splitlines()
    assert lines[1:] == ["not as in the image flow: diffuser.text.time_embed.0.weight"]


def test_old_names_of_the_autoencoders_attention(from_diffusers, diffusers, tmp_path):
    folder = linked(diffusers, tmp_path, "vae/diffusion_pytorch_model.safetensors")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for key, value in diffusers.vae.state_dict().items():
        for new, name in old.items():
            key = key.replace(f".{new}.", f".{name}.")
        state[key] = value
    assert "decoder.mid_block.attentions.0.proj_attn.weight" in state
    torch.save(state, folder / "vae" / "diffusion_pytorch_model.bin")
    found = open_checkpoint(folder)
    check(found)
    assert_same_modules(found, from_diffusers, ("autokl",))


def changed(folder: Path, name: str, **values: Any) -> None:
    """Give a linked configuration other values."""
    path = folder / name
    mapping = {**json.loads(path.read_text(encoding="utf-8")), **values}
    path.unlink()
    path.write_text(json.dumps(mapping), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("image_unet/config.json", {"act_fn": "gelu"}, "image_unet/config.json: act_fn is 'gelu'"),
        ("text_unet/config.json", {"attention_head_dim": 8}, "differ in attention_head_dim"),
        ("text_unet/config.json", {"cross_attention_dim": "wide"}, "differ in cross_attention_dim"),
        ("image_unet/config.json", {"block_out_channels": [32, 48, 64]}, "differ in block_out_channels"),
        ("image_unet/config.json", {"sample_size": [16, 8]}, "only squares"),
        ("vae/config.json", {"block_out_channels": [32, 48]}, "not multiples"),
        ("vae/config.json", {"block_out_channels": 32}, "not understood"),
        ("vae/config.json", {"latent_channels": "four"}, "int is expected"),
        ("text_encoder/config.json", {"projection_dim": 7}, "different widths, 7 and 32"),
        ("text_encoder/config.json", {"hidden_size": 33}, "does not divide by its 4 heads"),
    ],
)
def test_configurations_that_cannot_be_exported(diffusers, tmp_path, name, values, expected):
    folder = linked(diffusers, tmp_path)
    changed(folder, name, **values)
    text = message(folder, checked=False)
    assert expected in text
    assert "\n" not in text


def test_incomplete_diffusers_folders(diffusers, tmp_path):
    folder = linked(diffusers, tmp_path / "a", "vae/diffusion_pytorch_model.safetensors")
    assert "without weights in vae" in message(folder)
    folder = linked(diffusers, tmp_path / "b", "vae/config.json")
    assert "lack 'block_out_channels'" in message(folder)
    folder = linked(diffusers, tmp_path / "c", "image_unet/diffusion_pytorch_model.safetensors")
    index = folder / "image_unet" / "diffusion_pytorch_model.safetensors.index.json"
    for weight_map, expected in (
        ({"a": "gone.safetensors"}, "gone"),
        ({"a": "../b"}, "not an index"),
        (3, "not an"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
        assert expected in message(folder)


def test_optimus_too_narrow_to_tell_its_heads(diffusers, weights, tmp_path):
    folder = linked(diffusers, tmp_path)
    torch.save(below(weights, "vae.text."), folder / "optimus-vae.pth")
    assert "--config" in message(folder)
