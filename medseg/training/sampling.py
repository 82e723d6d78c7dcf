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
        share: part of each batch drawn for a label, every label as often as the others however rare it is; None takes
            every slice once, in random order.
        steps: batches in the epoch; as many as take every slice once when None.
        seed: of the run.
        epoch: its number.

    Returns:
        Lists of slices. Without replacement until a pool is used up, then it starts anew.
    """
    rng = np.random.default_rng([seed, epoch])
    names = list(slices)
    pools = {number: np.flatnonzero([number in own for own in slices.values()]) for number in _labels(slices)}
    total = len(names) if steps is None else steps * batch_size
    sizes = [min(batch_size, total - start) for start in range(0, total, batch_size)]
    wanted = _rich_sizes(sizes, share if share is not None and pools else 0.0)
    labels = _draw(np.array(list(pools), dtype=np.int64), sum(wanted), rng).tolist()
    of_label = {number: iter(_draw(pool, labels.count(number), rng).tolist()) for number, pool in pools.items()}
    rich = iter([Drawn(names[next(of_label[number])], number) for number in labels])
    plain = (Drawn(names[place], None) for place in _draw(np.arange(len(names)), total - sum(wanted), rng).tolist())
    return [
        [*islice(rich, rich_size), *islice(plain, size - rich_size)]
        for size, rich_size in zip(sizes, wanted, strict=True)
    ]


def _labels(slices: Mapping[SliceId, Collection[int]]) -> list[int]:
    return sorted({number for own in slices.values() for number in own})


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
