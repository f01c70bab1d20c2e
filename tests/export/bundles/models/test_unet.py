from __future__ import annotations

import pytest
import torch

from unibrain_rt.export.bundles.architecture import UNetConfig
from unibrain_rt.export.bundles.models.unet import CONTEXTS, Flow, FourFlowUNet


@pytest.fixture(scope="module")
def sizes() -> UNetConfig:
    return UNetConfig(
        latent_channels=4,
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=(1, 1),
        attention_levels=(True, True),
        num_heads=4,
        context_dim=24,
        text_latent_dim=40,
        text_second_dim=2,
    )


@pytest.fixture(scope="module")
def unet(sizes: UNetConfig) -> FourFlowUNet:
    torch.manual_seed(0)
    return FourFlowUNet(sizes).double().eval()


@pytest.mark.parametrize("flow", ["image", "text"])
@torch.no_grad()
def test_one_latent_under_two_contexts_need_not_be_repeated(
    unet: FourFlowUNet, sizes: UNetConfig, flow: Flow
) -> None:
    shape = (sizes.latent_channels, 16, 16) if flow == "image" else (sizes.text_latent_dim,)
    latent = torch.randn(1, *shape, dtype=torch.float64)
    modulation = unet.time_modulation(flow, torch.tensor([500]))
    keys_values = {
        name: unet.context_keys_values(name, torch.randn(2, 5, sizes.context_dim).double())
        for name in CONTEXTS
    }
    once = unet.denoise(flow, latent, modulation, keys_values, 0.6)
    repeated = unet.denoise(flow, torch.cat([latent, latent]), modulation, keys_values, 0.6)
    assert once.shape == (2, *shape)
    torch.testing.assert_close(once, repeated, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(once[0], once[1])
