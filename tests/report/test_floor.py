"""The location-only floor against direct counting."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.grid import Grid
from medseg.report import floor
from medseg.report.floor import SHARES, location_curve, location_floor
from medseg.volume import Mask


def ellipsoid(shape, share):
    i, j, k = np.meshgrid(*((np.arange(n) - (n - 1) / 2) / (n / 2) for n in shape), indexing="ij")
    return np.sqrt(i**2 + j**2 + k**2) < share


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_a_centred_ellipsoid_is_found_again(share):
    shape = (30, 41, 16)
    mask = Mask(ellipsoid(shape, share).astype(np.uint8), Grid(shape, np.eye(4)))
    found = location_floor([location_curve(mask, 1)])
    assert found.mean_dice == pytest.approx(1.0, abs=0.01)
    assert found.share == pytest.approx(share, abs=0.026)


def test_the_curve_is_the_dice_of_each_ellipsoid():
    shape = (12, 9, 7)
    wanted = np.random.default_rng(0).random(shape) < 0.2
    curve = location_curve(Mask(wanted.astype(np.uint8), Grid(shape, np.eye(4))), 1)
    for n in (5, 19, 40, 59):
        inside = ellipsoid(shape, SHARES[n])
        assert curve[n] == pytest.approx(2 * (inside & wanted).sum() / (inside.sum() + wanted.sum()), abs=0.02)


def test_one_share_for_all_cases_and_absent_labels_left_out():
    shape = (40, 40, 40)
    grid = Grid(shape, np.eye(4))
    curves = [location_curve(Mask(ellipsoid(shape, s).astype(np.uint8), grid), 1) for s in (0.4, 0.4, 0.8)]
    both = location_floor([*curves, location_curve(Mask(np.zeros(shape, np.uint8), grid), 1)])
    # The small one fits two of three exactly; with the large one it shares 0.4^3 = 0.064 of 0.064 + 0.512: Dice 0.222.
    assert both.share == pytest.approx(0.4, abs=0.026)
    assert both.mean_dice == pytest.approx((1 + 1 + 0.222) / 3, abs=0.01)
    assert both.median_dice == pytest.approx(1.0, abs=0.01)
    assert location_floor([None]) is None


def test_thinning_hardly_moves_it(monkeypatch):
    shape = (64, 60, 40)
    mask = Mask(np.roll(ellipsoid(shape, 0.5), 6, axis=0).astype(np.uint8), Grid(shape, np.eye(4)))
    whole = location_floor([location_curve(mask, 1)])
    monkeypatch.setattr(floor, "SAMPLES", 10_000)
    thin = location_floor([location_curve(mask, 1)])
    assert thin.mean_dice == pytest.approx(whole.mean_dice, abs=0.02)


def test_what_nobody_annotated_counts_neither_way():
    shape = (12, 9, 7)
    generator = np.random.default_rng(0)
    wanted, unknown = generator.random(shape) < 0.2, generator.random(shape) < 0.4
    labels = np.where(unknown, 255, wanted).astype(np.uint8)
    curve = location_curve(Mask(labels, Grid(shape, np.eye(4))), 1, (255,))
    kept = wanted & ~unknown
    for n in (5, 19, 40, 59):
        inside = ellipsoid(shape, SHARES[n]) & ~unknown
        assert curve[n] == pytest.approx(2 * (inside & kept).sum() / (inside.sum() + kept.sum()), abs=0.02)
