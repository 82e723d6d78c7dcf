"""BiSeNetV2."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.models.blocks import conv_norm
from medseg.models.network import Network, enlarge, require


class BiSeNet(Network):
    """BiSeNetV2: a wide and shallow branch for detail, a narrow and deep one for meaning, each guiding the other.

    The detail branch works at 1/8 of the image; the semantic branch goes down to 1/32 by layers that gather with
    cheap depthwise convolutions. Booster heads on the semantic branch help training and cost prediction nothing.

    Good for: speed, on a CPU above all; a first look at a large archive. Logits come at 1/8 of the size and are
    enlarged bilinearly, so that lesions of a few pixels are lost and outlines are smooth.

    Cost at the defaults, 1x3x256x256: 3.62 million parameters, 3.06 G multiply-adds, 1.21 of
    them in the main head; 3.34 million parameters without boosters.

    Source: Yu et al., IJCV 129, 2021 (arXiv:2004.02147), layers as in its table 1; no weights are pretrained.

    Args:
        in_channels: channels of the input.
        out_channels: logit maps.
        detail_widths: channels of the three stages of the detail branch; the last is also the union's.
        semantic_widths: channels of the semantic branch at 1/4, 1/8, 1/16 and 1/32.
        expansion: widening of the depthwise convolutions inside the gather-and-expansion layers.
        head_width: channels of the main head, which the paper leaves free.
        booster: whether `training_logits` has the auxiliary heads, at 1/4, 1/8, 1/16 and 1/32.
        booster_width: channels of those heads.

    Raises:
        ConfigError: CONFIG-VALUE, a setting out of its range.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 1,
        *,
        detail_widths: tuple[int, int, int] = (64, 64, 128),
        semantic_widths: tuple[int, int, int, int] = (16, 32, 64, 128),
        expansion: int = 6,
        head_width: int = 1024,
        booster: bool = True,
        booster_width: int = 128,
    ) -> None:
        numbers = (*detail_widths, *semantic_widths, expansion, head_width, booster_width)
        require(min(numbers) >= 1, "BiSeNet", "a width or the expansion is below 1")
        require(semantic_widths[0] >= 2, "BiSeNet", f"semantic_widths {semantic_widths}, wanted a stem of 2 or more")
        super().__init__(in_channels, out_channels, stride=32, normalised=True)
        self.detail = _detail(in_channels, detail_widths)
        self.semantic = Semantic(in_channels, semantic_widths, expansion)
        self.aggregation = Aggregation(detail_widths[-1], semantic_widths[-1])
        self.head = _head(detail_widths[-1], head_width, out_channels)
        self.boosters = nn.ModuleList(
            _head(width, booster_width, out_channels) for width in (semantic_widths if booster else ())
        )

    def _logits(self, x: Tensor, auxiliary: bool) -> list[Tensor]:
        *stages, context = self.semantic(x)
        logits = [self.head(self.aggregation(self.detail(x), context))]
        if auxiliary:
            # Without boosters the zip is empty, not short by mistake.
            logits += [booster(stage) for booster, stage in zip(self.boosters, stages, strict=False)]
        return logits


class Semantic(nn.Module):
    """The semantic branch: stem, three stages of gather-and-expansion, and the context of the whole image.

    Args:
        in_channels: channels of the image.
        widths: channels at 1/4, 1/8, 1/16 and 1/32.
        expansion: widening inside the gather-and-expansion layers.
    """

    def __init__(self, in_channels: int, widths: tuple[int, int, int, int], expansion: int) -> None:
        super().__init__()
        first, second, third, fourth = widths

        def gather(before: int, width: int, repeats: int) -> nn.Sequential:
            onward = [_Gather(width, width, expansion, stride=1) for _ in range(repeats)]
            return nn.Sequential(_Gather(before, width, expansion, stride=2), *onward)

        self.stem = _Stem(in_channels, first)
        # The paper's table 1: one, one and three layers without stride after the one with stride.
        self.stages = nn.ModuleList([gather(first, second, 1), gather(second, third, 1), gather(third, fourth, 3)])
        self.context = _Context(fourth)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map (b, in_channels, h, w) to the features at 1/4, 1/8, 1/16, 1/32, and those at 1/32 with context."""
        features = [self.stem(x)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return [*features, self.context(features[-1])]


class Aggregation(nn.Module):
    """Bilateral guided aggregation: each branch gates the other, at 1/8 and at 1/32, and the two are summed.

    Args:
        detail: channels of the detail branch, and out.
        semantic: channels of the semantic branch.
    """

    def __init__(self, detail: int, semantic: int) -> None:
        super().__init__()
        self.detail_fine = nn.Sequential(
            conv_norm(detail, detail, groups=detail, relu=False), nn.Conv2d(detail, detail, 1)
        )
        # Zeros beyond the border do not count in the mean, or features would fade at the edge of the image.
        self.detail_coarse = nn.Sequential(
            conv_norm(detail, detail, stride=2, relu=False), nn.AvgPool2d(3, 2, padding=1, count_include_pad=False)
        )
        self.semantic_fine = conv_norm(semantic, detail, relu=False)
        self.semantic_coarse = nn.Sequential(
            conv_norm(semantic, semantic, groups=semantic, relu=False), nn.Conv2d(semantic, detail, 1)
        )
        self.union = conv_norm(detail, detail, relu=False)

    def forward(self, detail: Tensor, semantic: Tensor) -> Tensor:
        """Join (b, detail, h, w) and (b, semantic, h / 4, w / 4) to (b, detail, h, w)."""
        fine = self.detail_fine(detail) * enlarge(self.semantic_fine(semantic), detail).sigmoid()
        coarse = self.detail_coarse(detail) * self.semantic_coarse(semantic).sigmoid()
        out: Tensor = self.union(fine + enlarge(coarse, detail))
        return out


class _Stem(nn.Module):
    """To 1/4 of the image in two ways at once: by convolution and by pooling."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.entry = conv_norm(in_channels, width, stride=2)
        self.convolved = nn.Sequential(conv_norm(width, width // 2, 1), conv_norm(width // 2, width, stride=2))
        self.union = conv_norm(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x)
        pooled = F.max_pool2d(x, 3, stride=2, padding=1)
        out: Tensor = self.union(torch.cat([self.convolved(x), pooled], dim=1))
        return out


class _Gather(nn.Module):
    """Gather and expansion: a 3x3 convolution, one or two depthwise ones over wider features, and a projection.

    As the paper draws it, only the first convolution and the sum have a ReLU.
    """

    def __init__(self, in_channels: int, out_channels: int, expansion: int, *, stride: int) -> None:
        super().__init__()
        wide = in_channels * expansion
        layers = [
            conv_norm(in_channels, in_channels),
            conv_norm(in_channels, wide, stride=stride, groups=in_channels, relu=False),
        ]
        self.shortcut: nn.Module = nn.Identity()
        if stride == 2:
            layers.append(conv_norm(wide, wide, groups=wide, relu=False))
            self.shortcut = nn.Sequential(
                conv_norm(in_channels, in_channels, stride=2, groups=in_channels, relu=False),
                conv_norm(in_channels, out_channels, 1, relu=False),
            )
        self.layers = nn.Sequential(*layers, conv_norm(wide, out_channels, 1, relu=False))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (self.layers(x) + self.shortcut(x)).relu_()
        return out


class _Context(nn.Module):
    """Context embedding: the mean of the image, through a 1x1 convolution, added to every pixel.

    The paper normalises the mean by batch; here a bias does, for the same reason as in DeepLab's `Pyramid`: one value
    for each image has no variance in a batch of one.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU(inplace=True))
        self.last = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(x + self.embed(x.mean((2, 3), keepdim=True)))
        return out


def _detail(in_channels: int, widths: tuple[int, int, int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    # The paper's table 1: two, three and three convolutions, the first of each stage with stride.
    for before, width, convs in zip((in_channels, *widths), widths, (2, 3, 3), strict=False):
        layers += [conv_norm(before, width, stride=2), *(conv_norm(width, width) for _ in range(convs - 1))]
    return nn.Sequential(*layers)


def _head(in_channels: int, width: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(conv_norm(in_channels, width), nn.Conv2d(width, out_channels, 1))
