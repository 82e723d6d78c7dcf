"""Flags: each one raised by what it names, and by nothing that training has shown."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from medseg.check import examine
from medseg.codes import CODES
from medseg.facts import LabelFacts, ScanFacts, joined, scan_facts, seen_in
from medseg.fingerprint import fingerprint
from medseg.preparation import Channel, Preparation
from medseg.quality import KINDS, WEIGHTS, Flag, judge_doubt, judge_mask, judge_scan, score_of
from medseg.review import REVIEW, Review, Reviews
from medseg.scan import find_scans, read
from tests.cases import config

CT = Preparation("axial", (1.0, 1.0), (Channel("image", "window", window=(-100.0, 200.0)),))
MR = Preparation("axial", (1.0, 1.0), (Channel("image", "percentile"),))

SCAN = ScanFacts("CHEST", (0.8, 0.8, 5.0), (400, 300, 50), ("CT",), ((-100.0, -50.0, 30.0, 60.0, 200.0),))
TUMOUR = LabelFacts(10.0, 2)
NODE = LabelFacts(1.0, 1, (False, False, True))
SEEN = joined(
    [
        seen_in(SCAN, {"tumour": TUMOUR, "node": NODE}),
        seen_in(replace(SCAN, spacing_mm=(1.0, 1.0, 2.0)), {"tumour": LabelFacts(40.0, 1), "node": LabelFacts()}),
    ]
)


def scan_codes(scan: ScanFacts, preparation: Preparation = CT) -> list[str]:
    return [flag.code for flag in judge_scan(scan, SEEN, preparation)]


def mask_codes(**labels: LabelFacts) -> list[str]:
    return [flag.code for flag in judge_mask({"tumour": TUMOUR, "node": NODE, **labels}, SEEN, "axial")]


def test_what_training_has_shown_raises_no_flag() -> None:
    assert scan_codes(SCAN) == []
    assert scan_codes(SCAN, MR) == []
    assert mask_codes() == []
    assert judge_doubt({"tumour": 0.7}) == []


@pytest.mark.parametrize(
    ("spacing", "codes"),
    [
        ((0.8, 0.8, 7.49), []),  # 1.5 x 5.0 = 7.5
        ((0.8, 0.8, 7.51), ["REVIEW-SPACING"]),
        ((0.54, 0.8, 5.0), []),  # 0.8 / 1.5 = 0.533
        ((0.53, 0.8, 5.0), ["REVIEW-SPACING"]),
    ],
)
def test_spacing(spacing: tuple[float, float, float], codes: list[str]) -> None:
    x, y, z = (round(mm * n / s) for mm, n, s in zip(SCAN.spacing_mm, SCAN.shape, spacing, strict=True))
    assert scan_codes(replace(SCAN, spacing_mm=spacing, shape=(x, y, z))) == codes


def test_field_of_view() -> None:
    """Training covers 320 to 400 mm along x, and 100 to 250 mm along z."""
    assert scan_codes(replace(SCAN, shape=(749, 300, 50))) == []  # 599.2 of 600 mm
    (flag,) = judge_scan(replace(SCAN, shape=(751, 300, 13)), SEEN, CT)  # 65 mm; 100 / 1.5 = 66.7 mm
    assert flag.code == "REVIEW-FIELD"
    assert (
        flag.found
        == "the scan covers 601 mm along x, in training 320 to 400 mm; 65 mm along z, in training 100 to 250 mm"
    )


def test_modality_and_body_part() -> None:
    assert scan_codes(replace(SCAN, modalities=("MR",))) == ["REVIEW-MODALITY"]
    assert scan_codes(replace(SCAN, modalities=("",))) == []  # a NIfTI does not say
    assert scan_codes(replace(SCAN, body_part="FOOT")) == ["REVIEW-BODY-PART"]
    assert scan_codes(replace(SCAN, body_part="CHESTABDOMEN")) == []
    assert scan_codes(replace(SCAN, body_part="")) == []


def test_grey_values_of_a_ct_are_compared_in_its_unit() -> None:
    """The training body spreads over 300 HU, a tenth of which is 30."""
    assert scan_codes(replace(SCAN, profiles=((-100, -50, 59, 60, 200),))) == []
    assert scan_codes(replace(SCAN, profiles=((-100, -50, 61, 62, 200),))) == ["REVIEW-INTENSITY"]
    assert scan_codes(replace(SCAN, profiles=(None,))) == []


def test_grey_values_may_differ_as_those_of_the_training_cases_do() -> None:
    """Training medians of 0 and 100 HU, bodies from -900 to 900: a tenth of that, 180, is more than half of 100."""
    ends = [(-900.0, -500.0, middle, 500.0, 900.0) for middle in (0.0, 100.0)]
    seen = joined([seen_in(replace(SCAN, profiles=(profile,)), {}) for profile in ends])
    for middle, count in ((-81, 0), (-181, 1), (279, 0), (281, 1)):
        assert len(judge_scan(replace(SCAN, profiles=((-900, -500, middle, 500, 900),)), seen, CT)) == count
    wide = joined([seen, seen_in(replace(SCAN, profiles=((-900, -500, 500, 500, 900),)), {})])
    for middle, count in ((-249, 0), (-251, 1)):  # 0 to 500
        assert len(judge_scan(replace(SCAN, profiles=((-900, -500, middle, 500, 900),)), wide, CT)) == count


def test_grey_values_of_an_mr_are_compared_without_their_unit() -> None:
    (low, quarter, middle, three, high) = SCAN.profiles[0] or ()
    scaled = tuple(37 * value + 1000 for value in (low, quarter, middle, three, high))
    assert scan_codes(replace(SCAN, profiles=(scaled,)), MR) == []
    inverted = tuple(-value for value in (high, three, middle, quarter, low))
    assert scan_codes(replace(SCAN, profiles=(inverted,)), MR) == ["REVIEW-INTENSITY"]


def test_empty_masks_and_absent_labels() -> None:
    assert mask_codes(tumour=LabelFacts(), node=LabelFacts()) == ["REVIEW-EMPTY"]
    assert mask_codes(tumour=LabelFacts()) == ["REVIEW-LABEL"]  # 2 of 2 training cases have it
    assert mask_codes(node=LabelFacts()) == []  # 1 of 2


def test_volume_and_pieces() -> None:
    """Training: 10 to 40 ml in 1 or 2 pieces."""
    for volume, codes in ((4.9, ["REVIEW-VOLUME"]), (5.1, []), (79, []), (81, ["REVIEW-VOLUME"])):
        assert mask_codes(tumour=LabelFacts(volume, 1)) == codes
    assert mask_codes(tumour=LabelFacts(10, 4)) == []
    assert mask_codes(tumour=LabelFacts(10, 5)) == ["REVIEW-PIECES"]


def test_border() -> None:
    """A node at the ends across z was in one of two training masks: not unusual. A tumour never was."""
    (flag,) = judge_mask({"tumour": LabelFacts(10, 1, (True, False, True)), "node": NODE}, SEEN, "axial")
    assert flag.code == "REVIEW-BORDER"
    assert flag.found == "tumour touches the end of the scan: its border along x and its first or last slice"
    (flag,) = judge_mask({"tumour": LabelFacts(10, 1, (True, False, False)), "node": NODE}, SEEN, "sagittal")
    assert flag.found == "tumour touches the end of the scan: its first or last slice"


def test_a_model_that_does_not_tell_leaves_what_the_mask_says_itself() -> None:
    at_end = LabelFacts(0.001, 900, (False, True, False))
    assert [flag.code for flag in judge_mask({"tumour": at_end}, None, "axial")] == ["REVIEW-BORDER"]
    assert [flag.code for flag in judge_mask({"tumour": LabelFacts()}, None, "axial")] == ["REVIEW-EMPTY"]


def test_doubt_and_score() -> None:
    flags = judge_doubt({"tumour": 0.69, "node": 0.2, "kidney": 0.9})
    assert [flag.found for flag in flags] == [
        "the expected Dice of node is 0.20",
        "the expected Dice of tumour is 0.69",
    ]
    assert score_of(flags, {"tumour": 0.69, "node": 0.2}) == pytest.approx(10 + 10 + 10 * 0.8)
    assert score_of([], {}) == 0
    assert score_of([Flag("REVIEW-BORDER", ""), Flag("REVIEW-VOLUME", "")], {"tumour": 1.0}) == 1 + 3


def test_every_flag_is_in_the_catalogue_and_on_the_page() -> None:
    page = (Path(__file__).parents[1] / "docs" / "unattended.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(REVIEW-[A-Z-]+)` \| (.*?) \| (.*?) \| (.*?) \|$", page, re.MULTILINE)
    meanings = {code: CODES[code].removeprefix("warning: ") for code in KINDS}
    assert rows == [(code, kind.severity, meanings[code], kind.advice) for code, kind in KINDS.items()]
    assert {code for code in CODES if code.startswith("REVIEW-")} == set(KINDS)
    severities = [WEIGHTS[kind.severity] for kind in KINDS.values()]
    assert severities == sorted(severities, reverse=True)


# review.csv


def test_the_worst_comes_first(tmp_path: Path) -> None:
    reviews = {
        "fine": Review((), {"tumour": 12.345678}, {"tumour": 0.95}),
        "=odd": Review((Flag("REVIEW-EMPTY", "nothing was found"),), {"tumour": 0.0}, {}),
        "unsure": Review((), {"tumour": 3.0}, {"tumour": 0.4}),
    }
    written = Reviews(tmp_path / REVIEW, ["tumour"])
    written.record({case: reviews[case] for case in ("fine", "=odd")})
    written.record({"unsure": reviews["unsure"]})
    rows = list(csv.reader(io.StringIO((tmp_path / REVIEW).read_text(encoding="utf-8"))))
    assert rows[0] == ["case", "score", "expected_dice_tumour", "volume_ml_tumour", "flags", "reasons"]
    assert rows[1][:5] == ["'=odd", "10.0", "", "0", "REVIEW-EMPTY"]  # no formula in a spreadsheet
    assert rows[1][5].startswith("nothing was found (REVIEW-EMPTY). Look")
    assert rows[2] == ["unsure", "6.0", "0.4", "3", "", ""]
    assert rows[3] == ["fine", "0.5", "0.95", "12.35", "", ""]


def test_a_review_is_read_again() -> None:
    review = Review((Flag("REVIEW-EMPTY", "nothing was found"),), {"tumour": 0.0}, {"tumour": 0.5})
    assert Review.from_dict(json.loads(json.dumps(review.to_dict()))) == review
    for stored in (None, {}, {**review.to_dict(), "flags": [{"code": "OTHER", "found": ""}]}):
        with pytest.raises(ValueError, match="validation error"):
            Review.from_dict(stored)


@pytest.mark.realdata
def test_scans_of_another_kind_are_flagged_and_those_of_the_same_hardly(shared_data: Path, tmp_path: Path) -> None:
    """T1 of sarcomas (0.9 to 1.2 x 3.3 mm, limbs) and of hippocampi (1 mm, 4 cm boxes)."""
    folder = shared_data / "sarcoma_mr_t1"
    sarcoma = config(folder, {"tumour": 1}, scans=folder / "dicom", references=folder / "masks", split=None)
    measures = list(examine(sarcoma).measures.values())
    flagged = 0
    for number in range(0, 40, 8):  # each eight cases held out in turn, against the others
        others = [case for n, case in enumerate(measures) if not number <= n < number + 8]
        seen = fingerprint(others, sarcoma).seen
        flagged += sum(bool(judge_scan(case.scan_facts, seen, MR)) for case in measures[number : number + 8])
    assert flagged <= 8  # a fifth: with 33 cases, one in 17 lies outside a range by chance, and there are ten ranges
    seen = fingerprint(measures, sarcoma).seen
    for path in sorted((shared_data / "hippocampus" / "images").glob("*.nii.gz"))[:10]:
        scan = scan_facts(read(find_scans(path)[0]), [""])
        assert {flag.code for flag in judge_scan(scan, seen, MR)} >= {"REVIEW-SPACING", "REVIEW-FIELD"}
