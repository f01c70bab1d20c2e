"""The networks whose features the field compares, as far as the layer that is compared, in plain torch.

Parameters are called as in torchvision, so that its weight files load as they are; torchvision itself is not
needed. Pictures (N, 3, H, W), normalised; every network gives the features of one layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = int | tuple[int, int]


class AlexNet(nn.Module):
    """The output of ``features[last]``, a rectified convolution: 4 is Alex(2), 11 is Alex(5).

    Krizhevsky 2014, arXiv 1404.5997: convolutions 0, 3, 6, 8 and 10, each rectified; pooled after 1 and 4.
    """

    def __init__(self, last: int) -> None:
        super().__init__()
        layers = [
            nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
        ]  # fmt: skip
        self.features = nn.Sequential(*layers[: last + 1])

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.features(pixels)
        return features


class Bottleneck(nn.Module):
    """A residual block: 1 x 1, 3 x 3 with the stride, 1 x 1 to four times the width."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))
            if stride != 1 or inputs != outputs
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNet50(nn.Module):
    """The averaged last map (N, 2048): He et al. 2016, arXiv 1512.03385. SwAV (arXiv 2006.09882) is one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for number, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
            stride = 1 if number == 1 else 2
            stage = [Bottleneck(inputs, width, stride)]
            stage += [Bottleneck(4 * width, width, 1) for _ in range(blocks - 1)]
            setattr(self, f"layer{number}", nn.Sequential(*stage))
            inputs = 4 * width

    def forward(self, pixels: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(pixels))), 3, 2, 1)
        for number in range(1, 5):
            x = getattr(self, f"layer{number}")(x)
        return x.mean(dim=(2, 3))


def _activated(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution, its batch norm and SiLU, by EfficientNet's numbers."""
    convolution = nn.Conv2d(
        inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
    )
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.SiLU())


class _Squeeze(nn.Module):
    """Channels weighted by what all of them say on average: arXiv 1709.01507."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights: Tensor = self.fc2(F.silu(self.fc1(x.mean(dim=(2, 3), keepdim=True))))
        return x * weights.sigmoid()


class _InvertedBottleneck(nn.Module):
    """Widened, filtered channel by channel, weighted, narrowed; around it a shortcut where shapes allow."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = inputs * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [_activated(inputs, wide, 1)]
        layers += [_activated(wide, wide, kernel, stride, wide), _Squeeze(wide, max(1, inputs // 4))]
        # Without its activation.
        layers.append(_activated(wide, outputs, 1)[:2])
        self.block = nn.Sequential(*layers)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(x)
        return x + y if self.shortcut else y


class EfficientNetB1(nn.Module):
    """The averaged last map (N, 1280): Tan and Le 2019, arXiv 1905.11946."""

    #: Expansion, kernel, stride, outputs and blocks of B0's stages; B1 has a tenth more blocks, rounded up.
    STAGES = (
        (1, 3, 1, 16, 1),
        (6, 3, 2, 24, 2),
        (6, 5, 2, 40, 2),
        (6, 3, 2, 80, 3),
        (6, 5, 1, 112, 3),
        (6, 5, 2, 192, 4),
        (6, 3, 1, 320, 1),
    )

    def __init__(self) -> None:
        super().__init__()
        inputs = 32
        layers: list[nn.Module] = [_activated(3, inputs, 3, 2)]
        for expansion, kernel, stride, outputs, blocks in self.STAGES:
            stage = [_InvertedBottleneck(inputs, outputs, expansion, kernel, stride)]
            more = math.ceil(1.1 * blocks) - 1
            stage += [_InvertedBottleneck(outputs, outputs, expansion, kernel, 1) for _ in range(more)]
            layers.append(nn.Sequential(*stage))
            inputs = outputs
        layers.append(_activated(inputs, 4 * inputs, 1))
        self.features = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.features(pixels)
        return features.mean(dim=(2, 3))


class _Convolution(nn.Module):
    """Inception's convolution: no bias, batch norm, rectified."""

    def __init__(self, inputs: int, outputs: int, kernel: Size, stride: int = 1, padding: Size = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


# Kernels with their paddings.
_ONE, _VALID3, _SQUARE3, _SQUARE5 = (1, 0), (3, 0), (3, 1), (5, 2)
_ROW3, _COLUMN3 = ((1, 3), (0, 1)), ((3, 1), (1, 0))
_ROW7, _COLUMN7 = ((1, 7), (0, 3)), ((7, 1), (3, 0))


class _Mixed(nn.Module):
    """Branches side by side, whose maps are put one after the other.

    A branch is a chain of convolutions, each the number of its maps and its kernel; two kernels are two convolutions
    side by side, which end the branch. The only one is called as its branch, one of several has its number behind:
    ``branch5x5_1``, ``branch5x5_2``, and two side by side are ``branch3x3_2a`` and ``branch3x3_2b``. The pool lies in
    front of the branch ``branch_pool`` or, where there is none, is a branch by itself. With ``halved``, the pool and
    the last convolutions have the stride 2.
    """

    def __init__(self, inputs: int, *, halved: bool = False, **branches: Sequence[tuple[Any, ...]]) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(3, 2) if halved else nn.AvgPool2d(3, 1, 1)
        self._chains: dict[str, list[list[str]]] = {}
        for branch, steps in branches.items():
            chain, width = self._chains.setdefault(branch, []), inputs
            for number, (outputs, *kernels) in enumerate(steps, start=1):
                name = branch if len(steps) == 1 else f"{branch}_{number}"
                stride = 2 if halved and number == len(steps) else 1
                chain.append([name + end for end in ("ab" if len(kernels) == 2 else [""])])
                for convolution, (kernel, padding) in zip(chain[-1], kernels, strict=True):
                    self.add_module(convolution, _Convolution(width, outputs, kernel, stride, padding))
                width = outputs

    def forward(self, x: Tensor) -> Tensor:
        maps: list[Tensor] = []
        for branch, chain in self._chains.items():
            ends = [self.pool(x) if branch == "branch_pool" else x]
            for names in chain:
                ends = [getattr(self, name)(ends[0]) for name in names]
            maps += ends
        if "branch_pool" not in self._chains:
            maps.append(self.pool(x))
        return torch.cat(maps, dim=1)


def _mixed5(inputs: int, pooled: int) -> _Mixed:
    return _Mixed(
        inputs,
        branch1x1=[(64, _ONE)],
        branch5x5=[(48, _ONE), (64, _SQUARE5)],
        branch3x3dbl=[(64, _ONE), (96, _SQUARE3), (96, _SQUARE3)],
        branch_pool=[(pooled, _ONE)],
    )


def _mixed6(width: int) -> _Mixed:
    one, row, column = (width, _ONE), (width, _ROW7), (width, _COLUMN7)
    return _Mixed(
        768,
        branch1x1=[(192, _ONE)],
        branch7x7=[one, row, (192, _COLUMN7)],
        branch7x7dbl=[one, column, row, column, (192, _ROW7)],
        branch_pool=[(192, _ONE)],
    )


def _mixed7(inputs: int) -> _Mixed:
    return _Mixed(
        inputs,
        branch1x1=[(320, _ONE)],
        branch3x3=[(384, _ONE), (384, _ROW3, _COLUMN3)],
        branch3x3dbl=[(448, _ONE), (384, _SQUARE3), (384, _ROW3, _COLUMN3)],
        branch_pool=[(192, _ONE)],
    )


class InceptionV3(nn.Module):
    """The averaged last map (N, 2048): Szegedy et al. 2016, arXiv 1512.00567. Pixels from -1 to 1."""

    def __init__(self) -> None:
        super().__init__()
        for name, layer in {
            "Conv2d_1a_3x3": _Convolution(3, 32, 3, stride=2),
            "Conv2d_2a_3x3": _Convolution(32, 32, 3),
            "Conv2d_2b_3x3": _Convolution(32, 64, 3, padding=1),
            "maxpool1": nn.MaxPool2d(3, 2),
            "Conv2d_3b_1x1": _Convolution(64, 80, 1),
            "Conv2d_4a_3x3": _Convolution(80, 192, 3),
            "maxpool2": nn.MaxPool2d(3, 2),
            "Mixed_5b": _mixed5(192, 32),
            "Mixed_5c": _mixed5(256, 64),
            "Mixed_5d": _mixed5(288, 64),
            "Mixed_6a": _Mixed(
                288,
                halved=True,
                branch3x3=[(384, _VALID3)],
                branch3x3dbl=[(64, _ONE), (96, _SQUARE3), (96, _VALID3)],
            ),
            "Mixed_6b": _mixed6(128),
            "Mixed_6c": _mixed6(160),
            "Mixed_6d": _mixed6(160),
            "Mixed_6e": _mixed6(192),
            "Mixed_7a": _Mixed(
                768,
                halved=True,
                branch3x3=[(192, _ONE), (320, _VALID3)],
                branch7x7x3=[(192, _ONE), (192, _ROW7), (192, _COLUMN7), (192, _VALID3)],
            ),
            "Mixed_7b": _mixed7(1280),
            "Mixed_7c": _mixed7(2048),
        }.items():
            self.add_module(name, layer)

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels
        for layer in self.children():
            x = layer(x)
        return x.mean(dim=(2, 3))
