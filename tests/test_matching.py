from __future__ import annotations

from pathlib import Path

import pytest

from medseg.case import Case
from medseg.config import Config
from medseg.errors import MaskError
from medseg.matching import keep_needed, match_names
from tests.cases import series, structures


def settings(ignore: object = (), **labels: object) -> Config:
    return Config(labels=labels, ignore=ignore)  # type: ignore[arg-type]


def test_lists_and_patterns_merge_and_rename() -> None:
    match = match_names(["GTV_Mass", "GTV-1", "Bladder"], settings(tumour=["GTV_Mass", "GTV*"]))
    assert match.sources == {"tumour": ("GTV_Mass", "GTV-1")}
    assert match.unmatched == ("Bladder",)


def test_a_written_name_goes_before_a_pattern_and_ignored_before_taken() -> None:
    config = settings(ignore=["GTV_old*"], tumour=["GTV*"], node=["GTV_node"])
    match = match_names(["GTV_node", "GTV_old2", "GTVp"], config)
    assert match.sources == {"node": ("GTV_node",), "tumour": ("GTVp",)}
    assert match.ignored == ("GTV_old2",)


def test_an_earlier_label_goes_before_a_later_one() -> None:
    assert match_names(["GTV1"], settings(a=["GTV*"], b=["*1"])).sources == {"a": ("GTV1",)}


def test_case_counts_unless_nothing_else_fits() -> None:
    assert match_names(["gtv"], settings(a=["GTV"], b=["g*"])).sources == {"b": ("gtv",)}
    loose = match_names(["Gtv"], settings(a=["GTV"]))
    assert (loose.sources, loose.loose) == ({"a": ("Gtv",)}, ("Gtv",))


def test_brackets_in_a_written_name_are_letters() -> None:
    assert match_names(["GTV [1]"], settings(a=["GTV [1]"])).sources == {"a": ("GTV [1]",)}


def test_what_nobody_annotated_is_told_apart_from_what_is_ignored() -> None:
    config = Config(labels={"tumour": ("GTV*",)}, ignore=("Skin",), unannotated=("GTV_unsure", 9, "unclear*"))
    match = match_names(["GTV_1", "Skin", "GTV_unsure", "unclear area", "Bone"], config)
    assert match.sources == {"tumour": ("GTV_1",)}
    assert (match.ignored, match.unmatched) == (("Skin",), ("Bone",))
    assert match.unannotated == ("GTV_unsure", "unclear area")
    assert match_names(["segment"], config, {"segment": {9}}).unannotated == ("segment",)


def test_segment_numbers() -> None:
    config = settings(tumour=2, organ=["Liver"])
    match = match_names(["Neoplasm", "Liver"], config, {"Neoplasm": {2}, "Liver": {1}})
    assert match.sources == {"tumour": ("Neoplasm",), "organ": ("Liver",)}
    with pytest.raises(MaskError) as raised:
        match_names(["Lesion"], settings(a=1, b=2), {"Lesion": {1, 2}})
    assert raised.value.code == "MASK-AMBIGUOUS"


def case(*files: tuple[str, tuple[str, ...]]) -> Case:
    found = series("P1/MR", "1")
    return Case("P1", "p", (found,), tuple(structures(f"P1/{name}", ["1"], names=names) for name, names in files))


def test_only_references_with_a_wanted_structure_are_kept() -> None:
    kept, findings = keep_needed([case(("a.dcm", ("GTV",)), ("b.dcm", ("Bladder",)))], settings(tumour=["GTV"]))
    assert [reference.path.name for reference in kept[0].references if not isinstance(reference, Path)] == ["a.dcm"]
    (note,) = findings
    assert note.code == "MASK-STRUCTURES"
    assert "tumour takes GTV (1)" in note.message
    assert "Bladder (1)" in note.message


def test_two_structure_sets_for_one_label_and_none_for_any() -> None:
    kept, findings = keep_needed([case(("a.dcm", ("GTV",)), ("b.dcm", ("GTV",)))], settings(tumour=["GTV"]))
    assert (kept, [f.code for f in findings]) == ([], ["MASK-AMBIGUOUS"])
    kept, findings = keep_needed([case(("a.dcm", ("GTV",)))], settings(tumour=1))
    assert (kept, [f.code for f in findings]) == ([], ["LABEL-UNKNOWN"])
    assert "[GTV]" in findings[0].message  # what to write
