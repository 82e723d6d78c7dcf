"""How far a mask can be trusted without a reference: its Dice, as the networks' own probabilities and votes let expect.

Sums over slices are all that is kept (`Tally`): probabilities never exist for a whole volume.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.prepare import labels_of
from medseg.volume import Labels


@dataclass(frozen=True)
class Agreement:
    """Estimates of a mask's Dice, by label number, from 0 to 1; a label that is not in the mask has none.

    Attributes:
        expected: if every pixel belonged to the label with the probability that the networks state:
            2 x (sum of p inside the mask) / (pixels of the mask + sum of p).
        between: mean Dice of the masks that each network and mirrored view would draw alone to the mask that they draw
            together; without any entry when there is only one.
    """

    expected: Mapping[int, float]
    between: Mapping[int, float]

    def by_name(self, labels: Labels) -> dict[str, float]:
        """Return one estimate for each label, by its name."""
        return {name: self.expected[number] for number, name in labels if number in self.expected}


class Tally:
    """Sums over the slices of one volume, from which its agreement follows; their order does not matter."""

    def __init__(self) -> None:
        self._sums: NDArray[np.float64] | None = None  # rows: p inside, pixels, p, then both and own of each vote

    def add(self, logits: Tensor, votes: Tensor) -> None:
        """Take some slices.

        Args:
            logits: `(n, classes, h, w)`, of all networks and views together; one class is a sigmoid's.
            votes: `(n, votes, h, w)` label numbers that each network and view gives alone.
        """
        mask, probabilities = labels_of(logits), _probabilities(logits)
        columns = []
        for number, p in enumerate(probabilities, start=1):
            inside = mask == number
            own = [(p * inside).sum(), inside.count_nonzero(), p.sum()]
            for alone in (votes == number).unbind(1):
                own += [(alone & inside).count_nonzero(), alone.count_nonzero()]
            columns.append(torch.stack([value.double() for value in own]))
        sums = torch.stack(columns, dim=1).cpu().numpy()
        self._sums = sums if self._sums is None else self._sums + sums

    def agreement(self) -> Agreement:
        """Return the estimates for the slices so far."""
        expected: dict[int, float] = {}
        between: dict[int, float] = {}
        for number, column in enumerate(self._sums.T if self._sums is not None else [], start=1):
            inside, pixels, total, *pairs = column.tolist()
            if pixels == 0:
                continue
            expected[number] = 2 * inside / (pixels + total)
            dice = [2 * both / (own + pixels) for both, own in zip(pairs[::2], pairs[1::2], strict=True)]
            if dice:
                between[number] = sum(dice) / len(dice)
        return Agreement(expected, between)


def _probabilities(logits: Tensor) -> Tensor:
    """Return those of the labels, background left out: `(labels, n, h, w)`."""
    match logits.shape[1]:
        case 1:
            return logits.sigmoid().transpose(0, 1)
        case 2:  # the same as a softmax, in half the time
            return (logits[:, 1:] - logits[:, :1]).sigmoid().transpose(0, 1)
        case _:
            return logits.softmax(1)[:, 1:].transpose(0, 1)
