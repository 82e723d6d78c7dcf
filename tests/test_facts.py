"""Facts by arithmetic, blind to the order of axes; how far cases reach, alone and together."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.facts import (
    LabelFacts,
    ScanFacts,
    Seen,
    body_sample,
    joined,
    label_facts,
    relative,
    scan_facts,
    seen_by,
    seen_in,
)
from medseg.grid import Grid
from medseg.volume import Mask, Volume
from tests.strategies import ORIENTATIONS, affine

GRID = Grid((6, 7, 8), affine("RAS", (10.0, -7.0, 4.0), (0.5, 2.0, 4.0), (1.0, 2.0, 3.0)))
"""Voxels of 4 mm^3: 0.004 ml."""


def facts(**changes: object) -> ScanFacts:
    return ScanFacts(**{**asdict(ScanFacts("CHEST", (1, 1, 5), (10, 10, 4), ("MR",), ((0, 1, 2, 3, 4),))), **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_facts_go_by_the_body_not_by_the_array(codes: str) -> None:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[0:2, 3, 3] = labels[4, 3, 3] = 1  # two pieces, 3 voxels; the first at the border across x
    labels[2, 1:6, 7] = 3  # at the border across z
    order = GRID.order_to(codes)
    grid = GRID.reordered(order)
    found = label_facts(Mask(np.ascontiguousarray(order.apply(labels)), grid), 3)
    assert found[0] == LabelFacts(pytest.approx(0.012), 2, (True, False, False))  # type: ignore[arg-type]
    assert found[1] == LabelFacts()
    assert found[2] == LabelFacts(pytest.approx(0.02), 1, (False, False, True))  # type: ignore[arg-type]
    scan = scan_facts(Volume(np.zeros((1, *grid.shape), np.int16), grid), [""])
    assert scan.shape == (6, 7, 8)
    assert scan.spacing_mm == pytest.approx((0.5, 2, 4))
    assert scan.extent_mm == pytest.approx((3, 14, 32))


def test_numbers_beyond_the_labels_do_not_count() -> None:
    labels = np.full(GRID.shape, 255, np.uint8)  # nobody annotated it
    assert label_facts(Mask(labels, GRID), 2) == (LabelFacts(), LabelFacts())


def test_profile_of_the_body() -> None:
    """A CT: half air, then 0 to 100 HU evenly: the p-th percentile of the body is p."""
    voxels = np.full((40, 41, 43), -1000, np.float32)
    voxels[20:] = np.linspace(0, 100, 20 * 41 * 43, dtype=np.float32).reshape(20, 41, 43)
    (profile,) = scan_facts(Volume(voxels[None], Grid((40, 41, 43), np.eye(4))), ["CT"]).profiles
    assert profile == pytest.approx((5, 25, 50, 75, 95), abs=0.5)


def test_air_alone_has_no_profile() -> None:
    voxels = np.full((1, 4, 5, 6), -1000, np.int16)
    assert scan_facts(Volume(voxels, Grid((4, 5, 6), np.eye(4))), ["CT"]).profiles == (None,)


def test_the_sample_is_spread_over_all_columns() -> None:
    """A stride of 8 in a row of 64 would meet 8 columns only."""
    voxels = np.broadcast_to(np.arange(64, dtype=np.float32), (160, 80, 64))
    assert set(np.unique(body_sample(voxels, "CT"))) == set(range(64))


def test_relative_profile() -> None:
    assert relative((10, 20, 30, 40, 50)) == (0, 0.25, 0.5, 0.75, 1)
    assert relative((7, 7, 7, 7, 7)) is None
    assert relative(None) is None


def test_two_cases_reach_as_far_as_both() -> None:
    first = seen_in(facts(), {"tumour": LabelFacts(2.0, 1, (True, False, False)), "node": LabelFacts()})
    second = seen_in(
        facts(spacing_mm=(0.5, 2, 5), shape=(20, 5, 8), modalities=("CT",), profiles=((10, 10, 10, 10, 10),)),
        {"tumour": LabelFacts(0.5, 3, (True, True, False)), "node": LabelFacts()},
    )
    both = joined([first, second])
    assert both.cases == 2
    assert both.spacing_mm == ((0.5, 1), (1, 2), (5, 5))
    assert both.extent_mm == ((10, 10), (10, 10), (20, 40))
    assert both.channels[0].modalities == {"CT": 1, "MR": 1}
    assert both.channels[0].profile == ((0, 10), (1, 10), (2, 10), (3, 10), (4, 10))
    assert both.channels[0].relative == (
        (0, 0),
        (0.25, 0.25),
        (0.5, 0.5),
        (0.75, 0.75),
        (1, 1),
    )  # the flat one has none
    tumour, node = both.labels["tumour"], both.labels["node"]
    assert (tumour.cases, tumour.volume_ml, tumour.most_pieces, tumour.at_border) == (2, (0.5, 2.0), 3, (2, 1, 0))
    assert (node.cases, node.volume_ml, node.most_pieces) == (0, None, 0)


@given(st.lists(st.tuples(st.floats(0.1, 9), st.integers(1, 500), st.floats(0, 99), st.integers(0, 9)), min_size=1))
def test_joining_is_blind_to_order_and_grouping(cases: list[tuple[float, int, float, int]]) -> None:
    parts = [
        seen_in(facts(spacing_mm=(mm, 1, 1), shape=(n, 1, 1)), {"tumour": LabelFacts(ml, pieces)})
        for mm, n, ml, pieces in cases
    ]
    whole = joined(parts)
    assert joined(parts[::-1]) == whole
    assert joined([joined(parts[:1]), *parts[1:]]) == whole


def test_what_a_model_tells() -> None:
    one, other = seen_in(facts(), {}), seen_in(facts(shape=(99, 10, 4)), {})
    stored = [{"cases": 1, "seen": json.loads(json.dumps(asdict(seen)))} for seen in (one, other)]
    assert seen_by(stored[0]) == one
    assert seen_by({"members": stored}) == joined([one, other])


@pytest.mark.parametrize(
    "trained_on",
    [{}, {"cases": 5}, {"seen": {}}, {"seen": None}, {"members": [{}]}, {"members": 3}, {"seen": {"cases": "many"}}],
)
def test_an_older_model_does_not_tell(trained_on: dict[str, object]) -> None:
    assert seen_by(trained_on) is None


def test_members_of_other_labels_do_not_join() -> None:
    parts: list[Seen] = [seen_in(facts(), {"a": LabelFacts()}), seen_in(facts(), {"b": LabelFacts()})]
    assert seen_by({"members": [{"seen": asdict(part)} for part in parts]}) is None
