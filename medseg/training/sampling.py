"""Which slices make which batch: a function of seed, epoch and step, so that a resumed run goes on as it would have."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, order=True)
class SliceId:
    """One training slice: the case, and its place along the stack of the working grid."""

    case: str
    index: int


class Drawn(NamedTuple):
    """One slice of a batch, and the label that its patch shall show; None where it may lie anywhere."""

    slice: SliceId
    label: int | None


def epoch_batches(
    slices: Mapping[SliceId, Collection[int]],
    *,
    batch_size: int,
    share: float | None,
    steps: int | None,
    seed: int,
    epoch: int,
) -> list[list[Drawn]]:
    """Draw the batches of one epoch.

    Args:
        slices: all training slices, with the numbers of the labels that stand in each.
        batch_size: slices in a batch; the last batch of an epoch may be smaller.
        share: part of each batch drawn for a label: from the slices with foreground, and of the labels of a case each
            as often as the others, however few of its slices hold it; None takes every slice once, in random order.
        steps: batches in the epoch; as many as take every slice once when None.
        seed: of the run.
        epoch: its number.

    Returns:
        Lists of slices. Without replacement until a pool is used up, then it starts anew.
    """
    rng = np.random.default_rng([seed, epoch])
    names = list(slices)
    with_foreground = np.flatnonzero([bool(own) for own in slices.values()])
    total = len(names) if steps is None else steps * batch_size
    sizes = [min(batch_size, total - start) for start in range(0, total, batch_size)]
    wanted = _rich_sizes(sizes, share if share is not None and len(with_foreground) else 0.0)
    rich = iter(_for_labels(slices, [names[place] for place in _draw(with_foreground, sum(wanted), rng)], rng))
    plain = (Drawn(names[place], None) for place in _draw(np.arange(len(names)), total - sum(wanted), rng))
    return [
        [*islice(rich, rich_size), *islice(plain, size - rich_size)]
        for size, rich_size in zip(sizes, wanted, strict=True)
    ]


def _for_labels(
    slices: Mapping[SliceId, Collection[int]], chosen: Sequence[SliceId], rng: np.random.Generator
) -> list[Drawn]:
    """Draw a label of its case for each slice, and another slice of the case where it does not hold that label."""
    holding: dict[str, dict[int, list[SliceId]]] = {}
    for one, numbers in slices.items():
        for number in numbers:
            holding.setdefault(one.case, {}).setdefault(number, []).append(one)
    drawn = []
    for one in chosen:
        of_case = holding[one.case]
        number = sorted(of_case)[rng.integers(len(of_case))]
        others = of_case[number]
        drawn.append(Drawn(one if number in slices[one] else others[rng.integers(len(others))], number))
    return drawn


def _rich_sizes(sizes: Sequence[int], share: float) -> list[int]:
    """Return how many slices of each batch are drawn for a label.

    The running total is rounded, not each batch: rounded alone, half of a batch of 1 would always be 0, of 3 always 2.
    """
    totals = [math.floor(share * total + 0.5) for total in accumulate(sizes, initial=0)]
    return [later - earlier for earlier, later in pairwise(totals)]


def _draw(pool: NDArray[np.int64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    rounds = -(-count // len(pool)) if len(pool) else 0
    drawn = [rng.permutation(pool) for _ in range(rounds)]
    return np.concatenate(drawn)[:count] if drawn else np.zeros(0, dtype=np.int64)
