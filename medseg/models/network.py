"""What all networks share: the call, padding to the network's stride, and their cost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from medseg.errors import ConfigError, ModelError


class Network(nn.Module, ABC):
    """A 2-D network that gives one logit map per output channel, at the size of its input.

    Any height and width from 1 up are accepted: the input is padded at its lower and right edge to a multiple of
    `stride`, and at least to `smallest`, by repeating the edge pixels (which, unlike reflection, works for a border of
    any width and brings in no false contrast), and the logits are cropped back. No weights are pretrained.

    Args:
        in_channels: channels of the input: image channels times slice context.
        out_channels: logit maps: the labels with the background, or 1 for a binary network.
        stride: the factor by which the deepest layer is coarser than the input.
        normalised: whether the deepest layer is normalised over its pixels. Then inputs are padded to at least twice
            the stride: one pixel alone has no variance, and batch or instance normalisation would refuse it.

    Attributes:
        in_channels: as above.
        out_channels: as above.
        stride: as above.
        smallest: the smallest height and width that reach the layers.

    Raises:
        ConfigError: CONFIG-VALUE, a number of channels below 1.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, normalised: bool) -> None:
        super().__init__()
        for setting, count in (("in_channels", in_channels), ("out_channels", out_channels)):
            require(count >= 1, type(self).__name__, f"{setting} is {count}, wanted 1 or more")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride
        self.smallest = 2 * stride if normalised else stride

    @abstractmethod
    def _logits(self, x: Tensor, auxiliary: bool) -> list[Tensor]:
        """The layers, on an input that fits the stride.

        Args:
            x: (b, in_channels, h, w), h and w multiples of `stride`.
            auxiliary: whether to add the auxiliary heads' logits.

        Returns:
            The main logits first; each (b, out_channels, h / n, w / n), n its own power of two.
        """

    def forward(self, x: Tensor) -> Tensor:
        """Logits of an image.

        Args:
            x: (b, in_channels, h, w), floating point, any h, w >= 1.

        Returns:
            (b, out_channels, h, w) logits: no softmax or sigmoid is applied.

        Raises:
            ModelError: MODEL-SHAPE, another number of axes or channels, or an empty image.
        """
        return self.with_layers(self.layers, x)

    def layers(self, x: Tensor) -> Tensor:
        """The layers alone: what another engine may compute in their stead.

        Args:
            x: (b, in_channels, h, w), h and w multiples of `stride` and at least `smallest`.

        Returns:
            (b, out_channels, h / n, w / n), the main logits before they are enlarged, n the network's own power of two.
        """
        return self._logits(x, auxiliary=False)[0]

    def with_layers(self, layers: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """As `forward`, with other layers: pads before them, enlarges and crops after them."""
        return self._around(lambda padded: [layers(padded)], x)[0]

    def training_logits(self, x: Tensor) -> list[Tensor]:
        """Logits of the main head and of every auxiliary head, for the training loss only.

        Args:
            x: as for `forward`.

        Returns:
            The main logits first, then the auxiliary ones from the finest stage to the coarsest. All have the shape
            (b, out_channels, h, w): coarser ones are enlarged bilinearly, so that one reference serves every head.
            A network without auxiliary heads returns the main logits alone.

        Raises:
            ModelError: as for `forward`.
        """
        return self._around(lambda padded: self._logits(padded, auxiliary=True), x)

    def _around(self, layers: Callable[[Tensor], list[Tensor]], x: Tensor) -> list[Tensor]:
        self._check(x)
        height, width = x.shape[-2:]
        padded = self._pad(x)
        return [enlarge(each, padded)[..., :height, :width] for each in layers(padded)]

    def _check(self, x: Tensor) -> None:
        if x.ndim == 4 and x.shape[1] == self.in_channels and min(x.shape) >= 1:
            return
        raise ModelError(
            "MODEL-SHAPE",
            type(self).__name__,
            f"the input has the shape {tuple(x.shape)}, wanted (b, {self.in_channels}, h, w) with no empty axis",
            "Give the channels that the network was built with: image channels times slice context.",
        )

    def _pad(self, x: Tensor) -> Tensor:
        height, width = (max(-(-size // self.stride) * self.stride, self.smallest) for size in x.shape[-2:])
        below, right = height - x.shape[-2], width - x.shape[-1]
        return F.pad(x, (0, right, 0, below), mode="replicate") if below or right else x


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Attributes:
        parameters: trainable numbers, auxiliary heads included.
        multiply_adds: multiply-add pairs of one prediction of one image; convolutions count, the rest is noise.
    """

    parameters: int
    multiply_adds: int


def describe(network: Network, in_channels: int, size: int = 256) -> Cost:
    """Count the parameters and the multiply-adds of a network.

    Nothing is computed (shapes alone go through the layers), and the network's weights, statistics and mode stay as
    they are, so that it takes milliseconds at any size.

    Args:
        network: the network, on any device.
        in_channels: channels of the image.
        size: height and width of the image, pixels.

    Returns:
        The cost of the prediction of one image of (1, in_channels, size, size).

    Raises:
        ModelError: MODEL-SHAPE, the network takes another number of channels.
    """
    state = {name: tensor.to("meta") for name, tensor in network.state_dict().items()}
    image = torch.empty(1, in_channels, size, size, device="meta", dtype=next(network.parameters()).dtype)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        functional_call(network, state, (image,))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Cost(parameters, counter.get_total_flops() // 2)  # a multiply-add is two floating point operations


def enlarge(x: Tensor, like: Tensor) -> Tensor:
    """Enlarge feature maps bilinearly to the height and width of others.

    Args:
        x: (b, c, h, w).
        like: (b, any, H, W).

    Returns:
        (b, c, H, W); `x` itself when it has that size.
    """
    size = like.shape[-2:]
    return x if x.shape[-2:] == size else F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def require(condition: bool, where: str, problem: str) -> None:
    """Refuse settings that make no network.

    Args:
        condition: what must hold.
        where: the network's name.
        problem: what was found and what was wanted.

    Raises:
        ConfigError: CONFIG-VALUE, the condition does not hold.
    """
    if not condition:
        raise ConfigError("CONFIG-VALUE", where, problem, "Correct the network's settings.")
