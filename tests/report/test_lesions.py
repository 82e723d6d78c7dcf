"""Lesions by size, by hand."""

from __future__ import annotations

import numpy as np

from medseg.grid import Grid
from medseg.metrics import score_case, score_missing
from medseg.report import Report
from medseg.report.html import render
from medseg.report.lesions import by_size
from medseg.report.results import summarise
from medseg.statistics import rate_interval
from medseg.volume import Labels, Mask

GRID = Grid((40, 10, 10), np.diag([5.0, 5, 4, 1]))  # 0.1 ml a voxel
LESION = Labels({1: "lesion"})


def mask(*pieces: tuple[int, int]) -> Mask:
    """Draw pieces of `(start, voxels)`, each a line along i or a slab of 100 voxels."""
    labels = np.zeros(GRID.shape, np.uint8)
    for start, voxels in pieces:
        if voxels >= 100:
            labels[start : start + voxels // 100] = 1
        else:
            labels[start : start + voxels, 0, 0] = 1
    return Mask(labels, GRID)


def test_lesions_are_counted_by_size():
    reference = mask((0, 1), (3, 3), (10, 9), (22, 200))  # 0.1, 0.3, 0.9 and 20 ml
    prediction = mask((11, 2), (23, 400), (30, 1))  # the third and the fourth, and a false one of 0.1 ml
    one = score_case(prediction, reference, LESION, "one")
    two = score_missing(reference, LESION, "two", "no mask")
    sizes = by_size([one.labels[0], two.labels[0]])
    found = [(s.low_ml, s.high_ml, s.found, s.missed, s.false) for s in sizes]
    assert found == [(0.1, 1.0, 1, 5, 1), (10.0, 100.0, 1, 1, 0)]
    assert sizes[0].rate == rate_interval(1, 6)


def test_false_lesions_alone_have_no_rate_and_the_page_shows_the_table():
    empty = Mask(np.zeros(GRID.shape, np.uint8), GRID)
    case = score_case(mask((0, 1), (5, 2)), empty, LESION, "alarm")
    (size,) = by_size([case.labels[0]])
    assert (size.found, size.missed, size.false, size.rate) == (0, 0, 2, None)
    report = summarise(LESION, 2.0, [case], provenance={"date": "today"})
    assert report.results[0].lesions == (size,)
    assert Report.from_json(report.to_json()) == report
    page = render(report, {})
    assert "Lesions by size" in page
    assert "0.1 to 1 ml" in page
