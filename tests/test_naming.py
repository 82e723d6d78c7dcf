from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.naming import MASK_WORDS, Named, bare, looks_like, owner_key, pair_names, parts_below, words


def named(*parts: str) -> Named:
    return Named("_".join(parts), (parts,))


@pytest.mark.parametrize(
    ("scan", "mask"),
    [
        (("case_01",), ("case_01",)),
        (("Case_01",), ("case_01",)),
        (("case_01",), ("case_01_seg",)),
        (("case_01",), ("case_01-label",)),
        (("case_01",), ("mask_case_01",)),
        (("case_01",), ("case_01_tumour",)),
        (("liver_7_0000",), ("liver_7",)),
        (("imagesTr", "liver_7_0000"), ("labelsTr", "liver_7")),
        (("volume-12",), ("segmentation-12",)),
        (("img0001",), ("label0001",)),
        (("case_01", "imaging"), ("case_01", "segmentation")),
        (("case_01", "t1"), ("case_01",)),
        (("sub-03", "anat", "sub-03_T1w"), ("sub-03", "anat", "sub-03_T1w_mask")),
        (("siteA", "case_01"), ("case_01_mask",)),
        (("siteA", "case_01"), ("siteA_case_01",)),
        (("STS_001", "MR_T1"), ("STS_001",)),
        (("STS_001", "axial thin"), ("STS_001", "drawn by reader 2")),
    ],
)
def test_the_usual_ways_of_naming_pair(scan: tuple[str, ...], mask: tuple[str, ...]) -> None:
    decoy_scan, decoy_mask = named("elsewhere", "other_99"), named("other_77_seg")
    pairs, knots = pair_names([decoy_scan, named(*scan)], [named(*mask), decoy_mask])
    assert pairs == {1: 0}
    assert not knots


def test_what_fits_two_ways_is_a_knot_and_not_a_guess() -> None:
    pairs, knots = pair_names([named("siteA", "case_01"), named("siteB", "case_01")], [named("case_01")])
    assert pairs == {}
    assert knots == [({0, 1}, {0})]


def test_sites_with_equal_names_pair_by_their_folders() -> None:
    scans = [named("siteA", "case_01"), named("siteB", "case_01")]
    masks = [named("siteB", "case_01"), named("siteA", "case_01")]
    assert pair_names(scans, masks) == ({0: 1, 1: 0}, [])


def test_numbers_at_the_end_are_names_and_not_channels() -> None:
    ids = [named(f"case_{n:04}") for n in range(12)]
    assert pair_names(ids, list(reversed(ids))) == ({n: 11 - n for n in range(12)}, [])


NAMES = st.lists(st.from_regex(r"[a-z]{3}[0-9]{1,3}", fullmatch=True), unique=True, min_size=1, max_size=8)


@given(NAMES, st.randoms(use_true_random=False))
def test_the_order_of_files_does_not_matter(names: list[str], random) -> None:  # type: ignore[no-untyped-def]
    scans, masks = [named(name) for name in names], [named(f"{name}_seg") for name in names]
    shuffled = random.sample(range(len(names)), len(names))
    pairs, knots = pair_names(scans, [masks[n] for n in shuffled])
    assert not knots
    assert {scan: shuffled[mask] for scan, mask in pairs.items()} == {n: n for n in range(len(names))}


@given(st.text(max_size=20))
def test_any_name_has_words_and_bare_takes_only_ends(name: str) -> None:
    found = words(name)
    kept = bare(found, MASK_WORDS)
    assert " ".join(kept) in " ".join(found)
    assert not kept or (kept[0] not in MASK_WORDS and kept[-1] not in MASK_WORDS)


@pytest.mark.parametrize(
    ("parts", "is_mask"),
    [
        (("case_01_seg",), True),
        (("labelsTr", "case_01"), True),
        (("segmentation",), True),
        (("case_01",), False),
        (("segmented cases", "case_01"), False),
        (("case_mask_study_01",), False),
        (("label0001",), True),
        (("labelle_01",), False),
    ],
)
def test_a_mask_is_known_by_whole_words_at_the_ends(parts: tuple[str, ...], is_mask: bool) -> None:
    assert looks_like(parts, MASK_WORDS) is is_mask


def test_parts_come_from_the_deepest_root() -> None:
    roots = [Path("/d"), Path("/d/images")]
    assert parts_below(Path("/d/images/a/x.nii.gz"), roots) == ("a", "x")
    assert parts_below(Path("/d/images"), roots) == ("images",)
    assert parts_below(Path("/e/f/g.nii"), roots) == ("f", "g")


def test_an_owner_is_what_no_decoration_explains() -> None:
    assert owner_key(("images", "BraTS_001", "BraTS_001_flair")) == ("brats", "001", "brats", "001")
