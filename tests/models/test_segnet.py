"""SegNet against its paper."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from medseg.models import SegNet
from medseg.models.segnet import unpool


def widths(stages: nn.ModuleList) -> list[list[tuple[int, int]]]:
    return [[(m.in_channels, m.out_channels) for m in s.modules() if isinstance(m, nn.Conv2d)] for s in stages]


@settings(max_examples=30)
@given(
    b=st.integers(1, 2),
    c=st.integers(1, 3),
    h=st.integers(1, 5),
    w=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    seed=st.integers(0, 1000),
)
def test_unpool_is_torchs_unpooling(b, c, h, w, dtype, layout, seed) -> None:
    image = torch.randn(b, c, 2 * h, 2 * w, generator=torch.Generator().manual_seed(seed)).to(dtype)
    x, places = F.max_pool2d(image.contiguous(memory_format=layout), 2, return_indices=True)
    ours = unpool(x, places)
    assert ours.dtype == dtype
    assert torch.equal(ours, nn.MaxUnpool2d(2)(x, places))


def test_unpool_leaves_the_largest_where_it_stood_and_empties_the_rest() -> None:
    image = (
        torch.randperm(2 * 3 * 6 * 10, generator=torch.Generator().manual_seed(0)).view(2, 3, 6, 10) + 1.0
    )  # no ties
    x, places = F.max_pool2d(image, 2, return_indices=True)
    largest = x.repeat_interleave(2, 2).repeat_interleave(2, 3) == image
    assert torch.equal(unpool(x, places), image * largest)


def test_unpool_by_hand() -> None:
    # The 2x4 image [[1, 5, 2, 0], [3, 4, 9, 8]] has the maxima 5 (row 0, column 1: index 1) and 9 (1, 2: index 6).
    x, places = torch.tensor([[[[5.0, 9.0]]]]), torch.tensor([[[[1, 6]]]])
    assert unpool(x, places).tolist() == [[[[0, 5, 0, 0], [0, 0, 9, 0]]]]


def test_unpool_sends_the_gradient_back_to_the_values() -> None:
    x = torch.randn(2, 3, 2, 3, dtype=torch.double, requires_grad=True)
    _, places = F.max_pool2d(torch.randn(2, 3, 4, 6), 2, return_indices=True)
    assert torch.autograd.gradcheck(lambda values: unpool(values, places), (x,))


def test_the_encoder_is_vgg16_and_the_decoder_its_mirror() -> None:
    network = SegNet(3, 7)
    encoder, decoder = widths(network.encoder), widths(network.decoder)
    classifier = (network.classifier.in_channels, network.classifier.out_channels)
    assert [len(stage) for stage in encoder] == [2, 2, 3, 3, 3]
    assert encoder[0] == [(3, 64), (64, 64)]
    assert encoder[2] == [(128, 256), (256, 256), (256, 256)]
    assert sum(map(len, encoder)) == 13
    # Read backwards with in and out exchanged, the decoder is the encoder; the classifier stands for the first layer.
    backwards = [(out, before) for stage in decoder for before, out in stage][::-1]
    forwards = [pair for stage in encoder for pair in stage]
    assert backwards == forwards[1:]
    assert classifier == (64, 7)
    assert network.stride == 32


def test_parameters_by_arithmetic() -> None:
    # VGG16's convolutions: 9 * (3*64 + 64*64 + 64*128 + 128*128 + 128*256 + 2*256*256 + 256*512 + 5*512*512) =
    # 14,710,464. The mirror has the same without 9*3*64 = 1,728: 14,708,736. The classifier: 9*64*1 + 1 = 577.
    # Batch normalisation has two numbers a channel: 2*64 + 2*128 + 3*256 + 6*512 = 4,224 channels in the encoder,
    # 5*512 + (256 + 2*256) + (128 + 128) + (64 + 64) = 3,712 in the decoder.
    assert sum(p.numel() for p in SegNet(3, 1).parameters()) == 14_710_464 + 14_708_736 + 577 + 2 * (4_224 + 3_712)


def test_three_pixels_of_four_are_empty_before_the_decoder_fills_them() -> None:
    network = SegNet(1, 1, widths=(4, 4), convs_per_stage=(1, 1)).eval()
    taken: list[torch.Tensor] = []
    network.decoder[0].register_forward_pre_hook(lambda _m, inputs: taken.append(inputs[0]))
    network(torch.randn(1, 1, 16, 16))
    assert taken[0].count_nonzero() <= taken[0].numel() // 4


def test_each_pooling_hands_its_own_indices_to_the_stage_that_mirrors_it() -> None:
    torch.manual_seed(0)
    network = SegNet(1, 2, widths=(4, 8), convs_per_stage=(1, 2)).eval()
    pool, back = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
    x = torch.randn(1, 1, 16, 24)
    with torch.no_grad():
        fine, fine_places = pool(network.encoder[0](x))
        coarse, coarse_places = pool(network.encoder[1](fine))
        deep = network.decoder[0](back(coarse, coarse_places))
        wanted = network.classifier(network.decoder[1](back(deep, fine_places)))
        torch.testing.assert_close(network(x), wanted)
