"""The losses of segmentation, chosen by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from medseg.errors import ConfigError
from medseg.volume import UNANNOTATED

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits `(b, c, h, w)` and label numbers `(b, h, w)` int64 to a scalar.

Pixels that nobody annotated (`UNANNOTATED`) count in none: whatever the network says there, the loss and its gradient
are the same.
"""

Total = Callable[[Tensor], Tensor]
"""Adds up a tensor over all processes that have a part of the batch."""


def own(part: Tensor) -> Tensor:
    """Add up nothing: this process has the whole batch."""
    return part


def build_loss(name: str, out_channels: int, total: Total = own) -> Loss:
    """Return the loss of that name, over the whole batch whichever process has which part of it.

    Args:
        name: as in the settings.
        out_channels: of the network.
        total: adds up over the processes.

    Raises:
        ConfigError: MODEL-LOSS for a loss that cannot learn with this number of output channels: a softmax over one
            channel is 1 whatever the network says, so cross-entropy over it has no gradient.
    """
    binary = name in ("bce", "dice_bce")
    if out_channels == 1 and not binary:
        problem = f"{name} over one output channel cannot learn: a softmax over one channel is always 1"
        raise ConfigError("MODEL-LOSS", "train.loss", problem, "Use bce or dice_bce for one channel, or two channels.")
    if out_channels > 1 and binary:
        problem = f"{name} is for one output channel, the network has {out_channels}"
        raise ConfigError("MODEL-LOSS", "train.loss", problem, "Use dice_cross_entropy.")
    match name:
        case "cross_entropy":
            return partial(_cross_entropy, total=total)
        case "dice":
            return partial(soft_dice_loss, total=total)
        case "dice_cross_entropy":
            return lambda logits, labels: _cross_entropy(logits, labels, total) + soft_dice_loss(logits, labels, total)
        case "bce":
            return partial(_binary_cross_entropy, total=total)
        case "dice_bce":
            return lambda logits, labels: (
                _binary_cross_entropy(logits, labels, total) + soft_dice_loss(logits, labels, total)
            )
        case _:
            raise ConfigError("CONFIG-VALUE", "train.loss", f"no loss {name!r}")


def _cross_entropy(logits: Tensor, labels: Tensor, total: Total = own) -> Tensor:
    added = F.cross_entropy(logits.float(), labels, ignore_index=UNANNOTATED, reduction="sum")
    return total(added) / _count(labels, total)


def _binary_cross_entropy(logits: Tensor, labels: Tensor, total: Total = own) -> Tensor:
    known, wanted = (labels != UNANNOTATED).float(), (labels > 0).float()
    added = F.binary_cross_entropy_with_logits(logits[:, 0].float(), wanted, weight=known, reduction="sum")
    return total(added) / _count(labels, total)


def _count(labels: Tensor, total: Total) -> Tensor:
    """Count the annotated pixels, 1 at the least: a batch without any has the loss 0."""
    return total((labels != UNANNOTATED).sum()).clamp(min=1)


def soft_dice_loss(logits: Tensor, labels: Tensor, total: Total = own) -> Tensor:
    """One minus the mean soft Dice of the foreground labels, sums taken over the whole batch.

    Summing over the batch rather than each slice keeps a slice without foreground from being all or nothing: most
    slices of a scan have no tumour (batch Dice, as in nnU-Net, Isensee 2021). A label that neither stands in the batch
    nor is predicted counts as perfect through the smoothing term.

    Args:
        logits: `(b, c, h, w)`; one channel is read through a sigmoid, more through a softmax.
        labels: `(b, h, w)` int64.
        total: adds up over the processes that have a part of the batch.

    Returns:
        A scalar from 0 to 1, float32.
    """
    logits = logits.float()
    known = (labels != UNANNOTATED).unsqueeze(1)
    if logits.shape[1] == 1:
        chance, target = logits.sigmoid() * known, ((labels > 0).unsqueeze(1) & known).float()
    else:
        chance = logits.softmax(1)[:, 1:] * known
        target = torch.stack([labels == number for number in range(1, logits.shape[1])], 1).float()
    overlap, size = total(
        torch.stack([(chance * target).sum((0, 2, 3)), chance.sum((0, 2, 3)) + target.sum((0, 2, 3))])
    )
    smooth = 1.0  # one voxel: negligible beside a tumour, enough to define 0 / 0
    dice: Tensor = (2 * overlap + smooth) / (size + smooth)
    return 1 - dice.mean()


def supervised_loss(loss: Loss, outputs: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Weigh the main output and the auxiliary ones, halving from each to the next, weights summing to 1.

    Args:
        loss: of one output.
        outputs: logits `(b, c, h, w)` each, the main ones first.
        labels: `(b, h, w)` int64.
    """
    weights = [0.5**level for level in range(len(outputs))]
    terms = [weight * loss(logits, labels) for weight, logits in zip(weights, outputs, strict=True)]
    return torch.stack(terms).sum() / sum(weights)
