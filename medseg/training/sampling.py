"""Which slices make which batch: a function of seed, epoch and step, so that a resumed run goes on as it would have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, order=True)
class SliceId:
    """One training slice: the case, and its place along the stack of the working grid."""

    case: str
    index: int


def epoch_batches(
    slices: Sequence[SliceId],
    foreground: Sequence[bool],
    *,
    batch_size: int,
    share: float | None,
    steps: int | None,
    seed: int,
    epoch: int,
) -> list[list[SliceId]]:
    """Draw the batches of one epoch.

    Args:
        slices: all training slices.
        foreground: for each, whether a label stands in it.
        batch_size: slices in a batch; the last batch of an epoch may be smaller.
        share: part of each batch drawn from slices with foreground; None takes every slice once, in random order.
        steps: batches in the epoch; as many as take every slice once when None.
        seed: of the run.
        epoch: its number.

    Returns:
        Lists of slices. Without replacement until a pool is used up, then it starts anew.
    """
    rng = np.random.default_rng([seed, epoch])
    with_foreground = np.flatnonzero(np.asarray(foreground, dtype=bool))
    everything = np.arange(len(slices))
    total = len(slices) if steps is None else steps * batch_size
    sizes = [min(batch_size, total - start) for start in range(0, total, batch_size)]
    wanted = _rich_sizes(sizes, share if share is not None and len(with_foreground) else 0.0)
    rich = _draw(with_foreground, sum(wanted), rng)
    plain = _draw(everything, total - sum(wanted), rng)
    batches = []
    for size, rich_size in zip(sizes, wanted, strict=True):
        chosen, rich = rich[:rich_size], rich[rich_size:]
        others, plain = plain[: size - rich_size], plain[size - rich_size :]
        batches.append([slices[number] for number in np.concatenate([chosen, others])])
    return batches


def _rich_sizes(sizes: Sequence[int], share: float) -> list[int]:
    """Return how many slices of each batch are drawn from those with foreground.

    The running total is rounded, not each batch: rounded alone, half of a batch of 1 would always be 0, of 3 always 2.
    """
    totals = [math.floor(share * total + 0.5) for total in accumulate(sizes, initial=0)]
    return [later - earlier for earlier, later in pairwise(totals)]


def _draw(pool: NDArray[np.int64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    rounds = -(-count // len(pool)) if len(pool) else 0
    drawn = [rng.permutation(pool) for _ in range(rounds)]
    return np.concatenate(drawn)[:count] if drawn else np.zeros(0, dtype=np.int64)
