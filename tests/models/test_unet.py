"""The default U-Net is the small U-Net of two poolings that the package started from; its options build on it."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.models import UNet, describe


class Document(nn.Module):
    """That network, written out once more: its layers under its names, and nothing else."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()

        def two(before: int, after: int) -> nn.Sequential:
            first, second = nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1)
            return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())

        self.enc1 = two(in_channels, 64)
        self.enc2 = two(64, 128)
        self.bottleneck = two(128, 256)
        self.upconv2 = nn.ConvTranspose2d(256, 128, 2, stride=2)
        self.dec2 = two(256, 128)
        self.upconv1 = nn.ConvTranspose2d(128, 64, 2, stride=2)
        self.dec1 = two(128, 64)
        self.final = nn.Conv2d(64, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.enc1(x)
        coarse = self.enc2(F.max_pool2d(fine, 2, 2))
        deep = self.upconv2(self.bottleneck(F.max_pool2d(coarse, 2, 2)))
        coarse = self.dec2(torch.cat((deep, coarse), 1))
        return self.final(self.dec1(torch.cat((self.upconv1(coarse), fine), 1)))


@pytest.mark.parametrize("channels", [(3, 1), (3, 2), (1, 4)])
@pytest.mark.parametrize("size", [(64, 64), (4, 4), (32, 52)])
def test_the_documents_weights_load_and_give_its_output(channels: tuple[int, int], size: tuple[int, int]) -> None:
    torch.manual_seed(3)
    document, ours = Document(*channels), UNet(*channels)
    ours.load_state_dict(document.state_dict(), strict=True)
    x = torch.randn(2, channels[0], *size)
    for mode in (True, False):
        assert torch.equal(ours.train(mode)(x), document.train(mode)(x))


def test_a_step_of_training_is_the_documents() -> None:
    x, target = torch.randn(2, 3, 16, 16), torch.randint(0, 2, (2, 16, 16))
    torch.manual_seed(3)
    networks = [Document(3, 2), UNet(3, 2)]
    networks[1].load_state_dict(networks[0].state_dict())
    for network in networks:
        optimizer = torch.optim.Adam(network.parameters(), lr=0.001)
        F.cross_entropy(network(x), target).backward()
        optimizer.step()
    first, second = (network.state_dict() for network in networks)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_equal_seeds_give_the_documents_initial_weights() -> None:
    torch.manual_seed(5)
    document = Document(3, 1).state_dict()
    torch.manual_seed(5)
    ours = UNet().state_dict()
    assert list(ours) == list(document)
    assert all(torch.equal(ours[name], document[name]) for name in document)


def test_the_layers_have_the_documents_names_in_its_order() -> None:
    names = "enc1 pool1 enc2 pool2 bottleneck upconv2 dec2 upconv1 dec1 final"
    assert " ".join(name for name, _ in UNet().named_children()) == names


def test_deeper_networks_continue_the_names() -> None:
    names = "enc1 pool1 enc2 pool2 enc3 pool3 bottleneck upconv3 dec3 upconv2 dec2 upconv1 dec1 final aux2 aux3"
    network = UNet(widths=(4, 8, 8, 8), deep_supervision=True)
    assert " ".join(name for name, _ in network.named_children()) == names
    assert network.stride == 8


def test_parameters_and_multiply_adds_by_arithmetic() -> None:
    # Weights + biases with one input and one output channel:
    #   enc1        1*64*9 + 64 =     640     64*64*9 + 64 =  36,928
    #   enc2       64*128*9 + 128 = 73,856   128*128*9 + 128 = 147,584
    #   bottleneck 128*256*9 + 256 = 295,168  256*256*9 + 256 = 590,080
    #   upconv2    256*128*4 + 128 = 131,200
    #   dec2       256*128*9 + 128 = 295,040  128*128*9 + 128 = 147,584
    #   upconv1    128*64*4 + 64 =   32,832
    #   dec1       128*64*9 + 64 =   73,792   64*64*9 + 64 =  36,928
    #   final      64*1 + 1 = 65                                            sum 1,861,697
    assert describe(UNet(1, 1), 1).parameters == 1_861_697
    # Three input channels add 2*64*9 = 1,152 weights. Multiply-adds at 256 x 256, weights times pixels:
    #   1/1: 65,536 * (3*64*9 + 64*64*9 + 128*64*9 + 64*64*9 + 64) = 65,536 * 149,248
    #   1/2: 16,384 * (64*128*9 + 128*128*9 + 256*128*9 + 128*128*9 + 128*64*4) = 16,384 * 696,320
    #   1/4:  4,096 * (128*256*9 + 256*256*9 + 256*128*4) = 4,096 * 1,015,808
    # (a transposed convolution uses each weight once for each of its input's pixels)
    cost = describe(UNet(3, 1), 3)
    assert cost.parameters == 1_862_849
    assert cost.multiply_adds == 65_536 * 149_248 + 16_384 * 696_320 + 4_096 * 1_015_808 == 25_350_373_376


def test_the_view_is_44_pixels_across() -> None:
    # 1 + 4 (two 3x3) + 1 (pool) + 8 (two at step 2) + 2 (pool) + 16 (two at step 4) + 8 (dec2) + 4 (dec1) = 44; the
    # transposed convolutions have no overlap and add nothing.
    network = UNet(1, 1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_()  # so that no ReLU closes and no path cancels
    seen = set()
    for phase in range(4):
        x = torch.rand(1, 1, 128, 128, requires_grad=True)
        network(x)[0, 0, 64 + phase, 64].backward()
        rows = x.grad[0, 0].sum(1).nonzero()
        seen.add(int(rows.max() - rows.min()) + 1)
    assert max(seen) == 44


@settings(max_examples=10)
@given(steps=st.integers(1, 3))
def test_moving_the_image_by_the_stride_moves_the_logits(steps: int) -> None:
    torch.manual_seed(0)
    network = UNet(1, 1, widths=(4, 8, 8)).eval()
    wide = torch.randn(1, 1, 64, 128)
    shift = steps * network.stride
    with torch.no_grad():
        here, there = network(wide[..., :64]), network(wide[..., shift : 64 + shift])
    # 24 pixels from the border no zero padding is in view (44 pixels across, see above, with two convolutions a stage).
    torch.testing.assert_close(there[..., 24:40, 24 : 40 - shift], here[..., 24:40, 24 + shift : 40])


def test_the_2d_network_of_nnunet_can_be_built() -> None:
    network = UNet(
        1, 3, widths=(32, 64, 128, 256, 512, 512), norm="instance", activation="leaky_relu", deep_supervision=True
    )
    kinds = [nn.Conv2d, nn.InstanceNorm2d, nn.LeakyReLU] * 2
    assert all(isinstance(module, kind) for module, kind in zip(network.enc1, kinds, strict=True))
    assert network.enc1[2].negative_slope == 0.01
    assert network.stride == 32
    assert len(network.training_logits(torch.randn(1, 1, 64, 64))) == 5  # final, aux2 ... aux5


def test_instance_normalisation_learns_as_torchs_own_does() -> None:
    """In training it is computed otherwise."""
    torch.manual_seed(0)
    ours = UNet(1, 2, widths=(4, 8), norm="instance", activation="leaky_relu").double()
    theirs = copy.deepcopy(ours)
    for name, module in list(theirs.named_modules()):
        if isinstance(module, nn.InstanceNorm2d):
            plain = nn.InstanceNorm2d(module.num_features, affine=True).double()
            plain.load_state_dict(module.state_dict())
            theirs.set_submodule(name, plain)
    images = torch.randn(3, 1, 16, 12).double()
    found = []
    for network in (ours.train(), theirs.train()):
        logits = network(images)
        logits.square().mean().backward()
        found.append((logits, [parameter.grad for parameter in network.parameters()]))
    (logits, gradients), (wanted, wanted_gradients) = found
    torch.testing.assert_close(logits, wanted)
    torch.testing.assert_close(gradients, wanted_gradients)
    torch.testing.assert_close(ours.eval()(images), wanted)


def test_options_add_layers_only_where_asked() -> None:
    count = lambda network, kind: sum(isinstance(m, kind) for m in network.modules())  # noqa: E731
    assert count(UNet(), (nn.Dropout2d, nn.BatchNorm2d, nn.InstanceNorm2d, nn.GroupNorm)) == 0
    assert count(UNet(widths=(4, 8, 8), dropout=0.2), nn.Dropout2d) == 5  # enc1, enc2, bottleneck, dec2, dec1
    assert count(UNet(widths=(4, 8, 8), convs_per_stage=3), nn.Conv2d) == 5 * 3 + 1
    groups = [m.num_groups for m in UNet(widths=(64, 12), norm="group").modules() if isinstance(m, nn.GroupNorm)]
    assert groups == [8, 8, 4, 4, 8, 8]  # gcd(8, 12) = 4


def test_a_residual_block_with_silent_layers_is_its_shortcut() -> None:
    network = UNet(4, 1, widths=(4, 8), residual=True)
    block = network.enc1
    with torch.no_grad():
        for parameter in block[0].layers.parameters():
            parameter.zero_()
    x = torch.randn(1, 4, 8, 8)
    assert torch.equal(block(x), x.relu())  # four channels in and out: the shortcut is the identity


def test_auxiliary_heads_work_behind_the_training_call_only() -> None:
    network = UNet(1, 1, widths=(4, 8, 8), deep_supervision=True)
    calls: list[str] = []
    network.aux2.register_forward_hook(lambda *_: calls.append("aux2"))
    network(torch.randn(1, 1, 16, 16))
    assert calls == []
    network.training_logits(torch.randn(1, 1, 16, 16))
    assert calls == ["aux2"]


def test_auxiliary_logits_go_from_the_finest_stage_to_the_coarsest() -> None:
    network = UNet(1, 1, widths=(4, 8, 8, 8), deep_supervision=True)
    with torch.no_grad():
        for number, head in ((2, network.aux2), (3, network.aux3)):
            head.weight.zero_()
            head.bias.fill_(number)
        logits = network.training_logits(torch.randn(1, 1, 16, 16))
    assert [float(each.mean()) for each in logits[1:]] == [2, 3]
