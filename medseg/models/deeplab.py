"""DeepLabV3+."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from medseg.models.blocks import conv_norm
from medseg.models.network import Network, enlarge, require

Encoder = Literal["resnet18", "resnet34", "resnet50", "resnet101"]

STAGE_WIDTHS = (64, 128, 256, 512)  # He 2016, table 1


class DeepLab(Network):
    """DeepLabV3+: a ResNet whose last stage is dilated instead of strided, a pyramid of dilated views, a small decoder.

    The pyramid looks at the coarse features (1/16 of the image) at five scales at once; the decoder joins them with
    early features (1/4) to sharpen the outline. Logits come at 1/4 of the size and are enlarged bilinearly.

    Good for: structures whose context matters (organs, large tumours) and many training slices. Small lesions of a
    few pixels are below its resolution of four pixels.

    Cost at the defaults, 1x3x256x256: 26.7 million parameters, 13.6 G multiply-adds; with
    resnet18 16.6 and 10.3, with resnet50 40.3 and 17.3.

    Source: Chen et al., ECCV 2018 (arXiv:1802.02611); the pyramid from Chen et al. 2017 (arXiv:1706.05587); the
    encoder from He et al., CVPR 2016 (arXiv:1512.03385). No weights are pretrained, where the papers start from
    ImageNet. The convolutions are plain, not depthwise separable (the paper's option for its Xception encoder).

    Args:
        in_channels: channels of the input.
        out_channels: logit maps.
        encoder: the depth of the ResNet.
        output_stride: 16, or 8 for twice as fine features; the whole network then works 2.3 times as much.
        rates: dilations of the three dilated 3x3 convolutions at output stride 16; doubled at 8.
        width: channels of the pyramid and of the decoder.
        low_level_width: channels to which the early features are reduced, lest they outweigh the pyramid.
        dropout: share of the pyramid's output values dropped, in training.

    Raises:
        ConfigError: CONFIG-VALUE, a setting out of its range.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 1,
        *,
        encoder: Encoder = "resnet34",
        output_stride: Literal[8, 16] = 16,
        rates: tuple[int, int, int] = (6, 12, 18),
        width: int = 256,
        low_level_width: int = 48,
        dropout: float = 0.1,
    ) -> None:
        fits = min(*rates, width, low_level_width) >= 1
        require(fits, "DeepLab", f"rates {rates}, width {width}, low_level_width {low_level_width}, wanted 1 or more")
        super().__init__(in_channels, out_channels, stride=output_stride, normalised=True)
        self.encoder = ResNet(in_channels, encoder, output_stride)
        scaled = [rate * 16 // output_stride for rate in rates]
        self.pyramid = Pyramid(self.encoder.high_width, width, scaled, dropout)
        self.reduce = conv_norm(self.encoder.low_width, low_level_width, 1)
        self.decoder = nn.Sequential(conv_norm(width + low_level_width, width), conv_norm(width, width))
        self.classifier = nn.Conv2d(width, out_channels, 1)

    def _logits(self, x: Tensor, auxiliary: bool) -> list[Tensor]:
        low, high = self.encoder(x)
        low = self.reduce(low)
        high = enlarge(self.pyramid(high), low)
        return [self.classifier(self.decoder(torch.cat([high, low], dim=1)))]


class Pyramid(nn.Module):
    """Atrous spatial pyramid pooling: a 1x1 convolution, dilated 3x3 ones, and the mean of the whole image.

    The image mean goes through a convolution with a bias and ReLU, without batch normalisation: one value for each
    image has no variance in a batch of one, and a poor estimate of it in the small batches that slices allow. The
    features that are averaged are normalised already, so that the branch has the others' scale.

    Args:
        in_channels: feature maps in.
        width: feature maps of each branch, and out.
        rates: dilation of each 3x3 branch, in pixels of the input.
        dropout: share of the output values dropped, in training.
    """

    def __init__(self, in_channels: int, width: int, rates: list[int], dropout: float) -> None:
        super().__init__()
        dilated = [conv_norm(in_channels, width, dilation=rate) for rate in rates]
        self.branches = nn.ModuleList([conv_norm(in_channels, width, 1), *dilated])
        self.image = nn.Sequential(nn.Conv2d(in_channels, width, 1), nn.ReLU(inplace=True))
        self.project = conv_norm(width * (len(rates) + 2), width, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, in_channels, h, w) to (b, width, h, w)."""
        # A plain mean, because adaptive pooling has no deterministic gradient on a GPU.
        image = self.image(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        views = [branch(x) for branch in self.branches]
        out: Tensor = self.dropout(self.project(torch.cat([*views, image], dim=1)))
        return out


class ResNet(nn.Module):
    """The ResNet encoder, with strides replaced by dilation once the output stride is reached.

    The replacement is exact: every second pixel of the dilated features is what the strided network computes with
    the same weights. So a stage's first block keeps the old dilation up to the layer that lost its stride.

    Args:
        in_channels: channels of the image.
        name: which of the paper's networks.
        output_stride: 8, 16 or 32 image pixels for each pixel of the output; 32 is the undilated network.

    Attributes:
        low_width: feature maps of the first output.
        high_width: feature maps of the second output.
    """

    def __init__(self, in_channels: int, name: Encoder, output_stride: int) -> None:
        super().__init__()
        block, depths = _architecture(name)
        self.stem = nn.Sequential(conv_norm(in_channels, 64, 7, stride=2), nn.MaxPool2d(3, 2, padding=1))
        self.stages = nn.ModuleList()
        channels, stride, dilation = 64, 4, 1
        for width, depth in zip(STAGE_WIDTHS, depths, strict=True):
            wanted = 2 if self.stages else 1  # the first stage has no stride: the stem pooled already
            step = wanted if stride * wanted <= output_stride else 1
            after = dilation * wanted // step
            blocks: list[nn.Module] = [block(channels, width, step, dilation, after)]
            channels = width * block.expansion
            blocks += [block(channels, width, 1, after, after) for _ in range(depth - 1)]
            self.stages.append(nn.Sequential(*blocks))
            stride, dilation = stride * step, after
        self.low_width = STAGE_WIDTHS[0] * block.expansion
        self.high_width = channels

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (b, in_channels, h, w) to the first stage's features, at 1/4, and the last one's, at 1/output_stride."""
        first, *others = self.stages
        low = x = first(self.stem(x))
        for stage in others:
            x = stage(x)
        return low, x


class _Basic(nn.Module):
    """Two 3x3 convolutions and a shortcut. The first one may stride: what follows it has the dilation `after`."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, before: int, after: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            conv_norm(in_channels, width, stride=stride, dilation=before),
            conv_norm(width, width, dilation=after, relu=False),
        )
        self.shortcut = _shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (self.layers(x) + self.shortcut(x)).relu_()
        return out


class _Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut. The 3x3 one strides, and nothing after it needs a dilation."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, before: int, after: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.layers = nn.Sequential(
            conv_norm(in_channels, width, 1),
            conv_norm(width, width, stride=stride, dilation=before),
            conv_norm(width, out_channels, 1, relu=False),
        )
        self.shortcut = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (self.layers(x) + self.shortcut(x)).relu_()
        return out


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if in_channels == out_channels and stride == 1:
        return nn.Identity()
    return conv_norm(in_channels, out_channels, 1, stride=stride, relu=False)


def _architecture(name: Encoder) -> tuple[type[_Basic] | type[_Bottleneck], tuple[int, int, int, int]]:
    match name:  # He 2016, table 1
        case "resnet18":
            return _Basic, (2, 2, 2, 2)
        case "resnet34":
            return _Basic, (3, 4, 6, 3)
        case "resnet50":
            return _Bottleneck, (3, 4, 6, 3)
        case "resnet101":
            return _Bottleneck, (3, 4, 23, 3)
