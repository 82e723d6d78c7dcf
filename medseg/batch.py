"""Prediction over many scans: a ledger, re-use by content, and one bad scan never stops the others."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from medseg.case import Case, Dataset
from medseg.config.settings import PredictConfig
from medseg.dataset import select_cases
from medseg.errors import InputError, MedsegError
from medseg.io.atomic import write_text
from medseg.io.dicom_seg import write_dicom_seg
from medseg.io.lock import exclusive
from medseg.io.nifti import write_mask
from medseg.io.rtstruct import write_rtstruct
from medseg.ledger import NOT_SELECTED, Ledger, Row, Status, rejected_rows, scan_row
from medseg.models.model_folder import Model, versions
from medseg.outputs import claim, outside
from medseg.prediction import Predictor
from medseg.progress import Watch, silent
from medseg.reading import read_case
from medseg.scan import Inventory, take_inventory
from medseg.volume import Mask

log = logging.getLogger(__name__)

Format = Literal["nifti", "dicom-seg", "rtstruct"]
ENDINGS: dict[Format, str] = {"nifti": ".nii.gz", "dicom-seg": ".seg.dcm", "rtstruct": ".rtstruct.dcm"}


RUN = "run.json"
"""What a batch remembers."""


@dataclass(frozen=True)
class Done:
    """What is remembered of a finished case, to know it again: hashes of all that decided its mask, and of the mask."""

    key: str
    output_sha256: str


def predict_folder(
    paths: Sequence[Path],
    model: Model,
    output: Path,
    *,
    config: PredictConfig | None = None,
    formats: Sequence[Format] = ("nifti",),
    watch: Watch = silent,
) -> Ledger:
    """Segment every scan that the model takes.

    Args:
        paths: folders or files with scans.
        model: what to predict with; loaded once.
        output: gets `<case>.nii.gz`, the names of the labels in `labels.json`, the ledger `cases.csv`, and `run.json`.
        config: settings of prediction; the model's own when absent.
        formats: what to write; NIfTI is always written, the DICOM forms for DICOM scans only.
        watch: is told of each case.

    Returns:
        The ledger: a row for each case. A case whose scan, model and settings are those of an earlier run, and whose
        mask is still the one written, is `reused`.

    Raises:
        UsageError: USAGE-PATH when a path does not exist, or the output folder holds scans or other results.
        RunError: RUN-BUSY or RUN-WRITE when the output folder cannot be used, RUN-DEVICE.
    """
    inventory = outside(take_inventory(list(paths)), paths, output)
    selection = select_cases(inventory, [channel.select for channel in model.preparation.channels], list(paths))
    rows = [*rejected_rows(inventory), *_passed_over(inventory, selection)]
    return predict_cases(selection.cases, Predictor(model, config), output, rows=rows, formats=formats, watch=watch)


def predict_cases(
    cases: Sequence[Case],
    predictor: Predictor,
    output: Path,
    *,
    rows: Sequence[Row] = (),
    formats: Sequence[Format] = ("nifti",),
    watch: Watch = silent,
) -> Ledger:
    """Segment cases that are chosen already; otherwise as `predict_folder`.

    Args:
        cases: to predict.
        predictor: the model on its device.
        output: the output folder.
        rows: of the ledger, for what is not to be predicted.
        formats: what to write.
        watch: is told of each case.
    """
    with exclusive(output):
        run = _Run(predictor, output, tuple(dict.fromkeys(("nifti", *formats))))
        masks = [name for case in cases for name in run.names(case).values()]
        claim(output, "predict", ["cases.csv", "labels.json", RUN, *masks])
        ledger = Ledger(output)
        ledger.record(*rows)
        labels = {str(number): name for number, name in predictor.model.labels}
        write_text(output / "labels.json", json.dumps(labels, indent=1, ensure_ascii=False))
        for number, case in enumerate(cases, start=1):
            row = run.predict_one(case)
            run.save(ledger)  # first: a kill between the two leaves a finished case to be re-used, not done again
            ledger.record(row)
            told = f": {row.message}" if row.status in ("rejected", "failed") else ""
            watch("predict", number, len(cases), f"{row.case}: {row.status}{told}")
        run.save(ledger)
    return ledger


def _passed_over(inventory: Inventory, selection: Dataset) -> list[Row]:
    """Return the rows of scans that the model does not take, and of cases that could not be put together."""
    scans = {scan.case_id: scan for scan in inventory.scans}
    rows = []
    for finding in selection.findings:
        scan = scans.get(finding.where)
        if finding.severity == "error" or finding.code == NOT_SELECTED:
            row = scan_row(scan, "rejected") if scan else Row(finding.where, "", "rejected")
            rows.append(replace(row, code=finding.code, message=finding.message))
    return rows


class _Run:
    """One batch in one output folder: predicts cases, and remembers what it finished in `run.json`."""

    def __init__(self, predictor: Predictor, output: Path, formats: tuple[Format, ...]) -> None:
        self.predictor = predictor
        self.output = output
        self.formats = formats
        self.path = output / RUN
        self.started = time.time()
        self.finished = _remembered(self.path)

    def names(self, case: Case) -> dict[Format, str]:
        """Return the name of each file that a case gets."""
        return {form: f"{case.id}{ENDINGS[form]}" for form in self.formats if form == "nifti" or _is_dicom(case)}

    def predict_one(self, case: Case) -> Row:
        """Predict, write and verify one case, or take it from an earlier run; every fault becomes a row."""
        start = time.perf_counter()
        status: Status
        try:
            status, row = self._predict(case)
        except InputError as error:
            status, row = "rejected", _case_row(case, code=error.code, message=error.message)
        except MedsegError as error:
            status, row = "failed", _case_row(case, code=error.code, message=error.message)
        except MemoryError:
            grid = case.scans[0].grid
            message = f"not enough memory for a scan of {grid.shape if grid else 'unknown size'}"
            status, row = "failed", _case_row(case, code="RUN-MEMORY", message=message)
        except Exception as error:
            log.exception("case %s failed", case.id)
            status, row = "failed", _case_row(case, code="RUN-CRASH", message=f"{type(error).__name__} inside medseg")
        return replace(row, status=status, seconds=time.perf_counter() - start)

    def _predict(self, case: Case) -> tuple[Literal["done", "reused"], Row]:
        names = self.names(case)
        row = _case_row(case, output="; ".join(names.values()))
        key = self._key(case)
        known = self.finished.get(case.id)
        if (
            known
            and known.key == key
            and _hash_files([self.output / name for name in names.values()]) == known.output_sha256
        ):
            return "reused", row
        self.finished.pop(case.id, None)
        mask = self.predictor.predict(read_case(case.scans))
        for form, name in names.items():
            self._write(form, self.output / name, mask, case)
        written = _hash_files([self.output / name for name in names.values()])
        self.finished[case.id] = Done(key, written or "")
        return "done", row

    def _write(self, form: Format, path: Path, mask: Mask, case: Case) -> None:
        model = self.predictor.model
        match form:
            case "nifti":
                write_mask(path, mask)
            case "dicom-seg":
                write_dicom_seg(path, mask, model.labels, case.scans[0].files, model_hash=model.hash)
            case "rtstruct":
                write_rtstruct(path, mask, model.labels, case.scans[0].files, model_hash=model.hash)

    def _key(self, case: Case) -> str:
        content = _hash_files([file for scan in case.scans for file in scan.files])
        cleaning = {str(number): rule.model_dump() for number, rule in self.predictor.rules.items()}
        settings = [str(self.predictor.config.mirror), str(self.predictor.dtype), json.dumps(cleaning)]
        decided = [content, self.predictor.model.hash, *settings, version("medseg")]
        return hashlib.sha256(json.dumps(decided).encode()).hexdigest()

    def save(self, ledger: Ledger) -> None:
        """Write `run.json`."""
        model = self.predictor.model
        content: dict[str, Any] = {
            "versions": versions(),
            "device": str(self.predictor.device),
            "precision": str(self.predictor.dtype).removeprefix("torch."),
            "model": model.hash,
            "labels": model.description.labels,
            "settings": self.predictor.config.model_dump(mode="json"),
            "totals": ledger.counts(),
            "seconds": round(time.time() - self.started, 2),
            "finished": {case: vars(done) for case, done in sorted(self.finished.items())},
        }
        write_text(self.path, json.dumps(content, indent=1))


def _case_row(case: Case, *, code: str = "", message: str = "", output: str = "") -> Row:
    row = scan_row(case.scans[0], "done", code, message, output)
    more = "; ".join(f"{note.message} ({note.code})" for scan in case.scans[1:] for note in scan.warnings)
    return replace(row, case=case.id, warnings="; ".join(filter(None, (row.warnings, more))))


def _is_dicom(case: Case) -> bool:
    return case.scans[0].kind == "dicom"


def _remembered(path: Path) -> dict[str, Done]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))["finished"]
        return {case: Done(**done) for case, done in content.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        log.warning("%s cannot be read: every case is done anew", path)
        return {}


def _hash_files(paths: Sequence[Path]) -> str | None:
    """Hash the content of files in order, None when one cannot be read."""
    digest = hashlib.sha256()
    try:
        for path in paths:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    except OSError:
        return None
    return digest.hexdigest()
