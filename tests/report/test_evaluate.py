"""From folders to a report: who is paired, counted, refused, and what is written."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from medseg.errors import MaskError, UsageError
from medseg.grid import Grid
from medseg.io.nifti import write_mask
from medseg.report import Pair, Report, evaluate, evaluate_pairs, json_schema
from medseg.volume import Labels, Mask

from .study import GRID, make_study, tumour, write_ledger

TUMOUR = Labels({1: "tumour"})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    masks, references = make_study(folder)
    return evaluate(masks, references, folder / "out", labels=TUMOUR), folder / "out"


def test_every_case_is_scored_counted_or_refused(made):
    report, _ = made
    assert [c.case for c in report.cases] == ["case_0", "case_1", "case_2", "case_3", "case_4", "case_5", "missing"]
    assert [(r.case, r.code) for r in report.refused] == [("shifted", "MASK-GRID"), ("unknown", "MASK-VALUES")]
    assert report.missing[0].missing == "rejected: slices 4 and 6 are 5 mm apart"
    assert report.unreferenced == ("extra",)
    assert [(r.case, r.code) for r in report.unscored] == [("other", "RUN-MEMORY")]
    assert not report.complete
    # Boxes of 6 shifted by 0, 1, 2 share 6/6, 5/6, 4/6: Dice 1, .8333, .6667, each twice, and one missing: 0.
    mean = 2 * (1 + 5 / 6 + 4 / 6) / 7
    result = report.label("tumour")
    assert result.summary("dice").mean == pytest.approx(mean)
    assert report.mean_dice == pytest.approx(mean)
    assert result.summary("dice").median == pytest.approx(5 / 6)
    assert (result.summary("hd95_mm").cases, result.summary("hd95_mm").blank) == (6, 1)
    assert result.outcomes == {"hit": 6, "missed": 1, "false alarm": 0, "truly empty": 0}
    assert result.missing == 1
    assert result.if_refused_counted == pytest.approx(mean * 7 / 9)
    assert result.floor is not None
    assert "Few cases" in report.warnings[0]


def test_json_round_trip_and_no_nan(made):
    report, out = made
    text = (out / "report.json").read_text("utf-8")
    assert Report.from_json(text) == report
    assert Report.from_json(report.to_json()).to_json() == report.to_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert json.loads(text)["cases"][-1]["labels"][0]["hd95_mm"] is None
    assert "cases" in json_schema()["properties"]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": "medseg-report/1"}', "not json"])
def test_other_json_is_refused_in_one_sentence(text):
    with pytest.raises(UsageError) as caught:
        Report.from_json(text)
    assert caught.value.code == "USAGE-PATH"


def test_a_report_of_another_format_is_refused(made):
    with pytest.raises(UsageError, match="medseg-report/9"):
        Report.from_json(made[0].to_json().replace("medseg-report/1", "medseg-report/9"))


def test_scores_are_tidy(made):
    _, out = made
    with (out / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["case", "label", "metric", "value"]
    table = {(r["case"], r["label"], r["metric"]): r["value"] for r in rows}
    assert len(table) == len(rows)
    assert float(table["case_1", "tumour", "dice"]) == pytest.approx(5 / 6)
    assert table["missing", "tumour", "hd95_mm"] == ""
    assert table["missing", "", "missing"] == "1"
    assert table["shifted", "", "refused"] == "1"
    assert table["case_1", "tumour", "hit"] == "1"
    assert table["case_1", "tumour", "false_alarm"] == "0"
    assert all(float(r["value"]) == float(r["value"]) for r in rows if r["value"])


def test_summary_for_the_terminal(made):
    text = made[0].summary()
    assert "tumour: mean Dice 0.714" in text  # 5 / 7
    assert "refused, not scored: shifted" in text
    assert "1 without a mask, counted as Dice 0: missing" in text
    assert made[0].scores()["tumour"]["cases"] == 7


def test_scores_do_not_depend_on_the_order_of_files(made, tmp_path):
    masks, references = make_study(tmp_path)
    (masks / "cases.csv").unlink()
    again = evaluate(masks, references, tmp_path / "out", labels=TUMOUR, pictures=0)
    assert [c.labels for c in again.cases] == [c.labels for c in made[0].cases]
    assert again.missing[0].missing == "no mask of this name"


@pytest.mark.parametrize(
    ("mask", "reference"),
    [
        ("case_01", "case_01"),
        ("Case_01", "case_01"),
        ("siteA_case_01", "siteA/case_01"),
        ("case_01", "case_01_seg"),
        ("case_01_pred", "case_01"),
        ("case_01", "case_01/segmentation"),
        ("liver_7_0000", "liver_7"),
        ("Müller 3", "Müller 3"),
    ],
)
def test_names_that_belong_together(tmp_path, mask, reference):
    write_mask(tmp_path / "m" / f"{mask}.nii.gz", tumour())
    write_mask(tmp_path / "r" / f"{reference}.nii.gz", tumour())
    report = evaluate(tmp_path / "m", tmp_path / "r", tmp_path / "o", labels=TUMOUR, pictures=0)
    assert [c.case for c in report.cases] == [mask]
    assert report.complete


def test_equal_stems_in_two_folders_stay_apart(tmp_path):
    for n, site in enumerate("AB"):
        write_mask(tmp_path / "r" / f"site{site}" / "case_01.nii.gz", tumour(start=4 + 8 * n))
        write_mask(tmp_path / "m" / f"site{site}_case_01.nii.gz", tumour(start=4 + 8 * n))
    report = evaluate(tmp_path / "m", tmp_path / "r", tmp_path / "o", labels=TUMOUR, pictures=0)
    assert [c.labels[0].dice for c in report.cases] == [1.0, 1.0]


def test_one_mask_for_two_references_is_refused(tmp_path):
    write_mask(tmp_path / "m" / "case_01.nii.gz", tumour())
    for name in ("case_01_seg", "case_01_mask"):
        write_mask(tmp_path / "r" / f"{name}.nii.gz", tumour())
    report = evaluate(tmp_path / "m", tmp_path / "r", tmp_path / "o", labels=TUMOUR, pictures=0)
    assert not report.cases
    assert {r.code for r in report.refused} == {"MASK-AMBIGUOUS"}
    assert report.mean_dice is None


def test_labels_come_from_the_file_beside_the_masks_or_from_the_references(tmp_path):
    write_mask(tmp_path / "m" / "a.nii.gz", tumour(number=3))
    write_mask(tmp_path / "r" / "a.nii.gz", tumour(number=3))
    arguments = (tmp_path / "m", tmp_path / "r", tmp_path / "o")
    assert evaluate(*arguments, pictures=0).labels == {3: "label-3"}
    (tmp_path / "m" / "labels.json").write_text('{"3": "tumour"}')
    assert evaluate(*arguments, pictures=0).labels == {3: "tumour"}
    (tmp_path / "m" / "labels.json").write_text("[3]")
    with pytest.raises(UsageError, match=r"labels\.json"):
        evaluate(*arguments)


def test_a_stale_mask_does_not_stand_for_a_rejected_case(tmp_path):
    write_mask(tmp_path / "m" / "a.nii.gz", tumour())
    write_mask(tmp_path / "r" / "a.nii.gz", tumour())
    write_ledger(tmp_path / "m", {"case": "a", "status": "rejected", "code": "DICOM-GAP", "message": "a gap"})
    report = evaluate(tmp_path / "m", tmp_path / "r", tmp_path / "o", labels=TUMOUR, pictures=0)
    assert report.missing[0].missing == "rejected: a gap"


def test_what_cannot_be_evaluated_is_a_usage_error(tmp_path):
    write_mask(tmp_path / "r" / "a.nii.gz", tumour())
    (tmp_path / "m").mkdir()
    for masks, references, code in (
        ("absent", "r", "USAGE-PATH"),
        ("m", "absent", "USAGE-PATH"),
        ("m", "r", "DATA-EMPTY"),
        ("r", "m", "DATA-EMPTY"),
    ):
        with pytest.raises(UsageError) as caught:
            evaluate(tmp_path / masks, tmp_path / references, tmp_path / "o", labels=TUMOUR)
        assert caught.value.code == code
    write_mask(tmp_path / "m" / "b.nii.gz", tumour())
    write_mask(tmp_path / "b" / "a.nii.gz", tumour())
    with pytest.raises(UsageError, match="no case of the table"):
        evaluate(tmp_path / "b", tmp_path / "r", tmp_path / "o", labels=TUMOUR, strata={"site": {"other": "A"}})
    with pytest.raises(UsageError, match="pair by equal names"):
        evaluate(tmp_path / "m", tmp_path / "r", tmp_path / "o", labels=TUMOUR)


def test_masks_that_are_their_references_are_told(tmp_path):
    pairs = [Pair(f"c{n}", tumour, lambda n=n: tumour(start=6 + (n > 3))) for n in range(6)]
    report = evaluate_pairs(pairs, tmp_path, TUMOUR, pictures=0)
    assert report.warnings[0].startswith("Copies? 4 of 6 masks equal their references")
    assert not any("Copies" in said for said in evaluate_pairs(pairs[3:], tmp_path, TUMOUR, pictures=0).warnings)


def test_a_truncated_mask_is_refused_and_the_others_go_on(tmp_path):
    for name in "ab":
        write_mask(tmp_path / "m" / f"{name}.nii.gz", tumour())
        write_mask(tmp_path / "r" / f"{name}.nii.gz", tumour())
    whole = (tmp_path / "m" / "a.nii.gz").read_bytes()
    (tmp_path / "m" / "a.nii.gz").write_bytes(whole[: len(whole) // 2])
    report = evaluate(tmp_path / "m", tmp_path / "r", tmp_path / "o", labels=TUMOUR)
    assert [r.case for r in report.refused] == ["a"]
    assert report.refused[0].code.startswith("NIFTI-")
    assert [c.case for c in report.cases] == ["b"]


def test_pairs_from_memory_by_patient(tmp_path):
    def broken() -> Mask:
        raise MaskError("MASK-READ", "c9", "not readable")

    def crash() -> Mask:
        raise ZeroDivisionError

    pairs = [Pair(f"c{n}", tumour, lambda n=n: tumour(start=6 + n % 3), group=f"p{n // 2}") for n in range(8)]
    pairs += [Pair("c8", tumour, crash), Pair("c9", broken, tumour)]
    seen = []
    report = evaluate_pairs(pairs, tmp_path, TUMOUR, watch=lambda done, every: seen.append((done, every)))
    assert seen == [(n, 10) for n in range(1, 11)]
    assert [r.code for r in report.refused] == ["RUN-CRASH", "MASK-READ"]
    # Eight cases of four patients: a mean, but no interval.
    assert report.label("tumour").summary("dice").mean_interval is None
    with pytest.raises(UsageError):
        evaluate_pairs([], tmp_path, TUMOUR)


def test_two_labels_and_a_truly_empty_case(tmp_path):
    labels = Labels({1: "core", 2: "edge"})
    both = Mask(np.where(tumour(start=14, size=4).labels, np.uint8(2), tumour().labels), GRID)
    pairs = [Pair("both", lambda: both, lambda: both), Pair("one", tumour, tumour)]
    pairs.append(Pair("alarm", tumour, lambda: both))
    report = evaluate_pairs(pairs, tmp_path, labels)
    assert report.label("core").outcomes["hit"] == 3
    assert report.label("edge").outcomes == {"hit": 1, "missed": 0, "false alarm": 1, "truly empty": 1}
    edge = report.label("edge").summary("dice")
    assert (edge.mean, edge.cases, edge.blank) == (0.5, 2, 1)
    assert report.mean_dice == pytest.approx(0.75)
    # The truly empty case is not a measurement of 0 ml either.
    assert report.label("edge").summary("reference_ml").cases == 2


def test_what_nobody_annotated_is_left_out_and_said(tmp_path):
    reference = tumour()  # 6 x 6 x 3 voxels from 6 to 12 along i
    reference.labels[9:, :, :] = 255  # half of it, and everything beyond, was not looked at
    write_mask(tmp_path / "references" / "a.nii.gz", reference)
    write_mask(tmp_path / "masks" / "a.nii.gz", tumour(start=7, size=9))
    report = evaluate(tmp_path / "masks", tmp_path / "references", tmp_path / "out", unannotated=(255,))
    (case,) = report.cases
    assert case.labels[0].dice == pytest.approx(2 * 2 / (3 + 2))  # voxels 6 to 8 are annotated, the mask has 7 and 8
    assert report.labels == {1: "label-1"}
    assert case.unannotated_ml == pytest.approx(15 / 24 * reference.labels.size * 0.0036)
    assert any(warning.startswith("Annotated in part: in 1 of 1 cases") for warning in report.warnings)
    assert "Annotated in part" in report.summary()
    assert "Annotated in part" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert Report.from_json(report.to_json()) == report
    folders = (tmp_path / "masks", tmp_path / "references")
    for number in (0, 1):
        with pytest.raises(UsageError, match="USAGE-OPTION"):
            evaluate(*folders, tmp_path / "out", labels=TUMOUR, unannotated=(number, 255))
    write_mask(tmp_path / "whole" / "a.nii.gz", tumour())
    plain = evaluate(tmp_path / "masks", tmp_path / "whole", tmp_path / "plain", unannotated=(255,))
    assert not any("Annotated" in warning for warning in plain.warnings)


def test_masks_stored_in_another_axis_order_score_alike(tmp_path):
    order = GRID.order_to("PIR")
    turned = Mask(np.ascontiguousarray(order.apply(tumour(start=7).labels)), GRID.reordered(order))
    report = evaluate_pairs([Pair("a", tumour, lambda: turned)], tmp_path, TUMOUR)
    assert report.cases[0].labels[0].dice == pytest.approx(5 / 6)


def test_output_that_cannot_be_written(tmp_path):
    from medseg.errors import RunError

    (tmp_path / "file").write_text("")
    with pytest.raises(RunError) as caught:
        evaluate_pairs([Pair("a", tumour, tumour)], tmp_path / "file", TUMOUR)
    assert caught.value.code == "RUN-WRITE"


@pytest.mark.realdata
def test_sarcoma_masks_against_themselves(shared_data, tmp_path):
    from medseg.io.nifti import read_mask

    folder = shared_data / "sarcoma_mr_t1"
    names = json.loads((folder / "split.json").read_text())["validation"]
    references = {name: folder / "masks" / f"{name}.nii.gz" for name in names}
    for name in names:
        mask = read_mask(references[name])
        write_mask(tmp_path / "m" / f"{name}.nii.gz", Mask(mask.labels, Grid(mask.grid.shape, mask.grid.affine)))
    scans = {path.name.removesuffix(".nii.gz"): path for path in (folder / "images").glob("*.nii.gz")}
    report = evaluate(tmp_path / "m", references, tmp_path / "o", labels=TUMOUR, scans=scans, pictures=2)
    assert report.complete
    assert report.mean_dice == 1.0
    assert report.label("tumour").summary("hd95_mm").extremes == (0, 0)
    # A centred ellipsoid of half the crop's size overlaps more than half of most of these tumours.
    assert 0.5 < report.label("tumour").floor.mean_dice < 0.7
    assert (tmp_path / "o" / "report.html").read_text("utf-8").count("data:image/png") >= 1
