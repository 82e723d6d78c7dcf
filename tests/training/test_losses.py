"""Losses against sums done by hand, and against MONAI's."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses.dice import DiceCELoss, DiceLoss
from torch import Tensor

from medseg.errors import ConfigError
from medseg.training.losses import build_loss, soft_dice_loss, supervised_loss
from medseg.volume import UNANNOTATED


def logits_of(*chances: list[list[float]]) -> Tensor:
    """Logits `(1, c, h, w)` whose softmax is the given channels."""
    return torch.tensor([chances]).log()


def test_soft_dice_by_hand() -> None:
    # Foreground chances 0.5 0.5 / 0.25 0.75, label at the two right pixels.
    # Overlap 0.5 + 0.75 = 1.25; total 2 + 2 = 4; 1 - (2 * 1.25 + 1) / (4 + 1) = 0.3.
    chances = [[0.5, 0.5], [0.25, 0.75]]
    rest = [[0.5, 0.5], [0.75, 0.25]]
    labels = torch.tensor([[[0, 1], [0, 1]]])
    assert soft_dice_loss(logits_of(rest, chances), labels).item() == pytest.approx(0.3)


def test_soft_dice_of_one_channel_by_hand() -> None:
    # A logit of ln 3 is a chance of 0.75: overlap 0.75, total 4 * 0.75 + 1 = 4; 1 - (1.5 + 1) / (4 + 1) = 0.5.
    logits = torch.full((1, 1, 2, 2), math.log(3))
    labels = torch.tensor([[[0, 1], [0, 0]]])
    assert soft_dice_loss(logits, labels).item() == pytest.approx(0.5)


def test_a_label_that_is_nowhere_and_not_predicted_is_perfect() -> None:
    logits = torch.zeros(1, 2, 4, 4)
    logits[:, 0] = 50
    assert soft_dice_loss(logits, torch.zeros(1, 4, 4, dtype=torch.long)).item() == pytest.approx(0, abs=1e-6)


def test_sums_run_over_the_batch_not_over_slices() -> None:
    # Slice 1 is all tumour and all found, slice 2 has none and a false alarm of one pixel of four:
    # overlap 4, total 5 + 4; 1 - (8 + 1) / (9 + 1) = 0.1. By slices it would be (0 + 0.5) / 2 = 0.25.
    found = torch.tensor([[[1.0, 1.0], [1.0, 1.0]], [[1.0, 0.0], [0.0, 0.0]]])
    logits = torch.stack([(1 - found), found], 1) * 100
    labels = torch.tensor([[[1, 1], [1, 1]], [[0, 0], [0, 0]]])
    assert soft_dice_loss(logits, labels).item() == pytest.approx(0.1)


def test_cross_entropy_by_hand() -> None:
    # Chances of the true class 0.5, 0.5, 0.75, 0.25: the mean of -ln is (2 ln 2 + ln 4/3 + ln 4) / 4.
    logits = logits_of([[0.5, 0.5], [0.75, 0.75]], [[0.5, 0.5], [0.25, 0.25]])
    labels = torch.tensor([[[0, 1], [0, 1]]])
    wanted = (2 * math.log(2) + math.log(4 / 3) + math.log(4)) / 4
    assert build_loss("cross_entropy", 2)(logits, labels).item() == pytest.approx(wanted)
    dice = soft_dice_loss(logits, labels).item()
    assert build_loss("dice_cross_entropy", 2)(logits, labels).item() == pytest.approx(wanted + dice)


def test_binary_cross_entropy_by_hand() -> None:
    # Chance 0.75 everywhere, one pixel of four is foreground: (ln 4/3 + 3 ln 4) / 4.
    logits = torch.full((1, 1, 2, 2), math.log(3))
    labels = torch.tensor([[[0, 1], [0, 0]]])
    wanted = (math.log(4 / 3) + 3 * math.log(4)) / 4
    assert build_loss("bce", 1)(logits, labels).item() == pytest.approx(wanted)
    dice = soft_dice_loss(logits, labels).item()
    assert build_loss("dice_bce", 1)(logits, labels).item() == pytest.approx(wanted + dice)


@settings(max_examples=30)
@given(classes=st.integers(2, 4), size=st.integers(1, 6), seed=st.integers(0, 10_000))
def test_equals_monai_with_one_voxel_of_smoothing(classes: int, size: int, seed: int) -> None:
    torch.manual_seed(seed)
    logits, labels = 3 * torch.randn(2, classes, size, 5), torch.randint(0, classes, (2, size, 5))
    options = {"include_background": False, "to_onehot_y": True, "softmax": True, "batch": True}
    smooth = {"smooth_nr": 1.0, "smooth_dr": 1.0}
    target = labels[:, None]
    torch.testing.assert_close(soft_dice_loss(logits, labels), DiceLoss(**options, **smooth)(logits, target))
    both = build_loss("dice_cross_entropy", classes)(logits, labels)
    torch.testing.assert_close(both, DiceCELoss(**options, **smooth)(logits, target))


@settings(max_examples=15)
@given(size=st.integers(1, 6), seed=st.integers(0, 10_000))
def test_one_channel_equals_monai(size: int, seed: int) -> None:
    torch.manual_seed(seed)
    logits, labels = torch.randn(2, 1, size, 5), torch.randint(0, 2, (2, size, 5))
    oracle = DiceLoss(sigmoid=True, batch=True, smooth_nr=1.0, smooth_dr=1.0)
    torch.testing.assert_close(soft_dice_loss(logits, labels), oracle(logits, labels[:, None].float()))


@pytest.mark.parametrize("name", ["cross_entropy", "dice_cross_entropy", "dice"])
def test_a_softmax_over_one_channel_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="always 1") as caught:
        build_loss(name, 1)
    assert caught.value.code == "MODEL-LOSS"


@pytest.mark.parametrize("name", ["bce", "dice_bce"])
def test_a_binary_loss_over_several_channels_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="one output channel") as caught:
        build_loss(name, 3)
    assert caught.value.code == "MODEL-LOSS"


@pytest.mark.parametrize(("name", "channels"), [("dice_cross_entropy", 3), ("dice_bce", 1), ("bce", 1), ("dice", 2)])
def test_going_downhill_finds_the_labels(name: str, channels: int) -> None:
    torch.manual_seed(0)
    labels = torch.randint(0, max(2, channels), (2, 6, 6))
    logits = torch.zeros(2, channels, 6, 6, requires_grad=True)
    loss = build_loss(name, channels)
    optimizer = torch.optim.Adam([logits], lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        loss(logits, labels).backward()
        optimizer.step()
    found = (logits[:, 0] > 0).long() if channels == 1 else logits.argmax(1)
    assert torch.equal(found, labels)


def test_auxiliary_outputs_weigh_half_of_the_one_before() -> None:
    # Losses 1, 2, 4 with weights 1, 1/2, 1/4: (1 + 1 + 1) / 1.75.
    outputs = [torch.tensor(1.0), torch.tensor(2.0), torch.tensor(4.0)]
    loss = supervised_loss(lambda logits, labels: logits, outputs, torch.zeros(1))
    assert loss.item() == pytest.approx(3 / 1.75)


def test_dice_is_computed_in_float32_whatever_comes_in() -> None:
    # 0.5 * 4096 pixels: in bfloat16 a sum above 256 moves in steps of 2 or more.
    logits = torch.zeros(1, 1, 64, 64, dtype=torch.bfloat16)
    labels = torch.ones(1, 64, 64, dtype=torch.long)
    loss = soft_dice_loss(logits, labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(1 - (4096 + 1) / (2048 + 4096 + 1))


# ------------------------------------------------------------------------------------------------ partly annotated

LOSSES = [("cross_entropy", 3), ("dice", 3), ("dice_cross_entropy", 3), ("bce", 1), ("dice_bce", 1)]


def some(channels: int, seed: int) -> tuple[Tensor, Tensor]:
    """Logits and labels of two slices of 6 x 7, the last two rows of which nobody annotated."""
    torch.manual_seed(seed)
    logits, labels = torch.randn(2, channels, 6, 7), torch.randint(0, max(2, channels), (2, 6, 7))
    labels[:, 4:] = UNANNOTATED
    return logits, labels


@settings(max_examples=40)
@given(loss=st.sampled_from(LOSSES), seed=st.integers(0, 10_000))
def test_what_nobody_annotated_counts_in_no_loss(loss: tuple[str, int], seed: int) -> None:
    name, channels = loss
    logits, labels = some(channels, seed)
    found = build_loss(name, channels)(logits.requires_grad_(), labels)
    cut = build_loss(name, channels)(logits[:, :, :4], labels[:, :4])  # as if the slice ended there
    assert found.item() == pytest.approx(cut.item(), rel=1e-5)
    other = logits.detach().clone()
    other[:, :, 4:] = 100 * torch.randn(2, channels, 2, 7)
    assert build_loss(name, channels)(other, labels).item() == found.item()
    (gradient,) = torch.autograd.grad(found, logits)
    assert bool((gradient[:, :, 4:] == 0).all())
    assert bool((gradient[:, :, :4] != 0).any())


@pytest.mark.parametrize(("name", "channels"), LOSSES)
def test_a_batch_that_nobody_annotated_teaches_nothing(name: str, channels: int) -> None:
    logits = torch.randn(2, channels, 4, 4, requires_grad=True)
    loss = build_loss(name, channels)(logits, torch.full((2, 4, 4), UNANNOTATED))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert bool((gradient == 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fully_annotated_it_is_torch_s_own_cross_entropy(dtype: torch.dtype) -> None:
    logits, labels = torch.randn(3, 4, 9, 5).to(dtype), torch.randint(0, 4, (3, 9, 5))
    wanted = torch.nn.functional.cross_entropy(logits.float(), labels)
    assert torch.equal(build_loss("cross_entropy", 4)(logits, labels), wanted)
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0].float(), (labels > 0).float())
    assert torch.equal(build_loss("bce", 1)(logits[:, :1], labels), wanted)
