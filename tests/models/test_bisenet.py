"""BiSeNetV2 against its paper (table 1)."""

from __future__ import annotations

import torch
from torch import nn

from medseg.models import BiSeNet
from medseg.models.bisenet import Aggregation, Semantic


def test_the_detail_branch() -> None:
    convs = [m for m in BiSeNet().detail.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convs] == [64, 64, 64, 64, 64, 128, 128, 128]
    assert [m.stride[0] for m in convs] == [2, 1, 2, 1, 1, 2, 1, 1]
    assert {m.kernel_size for m in convs} == {(3, 3)}


def test_the_semantic_branch_goes_down_to_a_thirty_second() -> None:
    features = Semantic(3, (16, 32, 64, 128), 6).eval()(torch.randn(1, 3, 128, 64))
    shapes = [tuple(each.shape[1:]) for each in features]
    assert shapes == [(16, 32, 16), (32, 16, 8), (64, 8, 4), (128, 4, 2), (128, 4, 2)]


def test_the_gather_and_expansion_layers() -> None:
    stages = BiSeNet().semantic.stages
    assert [len(stage) for stage in stages] == [2, 2, 4]
    for stage in stages:
        down, *onward = stage
        assert isinstance(onward[0].shortcut, nn.Identity)
        assert not isinstance(down.shortcut, nn.Identity)
        for layer, depthwise in ((down, 2), *((each, 1) for each in onward)):
            convs = [m for m in layer.layers.modules() if isinstance(m, nn.Conv2d)]
            first, *wide, last = convs
            assert len(wide) == depthwise
            assert all(conv.out_channels == 6 * first.in_channels for conv in wide)
            assert all(conv.groups == conv.in_channels for conv in wide)
            assert last.kernel_size == (1, 1)


def test_aggregation_gates_each_branch_by_the_other() -> None:
    torch.manual_seed(0)
    aggregation = Aggregation(8, 16).eval()
    detail, semantic = torch.randn(1, 8, 32, 32), torch.randn(1, 16, 8, 8)
    joined: list[torch.Tensor] = []
    aggregation.union.register_forward_pre_hook(lambda _m, inputs: joined.append(inputs[0]))
    assert aggregation(detail, semantic).shape == (1, 8, 32, 32)
    with torch.no_grad():
        # Shut both gates: a convolution without weights gives its bias, and sigmoid(-1000) is 0.
        for gate in (aggregation.semantic_fine[-1], aggregation.semantic_coarse[-1]):
            gate.weight.zero_()
            gate.bias.fill_(-1000.0)
    aggregation(detail, semantic)
    assert joined[0].any()
    assert not joined[1].any()


def test_boosters_work_behind_the_training_call_only() -> None:
    network = BiSeNet(1, 2)
    calls: list[int] = []
    for number, booster in enumerate(network.boosters):
        booster.register_forward_hook(lambda *_, n=number: calls.append(n))
    network(torch.randn(1, 1, 64, 64))
    assert calls == []
    network.training_logits(torch.randn(1, 1, 64, 64))
    assert calls == [0, 1, 2, 3]
    assert [booster[0][0].in_channels for booster in network.boosters] == [16, 32, 64, 128]


def test_without_boosters_there_is_one_head() -> None:
    network = BiSeNet(1, 2, booster=False)
    assert len(network.training_logits(torch.randn(1, 1, 64, 64))) == 1
    assert not any(name.startswith("boosters") for name in network.state_dict())
