"""The losses of segmentation, chosen by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


def build_loss(name: str, out_channels: int) -> Loss:
    """Return the loss of that name.

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
            return _cross_entropy
        case "dice":
            return soft_dice_loss
        case "dice_cross_entropy":
            return lambda logits, labels: _cross_entropy(logits, labels) + soft_dice_loss(logits, labels)
        case "bce":
            return _binary_cross_entropy
        case "dice_bce":
            return lambda logits, labels: _binary_cross_entropy(logits, labels) + soft_dice_loss(logits, labels)
        case _:
            raise ConfigError("CONFIG-VALUE", "train.loss", f"no loss {name!r}")


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    total = F.cross_entropy(logits.float(), labels, ignore_index=UNANNOTATED, reduction="sum")
    return total / _count(labels)


def _binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    known, wanted = (labels != UNANNOTATED).float(), (labels > 0).float()
    total = F.binary_cross_entropy_with_logits(logits[:, 0].float(), wanted, weight=known, reduction="sum")
    return total / _count(labels)


def _count(labels: Tensor) -> Tensor:
    """Count the annotated pixels, 1 at the least: a batch without any has the loss 0."""
    return (labels != UNANNOTATED).sum().clamp(min=1)


def soft_dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """One minus the mean soft Dice of the foreground labels, sums taken over the whole batch.

    Summing over the batch rather than each slice keeps a slice without foreground from being all or nothing: most
    slices of a scan have no tumour (batch Dice, as in nnU-Net, Isensee 2021). A label that neither stands in the batch
    nor is predicted counts as perfect through the smoothing term.

    Args:
        logits: `(b, c, h, w)`; one channel is read through a sigmoid, more through a softmax.
        labels: `(b, h, w)` int64.

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
    overlap = (chance * target).sum((0, 2, 3))
    total = chance.sum((0, 2, 3)) + target.sum((0, 2, 3))
    smooth = 1.0  # one voxel: negligible beside a tumour, enough to define 0 / 0
    return 1 - ((2 * overlap + smooth) / (total + smooth)).mean()


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
