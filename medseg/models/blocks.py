"""The layer that SegNet, DeepLabV3+ and BiSeNetV2 are made of."""

from __future__ import annotations

from torch import nn


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel: int = 3,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    relu: bool = True,
) -> nn.Sequential:
    """Convolution, batch normalisation and, unless told otherwise, ReLU.

    The padding keeps the size (divided by the stride). The convolution has no bias, which the normalisation would
    take away again; its weights start as in He et al. 2015 (arXiv:1502.01852), as in the three networks' papers.

    Args:
        in_channels: feature maps in.
        out_channels: feature maps out.
        kernel: side of the kernel, odd.
        stride: step of the kernel.
        dilation: distance of the kernel's taps.
        groups: `in_channels` for a depthwise convolution.
        relu: whether ReLU follows.
    """
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, groups, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    layers: list[nn.Module] = [conv, nn.BatchNorm2d(out_channels)]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if relu else []))
