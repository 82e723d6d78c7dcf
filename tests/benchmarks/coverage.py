"""How often the 95 % intervals hold the true value, and how often `compare` sees a difference where there is none.

    python tests/benchmarks/coverage.py mean --studies 2000
    python tests/benchmarks/coverage.py median --studies 2000
    python tests/benchmarks/coverage.py difference --studies 2000
    python tests/benchmarks/coverage.py null --studies 10000

Scores are drawn as Dice really falls: a share of missed cases at exactly 0, the others from a skewed beta distribution.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from medseg.statistics import Interval, mean_interval, median_interval, paired

Floats = NDArray[np.float64]

KINDS = {
    "rare": (0.05, 12.0, 2.0),
    "usual": (0.10, 8.0, 2.0),
    "hard": (0.20, 6.0, 1.5),
    "very rare": (0.02, 30.0, 2.0),
    "none missed": (0.0, 12.0, 2.0),
    "easy organ": (0.0, 95.0, 5.0),
}
"""Share at 0, and the two parameters of the beta distribution."""

SIZES = (10, 30, 100)

DRAWS = 2000


def draw(rng: np.random.Generator, kind: str, cases: int) -> Floats:
    """Draw the Dice of a study."""
    missed, a, b = KINDS[kind]
    return rng.beta(a, b, cases) * (rng.random(cases) >= missed)


def percentile(values: Floats, seed: int) -> Interval:
    """Give the plain percentile bootstrap of the mean, for comparison."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (DRAWS, len(values)))].mean(axis=1)
    return Interval(*(float(end) for end in np.quantile(means, (0.025, 0.975))))


def studentised(values: Floats, seed: int) -> Interval:
    """Give the studentised bootstrap of the mean, cut at 0 and 1, for comparison."""
    n, rng = len(values), np.random.default_rng(seed)
    drawn = values[rng.integers(0, n, (DRAWS, n))]
    centre, error = values.mean(), values.std(ddof=1) / n**0.5
    errors = drawn.std(axis=1, ddof=1) / n**0.5
    errors[errors < 1e-9] = 0
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (drawn.mean(axis=1) - centre) / errors
    t = t[~np.isnan(t)]
    high, low = np.quantile(t, 0.025, method="lower"), np.quantile(t, 0.975, method="higher")
    return Interval(float(np.clip(centre - low * error, 0, 1)), float(np.clip(centre - high * error, 0, 1)))


def students_t(values: Floats, _seed: int) -> Interval:
    """Give Student's t interval, for comparison."""
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), values.std(ddof=1) / len(values) ** 0.5)
    return Interval(float(low), float(high))


def gaffke(values: Floats, seed: int) -> Interval:
    """Give the interval that reports give."""
    found = mean_interval(values.tolist(), low=0, high=1, seed=seed)
    assert found is not None
    return found


METHODS: dict[str, Callable[[Floats, int], Interval]] = {
    "Gaffke": gaffke,
    "studentised": studentised,
    "percentile": percentile,
    "Student's t": students_t,
}


def mean(kinds: list[str], sizes: list[int], studies: int) -> Iterator[str]:
    """Count the intervals of each method that hold the mean of the distribution, and their mean width."""
    yield f"| scores | cases | {' | '.join(METHODS)} |"
    yield "|---" * (2 + len(METHODS)) + "|"
    for kind in kinds:
        missed, a, b = KINDS[kind]
        true = (1 - missed) * a / (a + b)
        for cases in sizes:
            rng, cells = np.random.default_rng([cases, studies]), []
            samples = [draw(rng, kind, cases) for _ in range(studies)]
            for method in METHODS.values():
                found = [method(values, seed) for seed, values in enumerate(samples)]
                held = sum(ends.low <= true <= ends.high for ends in found) / studies
                cells.append(f"{100 * held:.1f} % ({np.mean([ends.high - ends.low for ends in found]):.3f})")
            yield f"| {kind} | {cases} | {' | '.join(cells)} |"


def median(kinds: list[str], sizes: list[int], studies: int) -> Iterator[str]:
    """Count the intervals that hold the median of the distribution, and their mean width."""
    yield "| scores | cases | median |"
    yield "|---|---|---|"
    for kind in kinds:
        missed, a, b = KINDS[kind]
        true = float(stats.beta.ppf((0.5 - missed) / (1 - missed), a, b))
        for cases in sizes:
            rng, held, width = np.random.default_rng([cases, studies]), 0, 0.0
            for study in range(studies):
                ends = median_interval(draw(rng, kind, cases).tolist(), seed=study)
                assert ends is not None
                held += ends.low <= true <= ends.high
                width += ends.high - ends.low
            yield f"| {kind} | {cases} | {100 * held / studies:.1f} % ({width / studies:.3f}) |"


def two(rng: np.random.Generator, kind: str, cases: int, spared: float = 0.0) -> tuple[Floats, Floats]:
    """Draw two methods on one study: half of each score is the case's own; the second misses less by a share."""
    missed, a, b = KINDS[kind]
    shared, first, second = (rng.beta(a, b, cases) for _ in range(3))
    hits = (rng.random(cases) >= share for share in (missed, missed * (1 - spared)))
    one, other = ((shared + own) / 2 * hit for own, hit in zip((first, second), hits, strict=True))
    return one, other


def difference(kinds: list[str], sizes: list[int], studies: int) -> Iterator[str]:
    """Count the intervals of a mean difference that hold it: two equal methods, and one that misses 80 % less."""
    yield "| scores | cases | equal | second misses 80 % less |"
    yield "|---|---|---|---|"
    for kind in kinds:
        missed, a, b = KINDS[kind]
        for cases in sizes:
            cells = []
            for spared in (0.0, 0.8):
                rng, held, width = np.random.default_rng([cases, studies, 2]), 0, 0.0
                for study in range(studies):
                    ends = paired(*(scores.tolist() for scores in two(rng, kind, cases, spared)), seed=study).interval
                    assert ends is not None
                    held += ends.low <= missed * spared * a / (a + b) <= ends.high
                    width += ends.high - ends.low
                cells.append(f"{100 * held / studies:.1f} % ({width / studies:.3f})")
            yield f"| {kind} | {cases} | {' | '.join(cells)} |"


def null(kinds: list[str], sizes: list[int], studies: int) -> Iterator[str]:
    """Count the tests that give p below 0.05 for two reports that are exchangeable within a case."""
    yield "| scores | cases | p < 0.05 |"
    yield "|---|---|---|"
    for kind in kinds:
        for cases in sizes:
            rng, called = np.random.default_rng([cases, studies, 1]), 0
            for study in range(studies):
                one, other = two(rng, kind, cases)
                called += paired(one.tolist(), other.tolist(), seed=study).p < 0.05
            yield f"| {kind} | {cases} | {100 * called / studies:.2f} % |"


def main() -> None:
    """Print one table."""
    tables: dict[str, Callable[[list[str], list[int], int], Iterator[str]]] = {
        "mean": mean,
        "median": median,
        "difference": difference,
        "null": null,
    }
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
