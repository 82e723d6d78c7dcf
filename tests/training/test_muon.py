"""Muon beside singular values, and beside torch's own."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from medseg.models import BiSeNet, UNet
from medseg.training.muon import LENGTH, POLYNOMIAL, ROUNDS, Muon, multiply_adds, orthogonal
from medseg.training.team import ALONE
from medseg.training.threads import side_by_side


def small_unet() -> UNet:
    torch.manual_seed(0)
    return UNet(2, 3, widths=(4, 8, 16), norm="instance")


def give_gradients(network: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for weight in network.parameters():
        weight.grad = torch.randn(weight.shape, generator=generator)


def by_singular_values(matrix: Tensor) -> Tensor:
    """The same by another way: the polynomial of each singular value, in double precision."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.norm()
    for _ in range(ROUNDS):
        a, b, c = POLYNOMIAL
        values = a * values + b * values**3 + c * values**5
    return left @ values.diag() @ right


@pytest.mark.parametrize("shape", [(8, 72), (72, 8), (16, 16), (1, 9), (5, 1)])
@pytest.mark.parametrize("scale", [1.0, 1e-5, 1e12])
def test_same_singular_vectors_and_values_near_one(shape: tuple[int, int], scale: float) -> None:
    matrix = scale * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = orthogonal(matrix)
    torch.testing.assert_close(found.double(), by_singular_values(matrix), atol=1e-4, rtol=0)
    values = torch.linalg.svdvals(found)
    assert 0.65 < float(values.min()) <= float(values.max()) < 1.25


def test_weak_directions_count_as_much_as_strong_ones_down_to_rounding() -> None:
    left, _ = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(2)))
    right, _ = torch.linalg.qr(torch.randn(20, 6, generator=torch.Generator().manual_seed(3)))
    matrix = left @ torch.tensor([1.0, 0.3, 0.1, 0.03, 0.01, 1e-9]).diag() @ right.mT
    torch.testing.assert_close(orthogonal(matrix).double(), by_singular_values(matrix), atol=1e-3, rtol=0)
    values = torch.linalg.svdvals(orthogonal(matrix))
    assert float(values[4]) > 0.65
    assert float(values[5]) < 1e-3  # what is noise beside the rest stays small


def test_no_gradient_no_step() -> None:
    assert not orthogonal(torch.zeros(4, 9)).any()
    network = small_unet()
    before = [weight.detach().clone() for weight in network.parameters()]
    Muon(network, 0.1, 0.1).step()
    assert all(map(torch.equal, before, network.parameters()))


def test_a_layer_that_learns_nothing_more_comes_to_rest() -> None:
    matrix = torch.randn(4, 9, generator=torch.Generator().manual_seed(1))
    norms = [float(orthogonal(scale * matrix).norm()) for scale in (1e-8, 1e-11, 1e-20, 1e-40)]
    assert 2.3 > norms[0] > norms[1] > norms[2] >= norms[3]
    assert norms[2] < 1e-9
    network = small_unet()
    optimizer = Muon(network, 0.001, 0.0)
    give_gradients(network, 1)
    for step in range(1200):
        optimizer.step()
        if step == 0:
            for weight in network.parameters():
                weight.grad = torch.zeros_like(weight)
        if step == 1000:
            rested = [weight.detach().clone() for weight in optimizer.hidden]
    assert all(bool(torch.isfinite(weight).all()) for weight in network.parameters())
    for weight, before in zip(optimizer.hidden, rested, strict=True):
        torch.testing.assert_close(weight.detach(), before, rtol=0, atol=1e-8)


def test_torchs_own_muon_agrees() -> None:
    theirs_of = getattr(torch.optim, "Muon", None)
    if theirs_of is None:
        pytest.skip("torch.optim.Muon came with torch 2.9")
    network = small_unet()
    ours = Muon(network, 0.1, 0.02)
    flat = [nn.Parameter(weight.detach().flatten(1).clone()) for weight in ours.hidden]
    before = [weight.detach().clone() for weight in flat]
    theirs = theirs_of(flat, lr=0.2, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for seed in range(4):
        give_gradients(network, seed)
        for weight, one in zip(ours.hidden, flat, strict=True):
            assert weight.grad is not None
            one.grad = weight.grad.flatten(1).clone()
        ours.step()
        theirs.step()
    for weight, one, start in zip(ours.hidden, flat, before, strict=True):
        moved = (one - start).norm()
        assert (weight.flatten(1) - one).norm() < 0.02 * moved  # torch computes it in bfloat16: 0.004 a number


def test_a_step_is_as_long_as_one_of_adam_for_any_gradient() -> None:
    for scale in (1e-6, 1e6):
        network = small_unet()
        optimizer = Muon(network, 0.01, 0.0)
        before = [weight.detach().clone() for weight in optimizer.hidden]
        give_gradients(network, 5)
        for weight in network.parameters():
            assert weight.grad is not None
            weight.grad *= scale
        optimizer.step()
        for weight, start in zip(optimizer.hidden, before, strict=True):
            # All singular values near 1: m of them make a norm of sqrt(m), spread over m times n numbers.
            rms = float((weight - start).detach().norm()) / math.sqrt(weight.numel())
            assert rms == pytest.approx(0.01 * LENGTH, rel=0.25)


def test_others_learn_by_adamw() -> None:
    network, twin = small_unet(), small_unet()
    optimizer = Muon(network, 0.01, 0.1)
    adamw = torch.optim.AdamW(twin.parameters(), lr=0.01, weight_decay=0.1)
    for seed in range(3):
        give_gradients(network, seed)
        give_gradients(twin, seed)
        optimizer.step()
        adamw.step()
    hidden = {id(weight) for weight in optimizer.hidden}
    others = [(a, b) for a, b in zip(network.parameters(), twin.parameters(), strict=True) if id(a) not in hidden]
    assert len(others) > 2
    for mine, theirs in others:
        torch.testing.assert_close(mine, theirs)


def test_the_first_layer_the_last_one_and_channels_by_themselves_are_left_to_adamw() -> None:
    network = UNet(2, 3, widths=(4, 8, 16), norm="instance", deep_supervision=True)
    hidden = {id(weight) for weight in Muon(network, 0.01, 0.0).hidden}
    left = {name for name, one in network.named_parameters() if one.dim() == 4 and id(one) not in hidden}
    assert left == {"enc1.0.weight", "final.weight", "aux2.weight"}
    # As many channels as labels with background: their hidden layers are no last ones, for they have no bias.
    alike = UNet(2, 16, widths=(16, 32, 64), norm="instance")
    hidden = {id(weight) for weight in Muon(alike, 0.01, 0.0).hidden}
    left = {name for name, one in alike.named_parameters() if one.dim() == 4 and id(one) not in hidden}
    assert left == {"enc1.0.weight", "final.weight"}
    by_channel = BiSeNet(3, 2)
    hidden = {id(weight) for weight in Muon(by_channel, 0.01, 0.0).hidden}
    convs = [module for module in by_channel.modules() if isinstance(module, nn.Conv2d)]
    assert any(conv.groups > 1 for conv in convs)
    for conv in convs:
        assert (id(conv.weight) in hidden) == (conv.groups == 1 and conv.in_channels != 3 and conv.out_channels != 2)


def test_costs_what_is_counted() -> None:
    network = UNet(3, 2, widths=(4, 8, 16), norm="instance")
    with FlopCounterMode(display=False) as counter:
        for weight in Muon(network, 0.01, 0.0).hidden:
            orthogonal(weight.detach().flatten(1))
    assert multiply_adds(network) == counter.get_total_flops() // 2


def test_goes_on_from_its_state_bit_for_bit() -> None:
    network, twin = small_unet(), small_unet()
    unbroken = Muon(network, 0.01, 0.1)
    for seed in range(2):
        give_gradients(network, seed)
        unbroken.step()
    twin.load_state_dict(network.state_dict())
    resumed = Muon(twin, 0.5, 0.1)
    resumed.load_state_dict(copy.deepcopy(unbroken.state_dict()))
    for model, optimizer in ((network, unbroken), (twin, resumed)):
        give_gradients(model, 7)
        optimizer.step()
    for a, b in zip(network.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_state_of_other_layers_is_refused() -> None:
    optimizer = Muon(small_unet(), 0.01, 0.0)
    state = optimizer.state_dict()
    wider = Muon(UNet(2, 3, widths=(4, 8, 16, 32), norm="instance"), 0.01, 0.0)
    with pytest.raises((RuntimeError, ValueError)):
        optimizer.load_state_dict(wider.state_dict())
    with pytest.raises(ValueError, match="wanted"):
        optimizer.load_state_dict({**state, "means": [mean[:1] for mean in state["means"]]})
    with pytest.raises(ValueError, match="zip"):
        optimizer.load_state_dict({**state, "means": state["means"][:-1]})


def test_threads_change_nothing() -> None:
    network, twin = small_unet(), small_unet()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with side_by_side(4, torch.device("cpu"), ALONE) as threads:
            assert threads.count == 2
            shared, alone = Muon(network, 0.01, 0.1, threads), Muon(twin, 0.01, 0.1)
            for seed in range(2):
                for model, optimizer in ((network, shared), (twin, alone)):
                    give_gradients(model, seed)
                    optimizer.step()
    finally:
        torch.set_num_threads(before)
    for a, b in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)
