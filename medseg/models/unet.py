"""U-Net."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.models.network import Network, require

Norm = Literal["none", "batch", "instance", "group"]
Activation = Literal["relu", "leaky_relu"]

GROUPS = 8  # of group normalisation: eight channels each at 64, and a divisor of every usual width


class UNet(Network):
    """U-Net: an encoder that pools, a decoder that enlarges, and at each scale a skip that carries the detail across.

    With its defaults it is the small U-Net of two poolings: `enc1, pool1, enc2, pool2, bottleneck, upconv2, dec2,
    upconv1, dec1, final`, each block two 3x3 convolutions with ReLU, no normalisation, torch's own initialisation.
    Deeper ones continue the names (`enc3`, `pool3`, `upconv3`, `dec3`). A 2-D network like nnU-Net's is
    `UNet(widths=(32, 64, 128, 256, 512, 512), norm="instance", activation="leaky_relu", deep_supervision=True)`.

    Good for: nearly everything with few cases; sharp outlines. The default sees only 44 pixels across, so that large
    structures want more stages, and it needs a normalised input and a small learning rate: nothing inside normalises.

    Cost at the defaults, 1x3x256x256: 1.86 million parameters, 25.4 G multiply-adds (57 % of them in
    `dec1` and `dec2`).

    Source: Ronneberger, Fischer, Brox, MICCAI 2015 (arXiv:1505.04597), with padded convolutions; Isensee et al.,
    Nature Methods 2021 for the options; no weights are pretrained.

    Args:
        in_channels: channels of the input.
        out_channels: logit maps.
        widths: channels of each stage, two stages or more; the last is the bottleneck. n stages pool n - 1 times.
        norm: normalisation after each convolution; `group` has eight groups, or fewer where eight do not divide.
        activation: `relu`, or `leaky_relu` with slope 0.01.
        residual: a shortcut around each block (He 2016), by a 1x1 convolution where the width changes.
        deep_supervision: heads `aux2`, `aux3`, ... on the decoder's lower stages, for `training_logits` only.
        dropout: share of whole feature maps dropped after each block, in training.
        convs_per_stage: 3x3 convolutions in each block.

    Attributes:
        poolings: how often it halves the image.
        sees: pixels across, that the logit of one pixel depends on (normalisation apart).

    Raises:
        ConfigError: CONFIG-VALUE, a setting out of its range.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 1,
        *,
        widths: tuple[int, ...] = (64, 128, 256),
        norm: Norm = "none",
        activation: Activation = "relu",
        residual: bool = False,
        deep_supervision: bool = False,
        dropout: float = 0.0,
        convs_per_stage: int = 2,
    ) -> None:
        require(
            len(widths) >= 2 and min(widths) >= 1, "UNet", f"widths are {widths}, wanted two or more, each 1 or more"
        )
        require(convs_per_stage >= 1, "UNet", f"convs_per_stage is {convs_per_stage}, wanted 1 or more")
        super().__init__(in_channels, out_channels, stride=2 ** (len(widths) - 1), normalised=norm != "none")
        self.poolings = len(widths) - 1
        self.sees = _seen(self.poolings, convs_per_stage)
        block = partial(
            _block, convs=convs_per_stage, norm=norm, activation=activation, residual=residual, dropout=dropout
        )
        # The order of construction is the order of random numbers: equal seeds give equal weights for equal settings.
        for n, (before, width) in enumerate(zip((in_channels, *widths), widths[:-1], strict=False), start=1):
            self.add_module(f"enc{n}", block(before, width))
            self.add_module(f"pool{n}", nn.MaxPool2d(2, 2))
        self.bottleneck = block(widths[-2], widths[-1])
        for n in range(self.poolings, 0, -1):
            self.add_module(f"upconv{n}", nn.ConvTranspose2d(widths[n], widths[n - 1], 2, stride=2))
            self.add_module(f"dec{n}", block(2 * widths[n - 1], widths[n - 1]))
        self.final = nn.Conv2d(widths[0], out_channels, 1)
        self.supervised = range(2, self.poolings + 1) if deep_supervision else range(0)
        for n in self.supervised:
            self.add_module(f"aux{n}", nn.Conv2d(widths[n - 1], out_channels, 1))

    def _logits(self, x: Tensor, auxiliary: bool) -> list[Tensor]:
        skips = []
        for n in range(1, self.poolings + 1):
            x = getattr(self, f"enc{n}")(x)
            skips.append(x)
            x = getattr(self, f"pool{n}")(x)
        x = self.bottleneck(x)
        logits: list[Tensor] = []
        for n in range(self.poolings, 0, -1):
            x = getattr(self, f"upconv{n}")(x)
            x = getattr(self, f"dec{n}")(torch.cat([x, skips.pop()], dim=1))
            if auxiliary and n in self.supervised:
                logits.insert(0, getattr(self, f"aux{n}")(x))
        return [self.final(x), *logits]


def _seen(poolings: int, convs: int) -> int:
    """Return the receptive field: from a pixel of the logits back through the layers, the first and last pixel seen.

    The widest of all places that a pixel can have within the coarsest one.
    """
    widest = 0
    for place in range(1 << poolings):
        first = last = place
        for _ in range(poolings):  # back through a decoder stage, to the scale below it
            first, last = (first - convs) // 2, (last + convs) // 2
        first, last = first - convs, last + convs
        for _ in range(poolings):  # back through a pooling and an encoder stage
            first, last = 2 * first - convs, 2 * last + 1 + convs
        widest = max(widest, last - first + 1)
    return widest


class _Residual(nn.Module):
    """Layers with a shortcut around them, added before the last activation."""

    def __init__(self, layers: list[nn.Module], activation: nn.Module, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.layers(x) + self.shortcut(x))
        return out


def _block(
    in_channels: int,
    out_channels: int,
    *,
    convs: int,
    norm: Norm,
    activation: Activation,
    residual: bool,
    dropout: float,
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before in (in_channels, *[out_channels] * (convs - 1)):
        # Batch and instance normalisation subtract each channel's mean, and with it any bias.
        conv = nn.Conv2d(before, out_channels, 3, padding=1, bias=norm in ("none", "group"))
        layers += [conv, *_norm(norm, out_channels), _activation(activation)]
    if residual:
        *inner, last = layers
        layers = [_Residual(inner, last, in_channels, out_channels)]
    return nn.Sequential(*layers, *([nn.Dropout2d(dropout)] if dropout else []))


def _norm(norm: Norm, width: int) -> list[nn.Module]:
    match norm:
        case "none":
            return []
        case "batch":
            return [nn.BatchNorm2d(width)]
        case "instance":
            return [_InstanceNorm(width, affine=True)]
        case "group":
            return [nn.GroupNorm(math.gcd(GROUPS, width), width)]


class _InstanceNorm(nn.InstanceNorm2d):
    """Instance normalisation; trained on a CPU as group normalisation of one channel a group.

    The numbers are the same but for rounding; a training step of the default network takes 0.84 to 0.95 of the time.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.device.type == "cpu":
            return F.group_norm(input, self.num_features, self.weight, self.bias, self.eps)
        return super().forward(input)


def _activation(activation: Activation) -> nn.Module:
    match activation:
        case "relu":
            return nn.ReLU(inplace=True)
        case "leaky_relu":
            return nn.LeakyReLU(0.01, inplace=True)
