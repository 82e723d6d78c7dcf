"""DeepLabV3+ against its papers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medseg.models import DeepLab
from medseg.models.deeplab import Pyramid, ResNet


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilation_computes_what_strides_compute_between_the_pixels_too(name: str, output_stride: int) -> None:
    torch.manual_seed(0)
    strided, dilated = ResNet(1, name, 32).eval(), ResNet(1, name, output_stride).eval()
    dilated.load_state_dict(strided.state_dict(), strict=True)
    x = torch.randn(1, 1, 128, 96)
    with torch.no_grad():
        (low, high), (low_too, fine) = strided(x), dilated(x)
    step = 32 // output_stride
    assert fine.shape[-2:] == (128 // output_stride, 96 // output_stride)
    torch.testing.assert_close(fine[..., ::step, ::step], high, rtol=1e-4, atol=1e-4 * float(high.abs().max()))
    assert torch.equal(low, low_too)


@pytest.mark.parametrize(
    ("name", "parameters"),
    # The published totals less the 1000-class layer: 11,689,512 - 513,000; 21,797,672 - 513,000;
    # 25,557,032 - 2,049,000; 44,549,160 - 2,049,000 (513,000 = 512*1000 + 1000; 2,049,000 = 2048*1000 + 1000).
    [("resnet18", 11_176_512), ("resnet34", 21_284_672), ("resnet50", 23_508_032), ("resnet101", 42_500_160)],
)
def test_the_encoders_have_the_published_parameters(name: str, parameters: int) -> None:
    with torch.device("meta"):
        encoder = ResNet(3, name, 16)
    assert sum(p.numel() for p in encoder.parameters()) == parameters


@pytest.mark.parametrize(("output_stride", "rates"), [(16, [6, 12, 18]), (8, [12, 24, 36])])
def test_the_pyramids_branches_and_rates(output_stride: int, rates: list[int]) -> None:
    with torch.device("meta"):
        network = DeepLab(output_stride=output_stride)
    convs = [branch[0] for branch in network.pyramid.branches]
    assert [conv.kernel_size for conv in convs] == [(1, 1), (3, 3), (3, 3), (3, 3)]
    assert [conv.dilation[0] for conv in convs[1:]] == rates
    assert [conv.padding[0] for conv in convs[1:]] == rates
    assert network.pyramid.project[0].in_channels == 5 * 256
    assert network.stride == output_stride


def test_low_level_features_are_reduced_to_48_channels_at_a_quarter() -> None:
    network = DeepLab(1, 1, encoder="resnet18").eval()
    shapes: list[tuple[int, ...]] = []
    network.reduce.register_forward_hook(lambda _m, _i, output: shapes.append(tuple(output.shape)))
    network.decoder.register_forward_hook(lambda _m, inputs, _o: shapes.append(tuple(inputs[0].shape)))
    network(torch.randn(1, 1, 64, 96))
    assert shapes == [(1, 48, 16, 24), (1, 256 + 48, 16, 24)]


def test_the_pyramid_trains_on_one_pixel_of_several_images_and_its_image_branch_on_one() -> None:
    pyramid = Pyramid(8, 4, [1, 2, 3], 0.0).train()
    assert pyramid(torch.randn(2, 8, 1, 1)).shape == (2, 4, 1, 1)
    assert pyramid.image(torch.randn(1, 8, 1, 1)).shape == (1, 4, 1, 1)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in pyramid.image.modules())


def test_the_image_branch_sees_the_whole_image() -> None:
    torch.manual_seed(0)
    network = DeepLab(1, 1, encoder="resnet18", width=16).eval()
    x = torch.randn(1, 1, 256, 64, requires_grad=True)
    network(x)[0, 0, 0, 0].backward()
    assert x.grad[0, 0, -32:].any()
