"""The four networks behind one call, `build`, and their cost, `describe`.

Every network maps (b, in_channels, h, w) to (b, out_channels, h, w) logits for any h and w; see `Network`.
"""

from __future__ import annotations

from medseg.config.networks import (
    FITTED_WIDTHS,
    BiSeNetConfig,
    DeepLabConfig,
    ModelConfig,
    SegNetConfig,
    UNetConfig,
)
from medseg.models.bisenet import BiSeNet
from medseg.models.deeplab import DeepLab
from medseg.models.network import Cost, Network, describe
from medseg.models.segnet import SegNet
from medseg.models.unet import UNet

__all__ = ["BiSeNet", "Cost", "DeepLab", "Network", "SegNet", "UNet", "build", "describe"]


def build(config: ModelConfig, in_channels: int, out_channels: int) -> Network:
    """Build the network that the settings name, with random weights.

    Args:
        config: the settings of one network.
        in_channels: channels of the input: image channels times slice context.
        out_channels: logit maps: the labels with the background, or 1 for a binary network.

    Returns:
        The network, on the CPU, in training mode.

    Raises:
        ConfigError: CONFIG-VALUE, a setting or a number of channels out of its range.
    """
    settings = config.model_dump(exclude={"name"})
    match config:
        case UNetConfig():
            return UNet(in_channels, out_channels, **settings | {"widths": config.widths or FITTED_WIDTHS})
        case SegNetConfig():
            return SegNet(in_channels, out_channels, **settings)
        case DeepLabConfig():
            return DeepLab(in_channels, out_channels, **settings)
        case BiSeNetConfig():
            return BiSeNet(in_channels, out_channels, **settings)
