"""What a set of cases says about cases to come: intervals by patient, paired differences, agreement of volumes.

A patient (group) is the unit that is drawn, never a case: two scans of one patient are not two patients. Random numbers
come from a generator with a fixed seed, so that equal scores give equal reports.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtr, ndtri

Floats = NDArray[np.float64]

CONFIDENCE = 0.95

RESAMPLES = 4000
"""Bootstrap draws: the ends of a 95 % interval then vary by about 0.02 standard errors from seed to seed."""

FEWEST = 5
"""Below so many patients no interval is given: a resample is too often one patient repeated."""

FEWEST_PAIRED = 6
"""Below so many patients no change of signs is rarer than 5 % (2 of 2**5), so a difference has no 95 % interval."""

FEW = 20
"""Below so many patients the report warns: intervals are wide."""

EXACT_GROUPS = 14
"""Up to so many patients all 2**n sign changes are counted; above, they are drawn."""

DRAWS = 20_000
"""Sign changes drawn where they are too many to count, so that a p of 0.05 is known to about 0.0015; and weights drawn
for the mean of a score, whose ends vary by less than with the bootstrap's number."""

BLOCK = 2_000_000
"""Most numbers that one step of a resampling holds at a time, about 16 MB."""


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """A paired comparison, case by case.

    Attributes:
        cases: how many pairs.
        groups: how many patients they come from.
        difference: mean of (second minus first).
        interval: the differences that the test would not reject, or None with fewer than `FEWEST_PAIRED` patients.
        p: two-sided, by exchanging the two within a patient.
        exact: whether all sign changes were counted; else they were drawn.
        smallest_p: what the test could at best give for these patients, were all changed the same way.
        effect: mean over standard deviation of the patients' differences (Cohen's d_z), or None without spread.
        better: pairs in which the second is larger.
        worse: pairs in which the second is smaller.
    """

    cases: int
    groups: int
    difference: float
    interval: Interval | None
    p: float
    exact: bool
    smallest_p: float
    effect: float | None
    better: int
    worse: int


@dataclass(frozen=True)
class Agreement:
    """How two measurements of the same volumes agree.

    Attributes:
        bias: mean of (second minus first).
        low: lower limit of agreement, bias minus 1.96 standard deviations (Bland and Altman 1986).
        high: upper limit.
        icc: intraclass correlation ICC(A,1) (two-way, absolute agreement, single measurement; McGraw and Wong 1996), or
            None when nothing varies.
    """

    bias: float
    low: float
    high: float
    icc: float | None


def mean_interval(
    values: Sequence[float],
    groups: Sequence[str] | None = None,
    *,
    low: float | None = None,
    high: float | None = None,
    seed: int = 0,
) -> Interval | None:
    """Return the 95 % interval of a mean over patients.

    For a score with both bounds: weights for the patients are drawn as in the Bayesian bootstrap (Rubin 1981), and one
    patient more stands at the worst value for the lower end, at the best for the upper (Gaffke 2005; Learned-Miller and
    Thomas 2019). So the lower end knows of misses that a small sample did not happen to hold; where every score is 0 or
    1 it is the exact interval of Clopper and Pearson. Without bounds it is the BCa bootstrap (Efron and Tibshirani
    1993, chapter 14.3). The mean over cases is a ratio of sums over patients, since some have more cases than others.

    Args:
        values: one for each case, finite.
        groups: the patient of each case; every case its own when None.
        low: no value can be smaller.
        high: no value can be larger.
        seed: of the generator.

    Returns:
        The interval, or None with fewer than `FEWEST` patients.
    """
    totals, counts = _by_group(values, groups)
    if len(totals) < FEWEST:
        return None
    if low is not None and high is not None:
        return _bounded(totals, counts, low, high, seed)
    centre = float(totals.sum() / counts.sum())
    if np.abs(totals - centre * counts).max() <= 1e-12 * max(1.0, abs(centre)):  # equal: only rounding varies
        return Interval(centre, centre)
    return _accelerated(totals, counts, centre, seed)


def median_interval(values: Sequence[float], groups: Sequence[str] | None = None, *, seed: int = 0) -> Interval | None:
    """Return the 95 % interval of a median by the percentile bootstrap over patients.

    For a median the percentiles of the draws are nearly the order statistics of the exact binomial interval, and a
    acceleration cannot be had without smoothing.

    Returns:
        The interval, or None with fewer than `FEWEST` patients.
    """
    names = _names(values, groups)
    kinds, member = np.unique(names, return_inverse=True)
    if len(kinds) < FEWEST:
        return None
    order = np.argsort(np.asarray(values, dtype=np.float64), kind="stable")
    ranked, member = np.asarray(values, dtype=np.float64)[order], member[order]
    medians = np.concatenate([_weighted_medians(ranked, w[:, member]) for w in _draws(len(kinds), len(ranked), seed)])
    # Order statistics, not values between them: interpolation would narrow the interval of a small sample.
    bottom = np.quantile(medians, (1 - CONFIDENCE) / 2, method="lower")
    top = np.quantile(medians, (1 + CONFIDENCE) / 2, method="higher")
    return Interval(float(bottom), float(top))


def rate_interval(hits: int, tries: int) -> Interval | None:
    """Return the exact 95 % interval of a rate (Clopper and Pearson 1934); None without tries.

    It tells what a study without a failure does not: with 0 of 30 a rate up to 12 % is still possible.
    """
    if tries == 0:
        return None
    tail = (1 - CONFIDENCE) / 2
    low = float(betaincinv(hits, tries - hits + 1, tail)) if hits else 0.0
    high = float(betaincinv(hits + 1, tries - hits, 1 - tail)) if hits < tries else 1.0
    return Interval(low, high)


def paired(
    first: Sequence[float],
    second: Sequence[float],
    groups: Sequence[str] | None = None,
    *,
    seed: int = 0,
) -> Paired:
    """Compare two sets of scores of the same cases by a permutation test over patients.

    Under the null the two are exchangeable within a patient, so the sign of each patient's summed difference is a coin
    (Good 2005). All sign changes are counted for up to `EXACT_GROUPS` patients; else they are drawn, and the observed
    one counts as a draw, so p is never 0 and the test keeps its level. The interval holds the differences that the same
    test would not reject: its ends are order statistics of the means of all, or of the drawn, subsets of the patients
    (Hartigan 1969).
    """
    differences = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    totals, counts = _by_group(differences.tolist(), groups)
    spread = float(np.std(totals / counts, ddof=1)) if len(totals) > 1 else 0.0
    mean, moving = float(differences.mean()), int(np.count_nonzero(totals))
    return Paired(
        cases=len(differences),
        groups=len(totals),
        difference=mean,
        interval=_not_rejected(totals, counts, seed),
        p=_sign_test(totals[totals != 0], seed),
        exact=moving <= EXACT_GROUPS,
        smallest_p=max(2.0 ** (1 - moving), 0.0 if moving <= EXACT_GROUPS else 1 / (DRAWS + 1)) if moving else 1.0,
        effect=float((totals / counts).mean()) / spread if spread > 0 else None,
        better=int((differences > 0).sum()),
        worse=int((differences < 0).sum()),
    )


def holm(p: Sequence[float]) -> list[float]:
    """Correct p values for several comparisons (Holm 1979), in the order given."""
    order = np.argsort(p, kind="stable")
    stepped = [min(1.0, float(p[n]) * (len(p) - rank)) for rank, n in enumerate(order)]
    corrected = np.empty(len(p))
    corrected[order] = np.maximum.accumulate(stepped) if stepped else []
    return [float(v) for v in corrected]


def agreement(first: Sequence[float], second: Sequence[float]) -> Agreement | None:
    """Return bias, limits of agreement and ICC of two measurements, or None with fewer than three cases."""
    table = np.stack([np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)], axis=1)
    n = len(table)
    if n < 3:
        return None
    difference = table[:, 1] - table[:, 0]
    bias, spread = float(difference.mean()), float(difference.std(ddof=1))
    rows = 2 * float(table.mean(axis=1).var(ddof=1))
    columns = n * float(table.mean(axis=0).var(ddof=1))
    residual = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
    rest = float((residual**2).sum()) / (n - 1)
    below = rows + rest + 2 / n * (columns - rest)
    icc = (rows - rest) / below if below > 0 else None
    return Agreement(bias, bias - 1.96 * spread, bias + 1.96 * spread, icc)


def _names(values: Sequence[float], groups: Sequence[str] | None) -> list[str]:
    if groups is None:
        return [str(n) for n in range(len(values))]
    if len(groups) != len(values):
        raise ValueError(f"{len(values)} values, {len(groups)} groups")
    return list(groups)


def _by_group(values: Sequence[float], groups: Sequence[str] | None) -> tuple[Floats, Floats]:
    _, member = np.unique(_names(values, groups), return_inverse=True)
    totals = np.bincount(member, weights=np.asarray(values, dtype=np.float64)).astype(np.float64)
    return totals, np.bincount(member).astype(np.float64)


def _draws(groups: int, width: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield how often each patient is drawn, `(draws, groups)`, in blocks that stay small for `width` cases."""
    generator = np.random.default_rng(seed)
    block = max(1, min(RESAMPLES, BLOCK // max(width, groups)))
    for start in range(0, RESAMPLES, block):
        size = min(block, RESAMPLES - start)
        drawn = generator.integers(0, groups, size=(size, groups)) + np.arange(size)[:, None] * groups
        # Counting once over all draws is several times faster than Generator.multinomial.
        yield np.bincount(drawn.ravel(), minlength=size * groups).reshape(size, groups)


def _bounded(totals: Floats, counts: Floats, low: float, high: float, seed: int) -> Interval:
    """Return the interval of a mean between bounds, with a patient of average size more at the bound of either end."""
    n, generator, size = len(totals), np.random.default_rng(seed), float(counts.mean())
    bottom, top = [], []
    block = max(1, BLOCK // n)
    for start in range(0, DRAWS, block):
        # Exponential weights over their sum fall as Dirichlet(1, ..., 1) does; the ratio needs no sum.
        weights = generator.standard_exponential((min(block, DRAWS - start), n + 1))
        known, added = weights[:, :n], weights[:, n] * size
        total, cases = known @ totals, known @ counts + added
        bottom.append((total + added * low) / cases)
        top.append((total + added * high) / cases)
    tail = (1 - CONFIDENCE) / 2
    ends = np.quantile(np.concatenate(bottom), tail), np.quantile(np.concatenate(top), 1 - tail)
    return Interval(*(float(np.clip(end, low, high)) for end in ends))


def _accelerated(totals: Floats, counts: Floats, centre: float, seed: int) -> Interval:
    """Return the BCa interval of the mean; the acceleration comes from leaving out one patient at a time."""
    n = len(totals)
    means = np.concatenate([weights @ totals / (weights @ counts) for weights in _draws(n, n, seed)])
    # Half of the draws that hit the mean itself: the share below is then right for data with ties.
    below = float((means < centre).mean() + (means == centre).mean() / 2)
    bias = ndtri(np.clip(below, 1 / RESAMPLES, 1 - 1 / RESAMPLES))
    left_out = (totals.sum() - totals) / (counts.sum() - counts)
    away = left_out.mean() - left_out
    skew = float((away**3).sum()) / (6 * float((away**2).sum()) ** 1.5)
    ends = bias + ndtri([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    low, high = np.quantile(means, ndtr(bias + ends / (1 - skew * ends)))
    return Interval(float(low), float(high))


def _weighted_medians(ranked: Floats, weights: NDArray[np.int64]) -> Floats:
    """Return the median of each draw; `weights` is `(draws, cases)` in the order of `ranked`."""
    reached = np.cumsum(weights, axis=1)
    total = reached[:, -1:]
    below = ranked[np.argmax(2 * reached >= total, axis=1)]
    above = ranked[np.argmax(2 * reached > total, axis=1)]
    return np.asarray((below + above) / 2, dtype=np.float64)


def _subsets(groups: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """Yield which patients change their sign, `(changes, groups)`: all 2**n ways for few patients, else drawn ones."""
    if groups <= EXACT_GROUPS:
        yield (np.arange(2**groups)[:, None] >> np.arange(groups) & 1).astype(np.uint8)
        return
    generator, block = np.random.default_rng(seed), max(1, BLOCK // groups)
    for start in range(0, DRAWS, block):
        # Eight signs from each random byte: several times faster than one draw for each.
        packed = generator.integers(0, 256, (min(block, DRAWS - start), -(-groups // 8)), dtype=np.uint8)
        yield np.unpackbits(packed, axis=1, count=groups)


def _sign_test(moving: Floats, seed: int) -> float:
    if not len(moving):
        return 1.0
    # Equal sums in another order of adding count as equal.
    observed = abs(moving.sum()) - 1e-12 * np.abs(moving).sum()
    changed = np.concatenate([subsets @ moving for subsets in _subsets(len(moving), seed)])
    hits = int((np.abs(moving.sum() - 2 * changed) >= observed).sum())
    return hits / len(changed) if len(moving) <= EXACT_GROUPS else (hits + 1) / (DRAWS + 1)


def _not_rejected(totals: Floats, counts: Floats, seed: int) -> Interval | None:
    """Return the mean differences that the sign test does not reject; None with too few patients.

    A difference below the mean has p = 2 (1 + k) / 2**n, where k of the non-empty subsets have a mean of at most it.
    """
    n = len(totals)
    if n < FEWEST_PAIRED:
        return None
    sums = np.concatenate([np.stack([s @ totals, s @ counts]) for s in _subsets(n, seed)], axis=1)
    means = np.sort(sums[0, sums[1] > 0] / sums[1, sums[1] > 0])
    rank = int((1 - CONFIDENCE) / 2 * sums.shape[1])
    return Interval(float(means[rank - 1]), float(means[-rank]))
