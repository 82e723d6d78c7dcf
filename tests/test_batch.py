"""Many scans in one go: every case in the ledger, nothing twice, nothing half, whatever happens."""

from __future__ import annotations

import csv
import errno
import json
import logging
import math
import os
import random
import shutil
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg import batch as batch_module
from medseg.case_work import CaseWork, Opened
from medseg.config import PredictConfig
from medseg.config.settings import BatchConfig, CleanConfig
from medseg.engines import Choice, choose
from medseg.errors import RunError, UsageError
from medseg.facts import label_facts, scan_facts, seen_in
from medseg.grid import Grid
from medseg.io.atomic import PARTIAL_PREFIX
from medseg.io.dicom_seg import read_dicom_seg
from medseg.io.lock import exclusive
from medseg.io.nifti import read_mask, write_volume
from medseg.io.rtstruct import read_rtstruct
from medseg.ledger import NOT_SELECTED, Ledger, Row
from medseg.models.model_folder import Model
from medseg.prediction import Predictor, predict
from medseg.preparation import Channel, Preparation
from medseg.scan import find_scans, read
from medseg.volume import Volume
from tests.phantoms import save, series
from tests.studies import (
    GRID,
    SHAPE,
    dicom_patient,
    everything,
    kill_after,
    leaked,
    nifti_case,
    random_model,
    stored_labels,
    threshold_model,
    voxels,
)

predict_folder = partial(batch_module.predict_folder, batch=BatchConfig(workers=0))
"""One case after the other in this process; `test_lanes.py` has the processes."""

FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    for number in range(4):
        nifti_case(tmp_path, f"p{number}", number)
    return tmp_path / "scans"


@pytest.fixture
def model() -> Model:
    return threshold_model(400)


def count_calls(model: Model) -> list[int]:
    """Return a list that grows by one with each call of the network."""
    calls: list[int] = []
    model.networks[0].register_forward_hook(lambda *args: calls.append(1))
    return calls


def statuses(ledger: Ledger) -> dict[str, str]:
    return {row.case: f"{row.status} {row.code}".strip() for row in ledger}


def no_half_files(folder: Path) -> bool:
    return not [path for path in folder.rglob("*") if path.name.startswith(PARTIAL_PREFIX)]


def test_masks_are_those_of_predict_and_the_ledger_tells(scans: Path, tmp_path: Path, model: Model) -> None:
    ledger = predict_folder([scans], model, tmp_path / "out")
    assert statuses(ledger) == {f"p{number}": "done" for number in range(4)}
    assert ledger.exit_code == 0
    for number in range(4):
        mask = read_mask(tmp_path / "out" / f"p{number}.nii.gz")
        volume = read(find_scans(scans / f"p{number}.nii.gz")[0])
        assert np.array_equal(mask.labels, predict(model, volume).labels)
        assert np.array_equal(mask.labels, voxels(number)[1])
        assert mask.grid.same_place(GRID, 1e-6)
    with (tmp_path / "out" / "cases.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["case", "source", "status", "code", "message", "warnings", "output", "seconds"]
    assert rows[1][:7] == ["p0", str(scans / "p0.nii.gz"), "done", "", "", rows[1][5], "p0.nii.gz"]
    assert float(rows[1][7]) >= 0
    assert json.loads((tmp_path / "out" / "labels.json").read_text()) == {"1": "tumour"}
    assert json.loads((tmp_path / "out" / "run.json").read_text())["totals"] == {"done": 4}
    assert no_half_files(tmp_path / "out")


def test_one_bad_scan_stops_no_other(scans: Path, tmp_path: Path, model: Model) -> None:
    whole = (scans / "p1.nii.gz").read_bytes()
    (scans / "p1.nii.gz").write_bytes(whole[: len(whole) // 2])  # header whole, voxels cut
    (scans / "p2.nii.gz").write_bytes(b"")
    ledger = predict_folder([scans], model, tmp_path / "out")
    assert {case: status.split()[0] for case, status in statuses(ledger).items()} == {
        "p0": "done",
        "p1": "rejected",
        "p2": "rejected",
        "p3": "done",
    }
    assert all(row.code and row.message for row in ledger if row.status == "rejected")
    assert ledger.exit_code == 3
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["p0.nii.gz", "p3.nii.gz"]


@pytest.mark.parametrize(
    ("error", "code"), [(ZeroDivisionError("secret detail"), "RUN-CRASH"), (MemoryError(), "RUN-MEMORY")]
)
def test_a_fault_inside_one_case_stops_no_other(
    scans: Path, tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str
) -> None:
    original = CaseWork.open

    def faulty(self: CaseWork) -> Opened:
        if self._job.case.id == "p1":
            raise error
        return original(self)

    monkeypatch.setattr(CaseWork, "open", faulty)
    ledger = predict_folder([scans], model, tmp_path / "out")
    assert statuses(ledger) == {"p0": "done", "p1": f"failed {code}", "p2": "done", "p3": "done"}
    assert ledger.exit_code == 3
    assert b"secret detail" not in everything(tmp_path / "out")
    monkeypatch.undo()
    assert statuses(predict_folder([scans], model, tmp_path / "out"))["p1"] == f"failed {code}"  # not tried in vain
    again = BatchConfig(workers=0, retry_failed=True)
    retried = statuses(predict_folder([scans], model, tmp_path / "out", batch=again))
    assert retried == {"p0": "reused", "p1": "done", "p2": "reused", "p3": "reused"}
    nifti_case(tmp_path, "p1", 9)  # another scan is another case
    assert statuses(predict_folder([scans], model, tmp_path / "out"))["p1"] == "done"


def test_a_second_run_computes_nothing(scans: Path, tmp_path: Path, model: Model) -> None:
    predict_folder([scans], model, tmp_path / "out")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.nii.gz")}
    calls = count_calls(model)
    ledger = predict_folder([scans], model, tmp_path / "out")
    assert set(statuses(ledger).values()) == {"reused"}
    assert not calls
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.nii.gz")} == before
    assert ledger.exit_code == 0


def test_masks_are_cleaned_as_asked_and_the_others_not_reused(scans: Path, tmp_path: Path, model: Model) -> None:
    """Two bright voxels beside the tumour of p0 (75 voxels at least, of 0.003 ml) are a piece of 0.006 ml."""
    volume = read(find_scans(scans / "p0.nii.gz")[0])
    corner = np.s_[:, -2:, -1, -1]
    volume.voxels[corner] = 600
    write_volume(scans / "p0.nii.gz", volume)
    plain = PredictConfig(engine="torch", precision="fp32", device="cpu")
    asked = plain.model_copy(update={"clean": {"tumour": CleanConfig(smallest_ml=0.007)}})
    for config, status, there in ((plain, "done", True), (asked, "done", False), (asked, "reused", False)):
        ledger = predict_folder([scans], model, tmp_path / "out", config=config)
        assert statuses(ledger)["p0"] == status
        labels = read_mask(tmp_path / "out" / "p0.nii.gz").labels
        assert labels[corner[1:]].all() == there
        assert np.array_equal(labels, predict(model, volume, config).labels)
    unknown = plain.model_copy(update={"clean": {"tumor": CleanConfig(smallest_ml=1)}})
    with pytest.raises(UsageError, match="tumor"):
        predict_folder([scans], model, tmp_path / "out", config=unknown)


def test_masks_of_two_engines_do_not_mix(
    scans: Path, tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same folder, started again with another version of what computes, is done anew."""
    for number, status in (("1", "done"), ("1", "reused"), ("2", "done")):
        monkeypatch.setattr("medseg.engines.version", lambda name, number=number: number)
        assert set(statuses(predict_folder([scans], model, tmp_path / "out")).values()) == {status}
        engine = {"name": "torch", "precision": "fp32", "version": number}
        assert json.loads((tmp_path / "out" / "run.json").read_text())["engine"]["engine"] == engine


def test_the_choice_of_an_engine_is_kept_for_the_folder(
    scans: Path, tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    proofs = []

    def counted(*arguments: Any) -> Choice:
        proofs.append(1)
        return choose(*arguments)

    monkeypatch.setattr("medseg.prediction.choose", counted)
    (scans / "a.nii.gz").write_bytes(b"no scan")  # proves nothing; the next one does
    asked = PredictConfig(engine="torch", precision="bf16", device="cpu")
    for status in ("done", "reused"):
        ledger = predict_folder([scans], model, tmp_path / "out", config=asked)
        assert {row.status for row in ledger if row.case != "a"} == {status}
        assert len(proofs) == 1
    chosen = json.loads((tmp_path / "out" / "run.json").read_text())["engine"]
    assert chosen["engine"]["precision"] == "bf16"
    assert 0 < chosen["proofs"][0]["dice"][0] <= 1
    (tmp_path / "out" / "run.json").unlink()
    predict_folder([scans], model, tmp_path / "out", config=asked)
    assert len(proofs) == 2


def _damage_mask(scans: Path, out: Path) -> None:
    with (out / "p2.nii.gz").open("ab") as file:
        file.write(b"x")


def _remove_mask(scans: Path, out: Path) -> None:
    (out / "p2.nii.gz").unlink()


def _swap_mask(scans: Path, out: Path) -> None:
    shutil.copy(out / "p1.nii.gz", out / "p2.nii.gz")


def _change_scan(scans: Path, out: Path) -> None:
    nifti_case(scans.parent, "p2", 77)


@pytest.mark.parametrize("change", [_damage_mask, _remove_mask, _swap_mask, _change_scan])
def test_what_changed_is_done_anew_and_nothing_else(scans: Path, tmp_path: Path, model: Model, change: Any) -> None:
    predict_folder([scans], model, tmp_path / "out")
    change(scans, tmp_path / "out")
    ledger = predict_folder([scans], model, tmp_path / "out")
    assert statuses(ledger) == {"p0": "reused", "p1": "reused", "p2": "done", "p3": "reused"}
    wanted = voxels(77 if change is _change_scan else 2)[1]
    assert np.array_equal(stored_labels(tmp_path / "out" / "p2.nii.gz"), wanted)


def test_another_model_or_setting_does_all_anew(scans: Path, tmp_path: Path, model: Model) -> None:
    out = tmp_path / "out"
    predict_folder([scans], model, out)
    mirrored = PredictConfig(engine="torch", precision="fp32", device="cpu", mirror=True)
    assert set(statuses(predict_folder([scans], model, out, config=mirrored)).values()) == {"done"}
    assert set(statuses(predict_folder([scans], model, out, config=mirrored)).values()) == {"reused"}
    other = threshold_model(10_000)
    assert set(statuses(predict_folder([scans], other, out, config=mirrored)).values()) == {"done"}
    assert not stored_labels(out / "p0.nii.gz").any()
    larger = PredictConfig(engine="torch", precision="fp32", device="cpu", mirror=True, batch_size=1)  # changes no mask
    assert set(statuses(predict_folder([scans], other, out, config=larger)).values()) == {"reused"}


def test_a_mask_whose_case_has_none_now_does_not_look_valid(scans: Path, tmp_path: Path, model: Model) -> None:
    out = tmp_path / "out"
    predict_folder([scans], model, out)
    before = (out / "p1.nii.gz").read_bytes()
    whole = (scans / "p1.nii.gz").read_bytes()
    (scans / "p1.nii.gz").write_bytes(whole[: len(whole) // 2])
    (scans / "p2.nii.gz").write_bytes(b"")  # refused by its header already
    (out / "p2.seg.dcm").write_text("mine")
    for _ in range(2):
        ledger = predict_folder([scans], model, out)
        assert sorted(path.name for path in out.glob("p*")) == [
            "p0.nii.gz",
            "p1.nii.gz.stale",
            "p2.nii.gz.stale",
            "p2.seg.dcm",
            "p3.nii.gz",
        ]
        assert {row.case: row.status for row in ledger} == {
            f"p{n}": "rejected" if n in (1, 2) else "reused" for n in range(4)
        }
    assert (out / "p1.nii.gz.stale").read_bytes() == before
    assert (out / "p2.seg.dcm").read_text() == "mine"
    (scans / "p1.nii.gz").write_bytes(whole)  # mended, and broken again: both are kept
    assert statuses(predict_folder([scans], model, out))["p1"] == "done"
    (scans / "p1.nii.gz").write_bytes(whole[:300])
    told = {row.case: row.warnings for row in predict_folder([scans], model, out)}["p1"]
    assert "p1.nii.gz of an earlier run" in told
    assert sorted(path.name for path in out.glob("p1*")) == ["p1.nii.gz.stale", "p1.nii.gz.stale-2"]


def test_what_killed_runs_left_is_cleared(scans: Path, tmp_path: Path, model: Model) -> None:
    out = tmp_path / "out"
    (out / f"{PARTIAL_PREFIX}folder").mkdir(parents=True)
    (out / f"{PARTIAL_PREFIX}folder" / "p0.nii.gz").write_text("half")
    (out / f"{PARTIAL_PREFIX}x.csv").write_text("half")
    (out / "part-mine").write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").write_text("mine")
    (out / f"{PARTIAL_PREFIX}link").symlink_to(tmp_path / "elsewhere")
    predict_folder([scans], model, out)
    assert no_half_files(out)
    assert (out / "part-mine").exists()
    assert (tmp_path / "elsewhere" / "mine").exists()


def test_a_full_disk_ends_the_run_and_not_case_after_case(
    scans: Path, tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_calls(model)
    flush = os.fsync

    def full_for_masks(handle: int) -> None:
        if os.fstat(handle).st_size > 50 and ".nii" in str(Path(f"/proc/self/fd/{handle}").readlink()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if os.fstat(handle).st_size > 1 << 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(handle)

    monkeypatch.setattr(os, "fsync", full_for_masks)
    with pytest.raises(RunError, match=os.strerror(errno.ENOSPC)):
        predict_folder([scans], model, tmp_path / "out")
    assert len(calls) == 1
    assert not list((tmp_path / "out").glob("*.nii.gz"))


def test_where_the_time_went(scans: Path, tmp_path: Path, model: Model) -> None:
    predict_folder([scans], model, tmp_path / "out")
    stages = json.loads((tmp_path / "out" / "run.json").read_text())["seconds_by_stage"]
    kinds = {"hash", "read", "measure", "cut", "prepare", "network", "restore", "clean", "judge", "write"}
    assert set(stages) == kinds


@pytest.mark.parametrize("content", ["", "{", "[]", '{"finished": 3}', '{"finished": {"p0": {"key": "x"}}}', "\0\xff"])
def test_a_damaged_memory_is_forgotten(scans: Path, tmp_path: Path, model: Model, content: str) -> None:
    out = tmp_path / "out"
    predict_folder([scans], model, out)
    (out / "run.json").write_text(content, encoding="latin-1")
    assert set(statuses(predict_folder([scans], model, out)).values()) == {"done"}


def test_a_limit_that_no_case_keeps(scans: Path, tmp_path: Path, model: Model) -> None:
    hasty = BatchConfig(workers=0, timeout_s=1e-4)
    ledger = predict_folder([scans], model, tmp_path / "out", batch=hasty)
    assert {row.message for row in ledger} == {"not finished after 0.0001 s; --timeout sets the limit"}
    assert set(statuses(ledger).values()) == {"failed RUN-TIMEOUT"}
    patient = BatchConfig(workers=0)  # no case came so far that its failure is remembered
    assert set(statuses(predict_folder([scans], model, tmp_path / "out", batch=patient)).values()) == {"done"}


def test_two_at_once(scans: Path, tmp_path: Path, model: Model) -> None:
    with exclusive(tmp_path / "out"), pytest.raises(RunError) as caught:
        predict_folder([scans], model, tmp_path / "out")
    assert caught.value.code == "RUN-BUSY"
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".medseg-lock"]


@FORK
def test_killed_at_any_moment_it_goes_on_and_ends_as_an_unbroken_run(tmp_path: Path) -> None:
    for number in range(8):
        nifti_case(tmp_path, f"p{number}", number)
    scans, model = tmp_path / "scans", threshold_model(400)
    slow = Predictor._forward

    def forward(self: Predictor, images: Any) -> Any:
        time.sleep(0.02)
        return slow(self, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Predictor, "_forward", forward)
        start = time.perf_counter()
        predict_folder([scans], model, tmp_path / "whole")
        whole = time.perf_counter() - start
        chance = random.Random(4)
        killed = 0
        for moment in range(4):
            out = tmp_path / f"out{moment}"
            share = 0.1 + 0.2 * moment + 0.2 * chance.random()
            killed += kill_after(partial(predict_folder, [scans], model, out), share * whole)
            remembered = json.loads((out / "run.json").read_text())["finished"] if (out / "run.json").exists() else {}
            calls = count_calls(model)
            ledger = predict_folder([scans], model, out)
            assert {row.case for row in ledger if row.status == "reused"} == set(remembered)
            assert {row.status for row in ledger} <= {"done", "reused"}
            assert len(ledger) == 8
            assert len(calls) == 8 - len(remembered)  # 5 slices: one batch for each case
            for number in range(8):
                name = f"p{number}.nii.gz"
                assert np.array_equal(stored_labels(out / name), stored_labels(tmp_path / "whole" / name))
            model = threshold_model(400)
    assert killed >= 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("after", [0, 1, 8, 17])
def test_a_disk_that_fills_up(
    scans: Path, tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch, number: int, after: int
) -> None:
    out, calls, flush = tmp_path / "out", [], os.fsync
    predict_folder([scans], threshold_model(10_000), out)  # an earlier run, all empty masks

    def failing(handle: int) -> None:
        calls.append(handle)
        if len(calls) > after:
            raise OSError(number, os.strerror(number))
        flush(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(RunError, match=os.strerror(number)) as caught:
            predict_folder([scans], model, out)
    assert caught.value.code == "RUN-WRITE"
    assert no_half_files(out)
    for case in range(4):  # every mask is the old one or the new one
        found = stored_labels(out / f"p{case}.nii.gz")
        assert not found.any() or np.array_equal(found, voxels(case)[1])
    assert predict_folder([scans], model, out).exit_code == 0
    assert np.array_equal(stored_labels(out / "p3.nii.gz"), voxels(3)[1])


def test_an_output_folder_that_cannot_be(
    scans: Path, tmp_path: Path, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("mine")
    for place, found in (
        (tmp_path / "file", "a file, wanted a folder"),
        (tmp_path / "file" / "inner", "Not a directory"),
    ):
        with pytest.raises(RunError, match=found) as caught:
            predict_folder([scans], model, place)
        assert caught.value.code == "RUN-WRITE"
        assert caplog.messages == []
    assert (tmp_path / "file").read_text() == "mine"


def test_masks_never_take_the_place_of_scans(scans: Path, tmp_path: Path, model: Model) -> None:
    before = everything(scans)
    for given in (scans, scans / "p0.nii.gz", scans / ".." / "scans"):
        with pytest.raises(UsageError, match="holds the scans") as caught:
            predict_folder([given], model, scans)
        assert caught.value.code == "USAGE-PATH"
    assert everything(scans) == before


def test_masks_among_the_scans_are_no_scans(scans: Path, tmp_path: Path, model: Model) -> None:
    for out in (scans / "masks", scans / "masks", scans / "deep" / "other", scans / "masks"):
        ledger = predict_folder([scans], model, out)
        assert [row.case for row in ledger if row.code != NOT_SELECTED] == ["p0", "p1", "p2", "p3"]
        assert ledger.exit_code == 0


def test_a_folder_above_the_scans_may_take_the_masks(tmp_path: Path, model: Model) -> None:
    nifti_case(tmp_path, "p0", 0)
    assert [row.case for row in predict_folder([tmp_path / "scans"], model, tmp_path)] == ["p0"]
    assert [row.status for row in predict_folder([tmp_path / "scans"], model, tmp_path)] == ["reused"]


def test_nothing_to_do(tmp_path: Path, model: Model) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "README.txt").write_text("nothing here")
    told: list[str] = []
    ledger = predict_folder([tmp_path / "in"], model, tmp_path / "out", watch=lambda *news: told.append(news[-1]))
    assert ledger.exit_code == 1
    assert told == ["to predict: 0 cases of 0 slices", "no scan among 1 files: 1 x SKIP-JUNK, neither DICOM nor NIfTI"]
    assert (tmp_path / "out" / "cases.csv").is_file()
    with pytest.raises(UsageError) as caught:
        predict_folder([tmp_path / "nowhere"], model, tmp_path / "out2")
    assert caught.value.code == "USAGE-PATH"


def test_dicom_outputs_hold_the_same_mask(tmp_path: Path, model: Model) -> None:
    dicom_patient(tmp_path / "in", 3, reference=False)
    nifti_case(tmp_path / "n", "flat", 1)
    out = tmp_path / "out"
    ledger = predict_folder([tmp_path / "in", tmp_path / "n" / "scans"], model, out, formats=("dicom-seg", "rtstruct"))
    outputs = {row.case: row.output.split("; ") for row in ledger}
    name = next(case for case in outputs if case != "flat")
    assert outputs["flat"] == ["flat.nii.gz"]
    assert outputs[name] == [f"{name}.nii.gz", f"{name}.seg.dcm", f"{name}.rtstruct.dcm"]
    mask = read_mask(out / f"{name}.nii.gz")
    assert mask.labels.sum() == voxels(3)[1].sum()
    segments = read_dicom_seg(out / f"{name}.seg.dcm", mask.grid)
    structures = read_rtstruct(out / f"{name}.rtstruct.dcm", mask.grid, ["tumour"])
    assert np.array_equal(segments["tumour"], mask.labels == 1)
    assert np.array_equal(structures["tumour"], mask.labels == 1)
    again = predict_folder([tmp_path / "in", tmp_path / "n" / "scans"], model, out, formats=("dicom-seg", "rtstruct"))
    assert {row.status for row in again} == {"reused"}
    (out / f"{name}.seg.dcm").unlink()
    third = predict_folder([tmp_path / "in", tmp_path / "n" / "scans"], model, out, formats=("dicom-seg", "rtstruct"))
    assert {row.case: row.status for row in third} == {name: "done", "flat": "reused"}


def test_a_tilted_gantry_is_refused_before_the_network_works(tmp_path: Path, model: Model) -> None:
    lean = series("CT", step=(0.0, 0.9, 2.5))  # 2.5 mm up and 0.9 mm aside: about 20 degrees
    save(lean, tmp_path / "in" / "tilted")
    calls = count_calls(model)
    ledger = predict_folder([tmp_path / "in"], model, tmp_path / "out", formats=("dicom-seg", "rtstruct"))
    (row,) = ledger
    assert (row.status, row.code) == ("rejected", "GRID-SHEAR")
    assert "at the corners (a tilted gantry), which a NIfTI mask cannot carry" in row.message
    assert "Resample" in row.message
    assert "DICOM-TILT" in row.warnings
    assert not calls
    assert not list((tmp_path / "out").glob("tilted*"))


def test_what_the_model_does_not_take_is_told_and_is_no_fault(tmp_path: Path) -> None:
    dicom_patient(tmp_path / "in", 0, "MR", reference=False)
    dicom_patient(tmp_path / "in", 1, "CT", reference=False)
    plain = threshold_model(400)
    select = Channel("image", "window", modality="MR", window=(-2000.0, 2000.0))
    prepare = Preparation("axial", (1.0, 1.0), (select,), context=1)
    model = Model(plain.networks, plain.description, prepare)
    ledger = predict_folder([tmp_path / "in"], model, tmp_path / "out")
    assert sorted(f"{row.status} {row.code}".strip() for row in ledger) == ["done", "rejected NOT-SELECTED"]
    assert ledger.exit_code == 0
    assert ledger.counts() == {"done": 1, "not selected": 1}


def test_a_file_that_cannot_be_read_is_in_the_ledger(scans: Path, tmp_path: Path, model: Model) -> None:
    for site in ("a", "b"):
        place = dicom_patient(tmp_path / site, 1, reference=False)
        content = (place / "0001.dcm").read_bytes()
        shutil.rmtree(place)
        (scans / site).mkdir()
        (scans / site / "IM1.dcm").write_bytes(content[:200])  # the preamble, and the beginning of nothing
    ledger = predict_folder([scans], model, tmp_path / "out")
    assert len([row for row in ledger if row.status == "rejected"]) == 2
    assert ledger.exit_code == 3


def test_nobody_can_be_known_from_the_output(
    tmp_path: Path, model: Model, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    good, bad = (dicom_patient(tmp_path / "in", seed, reference=False) for seed in (1, 2))
    (bad / "0003.dcm").unlink()  # a missing slice: rejected, with a message
    told: list[str] = []
    with caplog.at_level(logging.DEBUG, logger="medseg"):
        ledger = predict_folder([tmp_path / "in"], model, tmp_path / "out", watch=lambda *args: told.append(str(args)))
    assert sorted(row.status for row in ledger) == ["done", "rejected"]
    assert good.exists()
    streams = capfd.readouterr()
    texts = "\n".join([caplog.text, *told, streams.out, streams.err, *map(str, ledger), repr(find_scans(tmp_path))])
    assert leaked(everything(tmp_path / "out") + texts.encode()) == []


def test_one_row_is_written_after_each_case(scans: Path, tmp_path: Path, model: Model) -> None:
    seen = []

    def watch(stage: str, done: int, total: int, note: str = "") -> None:
        if done:
            with (tmp_path / "out" / "cases.csv").open() as file:
                seen.append(len(list(csv.DictReader(file))))

    predict_folder([scans], model, tmp_path / "out", watch=watch)
    assert seen == [1, 2, 3, 4]


def reviews(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "review.csv").open(encoding="utf-8", newline="") as file:
        return {row["case"]: row for row in csv.DictReader(file)}


def taught(model: Model, scans: Path) -> Model:
    """Return the model as if it had been trained on p0: its tumour has 1 piece, and is not at the border."""
    volume = read(find_scans(scans / "p0.nii.gz")[0])
    (tumour,) = label_facts(predict(model, volume), 1)
    seen = seen_in(scan_facts(volume, [""]), {"tumour": replace(tumour, at_border=(False, False, False))})
    return replace(model, description=model.description.model_copy(update={"trained_on": {"seen": asdict(seen)}}))


def test_review_tells_what_to_look_at_first(scans: Path, tmp_path: Path, model: Model) -> None:
    """p1 is all noise; p2 has voxels of 9 mm where training had 3 mm; p4 is refused and has nothing to look at."""
    write_volume(scans / "p1.nii.gz", Volume(np.full((1, *SHAPE), 200, np.int16), GRID))
    thick = Grid(SHAPE, GRID.affine @ np.diag([1, 1, 3, 1.0]))
    write_volume(scans / "p2.nii.gz", Volume(voxels(0)[0][None], thick))
    (scans / "p4.nii.gz").write_bytes(b"")
    told: list[str] = []
    known = taught(model, scans)
    predict_folder([scans], known, tmp_path / "out", watch=lambda *news: told.append(news[-1]))
    found = reviews(tmp_path / "out")
    assert next(iter(found)) == "p1"
    assert set(found) == {"p0", "p1", "p2", "p3"}
    assert found["p1"]["flags"].split("; ") == ["REVIEW-EMPTY", "REVIEW-INTENSITY"]
    assert found["p2"]["flags"].split("; ") == ["REVIEW-VOLUME", "REVIEW-SPACING", "REVIEW-BORDER", "REVIEW-FIELD"]
    expected = voxels(0)[1].sum() * 0.003  # voxels of 1 x 1 x 3 mm
    assert float(found["p0"]["volume_ml_tumour"]) == pytest.approx(expected, rel=1e-3)
    assert "p1: done, REVIEW-EMPTY, REVIEW-INTENSITY" in told
    assert not [line for line in told if "does not tell" in line]

    before = (tmp_path / "out" / "review.csv").read_bytes()
    (tmp_path / "out" / "review.csv").unlink()
    predict_folder([scans], known, tmp_path / "out")
    assert (tmp_path / "out" / "review.csv").read_bytes() == before  # re-used cases keep theirs


def test_a_model_that_does_not_tell_is_said_once(scans: Path, tmp_path: Path, model: Model) -> None:
    told: list[str] = []
    predict_folder([scans], model, tmp_path / "out", watch=lambda *news: told.append(news[-1]))
    assert sum("does not tell how far its training cases reach" in line for line in told) == 1
    assert set(reviews(tmp_path / "out")) == {"p0", "p1", "p2", "p3"}


def test_doubt_is_calibrated_and_flags_only_then(scans: Path, tmp_path: Path) -> None:
    found, told = {}, []
    for offset in (None, -3.0, 3.0):
        model = random_model()
        told_of = {} if offset is None else {"tumour": offset}
        model = replace(model, description=model.description.model_copy(update={"dice_offsets": told_of}))
        out = tmp_path / str(offset)
        predict_folder([scans], model, out, watch=lambda *news: told.append(news[-1]))
        (row,) = [row for row in csv.DictReader((out / "review.csv").open()) if row["case"] == "p0"]
        found[offset] = (float(row["expected_dice_tumour"]), "REVIEW-DICE" in row["flags"])
    plain, flagged = found[None]
    assert not flagged
    for offset in (-3.0, 3.0):
        dice = plain * math.exp(offset) / (1 - plain + plain * math.exp(offset))
        assert found[offset] == (pytest.approx(dice, abs=0.002), dice < 0.7)
    assert {flag for _, flag in found.values()} == {True, False}
    assert sum("what the model's expected Dice is worth (tumour)" in line for line in told) == 1


def test_what_is_ahead_is_told_before_the_first_scan(scans: Path, tmp_path: Path, model: Model) -> None:
    (scans / "p4.nii.gz").write_bytes(b"")
    told: list[str] = []
    predict_folder([scans], model, tmp_path / "out", watch=lambda *news: told.append(news[-1]))
    assert told[0].startswith("to predict: 4 cases of 20 slices\nrefused: 1 (1 x NIFTI-READ")
    (forecast,) = [line for line in told if "at this pace" in line]
    assert forecast.splitlines()[1].startswith("p0 took ")
    told.clear()
    predict_folder([scans], model, tmp_path / "out", watch=lambda *news: told.append(news[-1]))
    assert "slices, 4 of them finished before: re-used unless something has changed\n" in told[0]
    assert not [line for line in told if "at this pace" in line]  # what is re-used tells nothing of the network's pace


def test_a_case_is_remembered_before_it_is_told(
    scans: Path, tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between the two leaves a finished case that is re-used; the other way round it would be done twice."""

    def stop(self: Ledger, *rows: Row) -> None:
        if rows:
            raise KeyboardInterrupt

    monkeypatch.setattr(Ledger, "record", stop)
    with pytest.raises(KeyboardInterrupt):
        predict_folder([scans], model, tmp_path / "out")
    monkeypatch.undo()
    assert statuses(predict_folder([scans], model, tmp_path / "out"))["p0"] == "reused"


def test_models_are_told_apart_by_their_hash(model: Model) -> None:
    other = replace(
        model, description=model.description.model_copy(update={"weights": {"weights.safetensors": "other"}})
    )
    assert model.hash != other.hash
