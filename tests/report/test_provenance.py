"""What a report says of its own origin: enough to tell what it was made of, nothing of a person."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from medseg.errors import UsageError
from medseg.grid import Grid
from medseg.io.nifti import write_mask
from medseg.report import compare, evaluate
from medseg.report.provenance import content_hash, predicted_by
from medseg.volume import Labels, Mask

from .study import GRID, tumour

TUMOUR = Labels({1: "tumour"})


def test_the_hash_is_of_the_label_numbers_alone():
    mask, order = tumour(), GRID.order_to("PIR")
    turned = Mask(np.ascontiguousarray(order.apply(mask.labels)), GRID.reordered(order))
    wide = Mask(mask.labels.astype(np.uint16), GRID)
    assert content_hash(mask) == content_hash(turned) == content_hash(wide)
    others = [tumour(start=7), tumour(number=2), Mask(mask.labels[:-1], Grid((23, 20, 10), GRID.affine))]
    many = mask.labels.astype(np.uint16)
    many[many > 0] = 257  # 1 in its lower byte
    assert len({content_hash(m) for m in [mask, *others, Mask(many, GRID)]}) == 5


def test_a_report_knows_what_it_was_made_of(tmp_path):
    for n in range(3):
        write_mask(tmp_path / "masks" / f"case_{n}.nii.gz", tumour(start=6 + n))
        write_mask(tmp_path / "references" / f"case_{n}.nii.gz", tumour())
    run = {"model": "b6885e9076b5af31", "settings": {"mirror": False}, "versions": {"torch": "2.13.0"}, "finished": {}}
    (tmp_path / "masks" / "run.json").write_text(json.dumps(run))
    folders = tmp_path / "masks", tmp_path / "references", tmp_path / "out"
    first = evaluate(*folders, labels=TUMOUR, pictures=0, command="medseg evaluate --masks masks").provenance
    assert first["model"] == run["model"]
    assert (first["predicted with"], first["command"]) == ("torch 2.13.0", "medseg evaluate --masks masks")
    assert first["references"].endswith(" (3)")
    again = evaluate(*folders, labels=TUMOUR, pictures=0, tolerance_mm=1).provenance
    assert (again["masks"], again["references"]) == (first["masks"], first["references"])
    assert again["evaluation settings"] != first["evaluation settings"]
    write_mask(tmp_path / "masks" / "case_2.nii.gz", tumour(start=9))
    changed = evaluate(*folders, labels=TUMOUR, pictures=0).provenance
    assert changed["masks"] != first["masks"]
    assert changed["references"] == first["references"]
    for file in ("report.json", "report.html"):
        text = (tmp_path / "out" / file).read_text("utf-8")
        assert first["model"] in text
        assert str(tmp_path) not in text


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": 1, "settings": {}, "versions": 3}', "\x00"])
def test_another_run_file_says_nothing(tmp_path, text):
    assert predicted_by(tmp_path) == {}
    (tmp_path / "run.json").write_text(text)
    assert predicted_by(tmp_path) == {}


def test_patients_of_a_table_are_numbered(tmp_path):
    from medseg.cli import main

    folder = tmp_path / "Doe^Jane"
    for n in range(4):
        write_mask(folder / "masks" / f"case_{n}.nii.gz", tumour())
        write_mask(folder / "references" / f"case_{n}.nii.gz", tumour())
    with (tmp_path / "Who Is Who.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("case", "group"), ("CASE_0", "Doe^Jane"), ("case_1", "Doe^Jane"), ("case_2", "Roe")]
        )
    arguments = ["evaluate", "--masks", folder / "masks", "--references", folder / "references", "-o", tmp_path / "out"]
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in [*arguments, "--groups", tmp_path / "Who Is Who.csv"]])
    assert ended.value.code == 0
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [case["group"] for case in content["cases"]] == ["patient-1", "patient-1", "patient-2", ""]
    wanted = "medseg evaluate --masks masks --references references --groups 'Who Is Who.csv'"
    assert content["provenance"]["command"] == wanted
    for file in (tmp_path / "out").iterdir():
        assert "Doe" not in file.read_text("utf-8")


def test_groups_that_name_no_case_are_refused(tmp_path):
    write_mask(tmp_path / "m" / "a.nii.gz", tumour())
    write_mask(tmp_path / "r" / "a.nii.gz", tumour())
    with pytest.raises(UsageError, match="no case of the table"):
        evaluate(tmp_path / "m", tmp_path / "r", tmp_path / "o", labels=TUMOUR, groups={"b": "1"})


def test_another_reference_of_the_same_volume_is_not_compared(tmp_path):
    for n in range(2):
        write_mask(tmp_path / "m" / f"case_{n}.nii.gz", tumour())
        write_mask(tmp_path / "r" / f"case_{n}.nii.gz", tumour())
        write_mask(tmp_path / "other" / f"case_{n}.nii.gz", tumour(start=6 + n))
    one = evaluate(tmp_path / "m", tmp_path / "r", tmp_path / "o", labels=TUMOUR, pictures=0)
    two = evaluate(tmp_path / "m", tmp_path / "other", tmp_path / "o", labels=TUMOUR, pictures=0)
    (found,) = compare({"one": one, "two": two})
    assert found.unlike == ("case_1",)
