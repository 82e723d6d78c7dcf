"""Which slices make which batch: nothing but seed and epoch decide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.training.sampling import Drawn, SliceId, epoch_batches

SLICES = [SliceId(f"case{n // 10}", n % 10) for n in range(30)]
FOREGROUND = {one: (1,) if one.index in (4, 5) else () for one in SLICES}  # 6 of 30


def drawn(labels: Mapping[SliceId, Collection[int]] = FOREGROUND, **changes: Any) -> list[list[Drawn]]:
    settings = {"batch_size": 4, "share": None, "steps": None, "seed": 0, "epoch": 0, **changes}
    return epoch_batches(labels, **settings)


def draw(labels: Mapping[SliceId, Collection[int]] = FOREGROUND, **changes: Any) -> list[list[SliceId]]:
    return [[one.slice for one in batch] for batch in drawn(labels, **changes)]


def rich(batches: list[list[SliceId]]) -> int:
    return sum(bool(FOREGROUND[one]) for batch in batches for one in batch)


@given(st.integers(0, 2**32 - 1), st.integers(0, 500), st.sampled_from([None, 0.0, 0.3, 0.5, 1.0]))
def test_a_function_of_seed_and_epoch(seed: int, epoch: int, share: float | None) -> None:
    first = draw(seed=seed, epoch=epoch, share=share)
    draw(seed=seed, epoch=epoch + 1, share=share)  # what was drawn before plays no part
    assert draw(seed=seed, epoch=epoch, share=share) == first
    assert draw(seed=seed, epoch=epoch + 1, share=share) != first
    assert draw(seed=seed + 1, epoch=epoch, share=share) != first


@given(st.integers(1, 40), st.integers(0, 50))
def test_without_a_share_every_slice_comes_once(batch_size: int, epoch: int) -> None:
    batches = draw(batch_size=batch_size, epoch=epoch)
    assert sorted(one for batch in batches for one in batch) == SLICES
    assert len(batches) == -(-30 // batch_size)  # 30 slices, the last batch may be smaller
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}


@given(st.integers(1, 7), st.floats(0, 1), st.integers(1, 30))
def test_the_share_holds_over_the_epoch(batch_size: int, share: float, steps: int) -> None:
    batches = draw(batch_size=batch_size, share=share, steps=steps)
    total = steps * batch_size
    assert sum(map(len, batches)) == total
    assert rich(batches) >= round(share * total) - 1  # the other draws may hit foreground too


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_the_share_holds_for_any_batch_size(batch_size: int, share: float) -> None:
    # 6 of 30 slices are rich. Expected: share + (1 - share) * 0.2 of 4000 draws; 5 standard deviations are under 0.04.
    batches = draw(batch_size=batch_size, share=share, steps=4000 // batch_size)
    part = rich(batches) / sum(map(len, batches))
    assert part == pytest.approx(share + (1 - share) * 0.2, abs=0.04)


def test_batches_are_alike() -> None:
    for batch in draw(batch_size=8, share=0.5, steps=50):
        assert rich([batch]) >= 4


def test_nothing_returns_before_a_pool_is_used_up() -> None:
    drawn = [one for batch in draw(batch_size=5, share=None, steps=15) for one in batch]
    counts = Counter(drawn)
    assert len(drawn) == 75  # 30 slices: two and a half times
    assert set(counts.values()) == {2, 3}
    assert set(Counter(drawn[:30]).values()) == {1}


def test_rich_slices_return_only_after_all_came() -> None:
    only_rich = draw(batch_size=2, share=1.0, steps=6)  # 12 draws of 6 slices
    assert set(Counter(one for batch in only_rich for one in batch).values()) == {2}


def test_a_study_without_foreground_still_trains() -> None:
    batches = draw(dict.fromkeys(SLICES, ()), share=0.5)
    assert sorted(one for batch in batches for one in batch) == SLICES


def test_of_the_labels_of_a_case_each_is_drawn_as_often_as_the_others() -> None:
    # An organ everywhere, and in one case of three a tumour in one slice.
    labels = {one: (1, 2) if one == SLICES[7] else (1,) for one in SLICES}
    batches = drawn(labels, batch_size=8, share=0.5, steps=600)
    counts = Counter((one.slice.case, one.label) for batch in batches for one in batch if one.label)
    assert counts[SLICES[7].case, 1] + counts[SLICES[7].case, 2] == 800  # each case a third of 2400
    assert counts[SLICES[7].case, 2] == pytest.approx(400, abs=5 * 200**0.5)  # half, within 5 standard deviations
    assert {one.slice for batch in batches for one in batch if one.label == 2} == {SLICES[7]}


@given(st.integers(0, 100), st.sampled_from([0.3, 0.5, 1.0]))
def test_what_is_drawn_for_a_label_holds_it(epoch: int, share: float) -> None:
    labels = {one: tuple(number for number in (1, 2, 3) if one.index % (number + 1) == 0) for one in SLICES}
    for batch in drawn(labels, epoch=epoch, share=share, batch_size=7):
        assert all(one.label is None or one.label in labels[one.slice] for one in batch)


def test_without_a_share_patches_lie_anywhere() -> None:
    assert {one.label for batch in drawn(share=None) for one in batch} == {None}
