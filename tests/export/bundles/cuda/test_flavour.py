"""Flavours mean what their graphs do, at the phantom's sizes and at the published widths."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import onnx_ir as ir
import pytest

from unibrain_rt.export.bundles.cuda.flavour import cuda_flavour, fuse
from unibrain_rt.export.bundles.cuda.graph_edit import DOMAIN
from unibrain_rt.export.bundles.cuda.group_norms import DRAFT
from unibrain_rt.export.bundles.precision import set_precision

flavours = importlib.import_module("flavours")

GRAPHS = ("unet_image_step", "unet_text_step", "autokl_decode", "optimus_decode")
WIDE = ("unet_image_step", "unet_text_step")
FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


@pytest.fixture(scope="module")
def wide() -> Callable[[str], ir.Model]:
    """Step graphs of one level with the published widths, which the phantom is too narrow for."""
    torch = pytest.importorskip("torch")
    from unibrain_rt.export.bundles.architecture import UNetConfig
    from unibrain_rt.export.bundles.graphs import unet_step
    from unibrain_rt.export.bundles.models.unet import FourFlowUNet
    from unibrain_rt.export.bundles.trace import trace

    torch.manual_seed(0)
    sizes = UNetConfig(
        channel_mult=(1,), num_res_blocks=(1,), attention_levels=(True,), context_dim=32, text_latent_dim=64
    )
    unet = FourFlowUNet(sizes).eval()
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if name.endswith("bias") or "norm" in name:  # as they are made, they would hide what is left out
                parameter.add_(0.1 * torch.randn_like(parameter))
    architecture = SimpleNamespace(
        unet=sizes,
        clip=SimpleNamespace(image_tokens=17, text_tokens=7),
        autokl=SimpleNamespace(latent_size=8),
    )
    made = {
        f"unet_{flow}_step": trace(unet_step(unet, architecture, flow))  # type: ignore[arg-type]
        for flow in ("image", "text")
    }
    return lambda name: made[name].clone()


@pytest.fixture
def phantom(phantom_bundle: Path) -> Callable[[str], ir.Model]:
    return lambda name: flavours.read(phantom_bundle / "graphs" / f"{name}.onnx")


def contrib(model: ir.Model) -> Counter[str]:
    assert {node.domain for node in model.graph} <= {"", DOMAIN}
    assert DRAFT not in {node.domain for node in model.graph}
    return Counter(node.op_type for node in model.graph if node.domain == DOMAIN)


def check_meaning(model: ir.Model, report: Callable[[str], None], title: str) -> ir.Model:
    """In fp32 the same numbers, in fp16 as close to them as the plain graph. Returns the flavour."""
    given = flavours.inputs(model)
    wanted = flavours.run(model, given)
    fused = model.clone()
    fuse(fused)
    exact = flavours.distance(flavours.run(fused, given), wanted)
    plain, flavour = model.clone(), cuda_flavour(model)
    set_precision(plain, "fp16")
    apart, own = (flavours.distance(flavours.run(half, given), wanted) for half in (plain, flavour))
    report(f"{title}: fp32 {exact:.1e}, fp16 {own:.1e}, plain fp16 {apart:.1e}")
    assert exact < 1e-5
    assert own < 1.5 * apart + 1e-5
    return flavour


@pytest.mark.parametrize("name", GRAPHS)
def test_the_phantoms_graphs_keep_their_meaning(
    phantom: Callable[[str], ir.Model], report: Callable[[str], None], name: str
) -> None:
    flavour = check_meaning(phantom(name), report, f"flavour of the phantom's {name}")
    found = contrib(flavour)
    expected = {
        "unet_image_step": {"Attention", "GroupNorm", "MultiHeadAttention", "NhwcConv", "SkipGroupNorm"},
        "unet_text_step": {"Attention", "GroupNorm", "MultiHeadAttention", "SkipGroupNorm"},
        "autokl_decode": {"Attention", "GroupNorm", "NhwcConv", "SkipGroupNorm"},
        "optimus_decode": {"FastGelu", "FusedMatMul"},
    }[name]
    norms = set() if name == "autokl_decode" else {"SkipLayerNormalization"}
    assert set(found) == expected | norms
    # Each is known by what it means, and no meaning is there for nothing.
    assert {function.name for function in flavour.functions.values()} == set(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDE)
def test_published_widths_keep_their_meaning(
    wide: Callable[[str], ir.Model], report: Callable[[str], None], name: str
) -> None:
    model = wide(name)
    transformers = sum(node.op_type == "MultiHeadAttention" for node in model.graph)
    flavour = check_meaning(model, report, f"flavour of a {name} of 320 channels")
    found = contrib(flavour)
    assert transformers == 8
    assert found["BiasSplitGelu"] == found["Attention"] == found["MultiHeadAttention"] == transformers
    # The residual of the gated layers, and of what the contexts' mix is added to and no norm follows.
    assert found["BiasAdd"] >= transformers
    types = Counter(node.op_type for node in flavour.graph)
    assert types["LayerNormalization"] == types["InstanceNormalization"] == types["Erf"] == 0
    assert types["Softmax"] == types["Conv"] == types["Sigmoid"] == 0
    assert types["Cast"] <= 3  # of the latent, a coefficient and the noise


def test_tokens_in_great_number_keep_their_products_apart(phantom: Callable[[str], ir.Model]) -> None:
    """Where taking one product apart would cost more than two launches."""
    from unibrain_rt.export.bundles.cuda import attention

    model = phantom("unet_image_step")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_FEW_TOKENS", 1)
        given = flavours.inputs(model)
        fused = model.clone()
        fuse(fused)
    assert "Attention" not in contrib(fused)
    assert flavours.distance(flavours.run(fused, given), flavours.run(model, given)) < 1e-5


@pytest.mark.parametrize("name", ["unet_image_step", "unet_text_step"])
def test_the_samplers_update_stays_as_it_was(phantom: Callable[[str], ir.Model], name: str) -> None:
    def update(model: ir.Model) -> list[str]:
        scoped = [node for node in model.graph if "sampler_update" in node.metadata_props.get("scope", "")]
        kinds = [node.op_type for node in scoped if node.op_type in ("Add", "Sub", "Mul")]
        assert {value.dtype for node in scoped for value in node.outputs} == {FLOAT}
        return kinds

    flavour = cuda_flavour(phantom(name))
    assert update(flavour) == update(phantom(name))
    (cutting,) = (node for node in flavour.graph if node.inputs[:1] == (flavour.graph.inputs[3],))
    assert (cutting.op_type, len(cutting.outputs)) == ("Split", 7)


def test_what_kernels_want_in_fp32_is_and_all_else_is_half(phantom: Callable[[str], ir.Model]) -> None:
    for node in cuda_flavour(phantom("unet_image_step")).graph:
        if node.domain != DOMAIN:
            continue
        single = (1, 2) if node.op_type in ("GroupNorm", "SkipGroupNorm") else ()
        for place, value in enumerate(node.inputs):
            assert value is None or value.dtype == (FLOAT if place in single else HALF)


def test_the_model_stays_and_the_file_is_the_same_again(
    phantom: Callable[[str], ir.Model], tmp_path: Path
) -> None:
    model = phantom("unet_image_step")
    before = ir.to_proto(model).SerializeToString()
    for name in ("one", "other"):
        ir.save(cuda_flavour(model), tmp_path / name)
    assert ir.to_proto(model).SerializeToString() == before
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_sizes_that_are_not_known_leave_a_graph_alone(phantom: Callable[[str], ir.Model]) -> None:
    model = phantom("unet_image_step")
    before = [node.op_type for node in model.graph]
    next(iter(model.graph)).outputs[0].shape = None
    fuse(model)
    assert [node.op_type for node in model.graph] == before
