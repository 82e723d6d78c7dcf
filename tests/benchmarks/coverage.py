"""How often the 95 % intervals hold the true value, and how often `compare` sees a difference where there is none.

    python tests/benchmarks/coverage.py coverage --studies 2000
    python tests/benchmarks/coverage.py null --studies 10000

Scores are drawn as Dice really falls: a share of missed cases at exactly 0, the others from a skewed beta distribution.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import numpy as np
from scipy import stats

from medseg.statistics import Interval, mean_interval, median_interval, paired

KINDS = {"rare": (0.05, 12.0, 2.0), "usual": (0.10, 8.0, 2.0), "hard": (0.20, 6.0, 1.5)}
"""Share at 0, and the two parameters of the beta distribution."""

SIZES = (10, 30, 100)


def draw(rng: np.random.Generator, kind: str, cases: int) -> np.ndarray:
    """Draw the Dice of a study."""
    missed, a, b = KINDS[kind]
    return rng.beta(a, b, cases) * (rng.random(cases) >= missed)


def percentile(values: list[float], seed: int) -> Interval:
    """Give the plain percentile bootstrap of the mean, for comparison."""
    rng = np.random.default_rng(seed)
    means = np.asarray(values)[rng.integers(0, len(values), (2000, len(values)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(low), float(high))


def coverage(kinds: list[str], sizes: list[int], studies: int) -> Iterator[str]:
    """Count the intervals that hold the mean and the median of the distribution."""
    yield "| scores | cases | mean: studentised | mean: percentile | median | width of the mean's |"
    yield "|---|---|---|---|---|---|"
    for kind in kinds:
        missed, a, b = KINDS[kind]
        mean, median = (1 - missed) * a / (a + b), float(stats.beta.ppf((0.5 - missed) / (1 - missed), a, b))
        for cases in sizes:
            rng = np.random.default_rng([cases, studies])
            held, plain, middle, width = 0, 0, 0, 0.0
            for study in range(studies):
                values = draw(rng, kind, cases).tolist()
                mine, theirs = mean_interval(values, low=0, high=1, seed=study), percentile(values, study)
                order = median_interval(values, seed=study)
                assert mine is not None
                assert order is not None
                held += mine.low <= mean <= mine.high
                plain += theirs.low <= mean <= theirs.high
                middle += order.low <= median <= order.high
                width += mine.high - mine.low
            shares = (f"{100 * n / studies:.1f} %" for n in (held, plain, middle))
            yield f"| {kind} | {cases} | {' | '.join(shares)} | {width / studies:.3f} |"


def null(kinds: list[str], sizes: list[int], studies: int) -> Iterator[str]:
    """Count the tests that give p below 0.05 for two reports that are exchangeable within a case."""
    yield "| scores | cases | p < 0.05 |"
    yield "|---|---|---|"
    for kind in kinds:
        for cases in sizes:
            rng = np.random.default_rng([cases, studies, 1])
            called = 0
            for study in range(studies):
                # Two methods on one case share its difficulty: here half of each score, at random.
                shared, first, second = (draw(rng, kind, cases) for _ in range(3))
                mine, theirs = ((shared + own) / 2 for own in (first, second))
                called += paired(mine.tolist(), theirs.tolist(), low=-1, high=1, seed=study).p < 0.05
            yield f"| {kind} | {cases} | {100 * called / studies:.1f} % |"


def main() -> None:
    """Print one table."""
    tables: dict[str, Callable[[list[str], list[int], int], Iterator[str]]] = {"coverage": coverage, "null": null}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=tables)
    parser.add_argument("--studies", type=int, default=500)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    given = parser.parse_args()
    for line in tables[given.table](given.kinds, given.sizes, given.studies):
        print(line, flush=True)


if __name__ == "__main__":
    main()
