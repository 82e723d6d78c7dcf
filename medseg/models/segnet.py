"""SegNet."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from medseg.models.blocks import conv_norm
from medseg.models.network import Network, require


class SegNet(Network):
    """SegNet: the thirteen convolutions of VGG16 and their mirror, joined by pooling indices instead of feature maps.

    Each pooling remembers which of its four pixels was the largest; the decoder puts its values back on just those
    pixels and fills the gaps by convolution. The last of the thirteen decoder convolutions is the classifier.

    Good for: little memory at prediction (no feature map is kept for a skip), blob-like structures with clear edges.
    Its depth wants many slices; thin structures suffer, since only indices cross over.

    Cost at the defaults, 1x3x256x256: 29.4 million parameters, 40 G multiply-adds.

    Source: Badrinarayanan, Kendall, Cipolla, IEEE PAMI 39(12), 2017 (arXiv:1511.00561); no weights are pretrained.

    Args:
        in_channels: channels of the input.
        out_channels: logit maps.
        widths: channels of each stage.
        convs_per_stage: convolutions of each stage, of the encoder and of the decoder.

    Raises:
        ConfigError: CONFIG-VALUE, a setting out of its range.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 1,
        *,
        widths: tuple[int, ...] = (64, 128, 256, 512, 512),
        convs_per_stage: tuple[int, ...] = (2, 2, 3, 3, 3),
    ) -> None:
        fits = len(widths) == len(convs_per_stage) >= 1 and min(*widths, *convs_per_stage) >= 1
        require(fits, "SegNet", f"widths {widths} and convs_per_stage {convs_per_stage}, wanted a pair for each stage")
        # Nothing is convolved after the last pooling: the deepest normalised layer has two pixels a side or more.
        super().__init__(in_channels, out_channels, stride=2 ** len(widths), normalised=False)
        self.encoder = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for before, width, convs in zip((in_channels, *widths[:-1]), widths, convs_per_stage, strict=True):
            self.encoder.append(_stage([before] + [width] * convs))
            # The first decoder stage ends in the classifier, which replaces its last convolution.
            channels = [width] * convs + ([before] if len(self.encoder) > 1 else [])
            self.decoder.insert(0, _stage(channels))
        self.classifier = nn.Conv2d(widths[0], out_channels, 3, padding=1)

    def _logits(self, x: Tensor, auxiliary: bool) -> list[Tensor]:
        places = []
        for stage in self.encoder:
            x, place = F.max_pool2d(stage(x), 2, return_indices=True)
            places.append(place)
        for stage in self.decoder:
            x = stage(unpool(x, places.pop()))
        return [self.classifier(x)]


def unpool(x: Tensor, places: Tensor) -> Tensor:
    """Put each value back on the pixel that max pooling by 2 took it from; the other pixels are zero.

    It gives what `torch.nn.MaxUnpool2d(2)` gives. Unlike that, it runs under `torch.use_deterministic_algorithms`
    (no two windows share a pixel, so that the order of writing cannot matter), keeps bfloat16 under autocast, and
    hands channels-last memory to the convolution that follows.

    Args:
        x: (b, c, h, w) values.
        places: (b, c, h, w) int64, the flat index of each value in its (2 h, 2 w) image, as `max_pool2d` returns it.

    Returns:
        (b, c, 2 h, 2 w), of the dtype of `x`.
    """
    b, c, h, w = x.shape
    values, pixels = (each.permute(0, 2, 3, 1).reshape(b, h * w, c) for each in (x, places))
    image = x.new_zeros(b, 4 * h * w, c).scatter(1, pixels, values)
    return image.view(b, 2 * h, 2 * w, c).permute(0, 3, 1, 2)


def _stage(channels: list[int]) -> nn.Sequential:
    return nn.Sequential(*(conv_norm(before, after) for before, after in pairwise(channels)))
