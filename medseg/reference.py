"""A case's reference as label numbers on its scan's grid: from NIfTI, RTSTRUCT or DICOM SEG.

Label numbers are 1, 2, ... in the order of the configuration. Where structures overlap, the label that stands later
wins: list the inner structure (tumour) after the outer one (organ). What is marked as not annotated (`UNANNOTATED`)
wins over all: a voxel too many left out is never wrong.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.case import Case, Finding, Severity
from medseg.config.settings import Config
from medseg.errors import MaskError, MedsegError
from medseg.grid import Grid
from medseg.io.dicom_seg import read_dicom_seg
from medseg.io.nifti import read_numbers, to_labels
from medseg.io.rtstruct import read_rtstruct
from medseg.matching import LabelMatch, listed, match_names, match_reference, no_label
from medseg.scan import ReferenceFile
from medseg.volume import UNANNOTATED, Mask

log = logging.getLogger(__name__)

Bool = NDArray[np.bool_]

EXACT_FLOATS = 1e-6
"""Floats this near to whole numbers are the noise of a scale factor; beyond, the mask was rescaled or interpolated."""

MAX_OUTSIDE = 0.01
"""A reference on another grid may lose this share of its voxels at the scan's border; more means another place."""


READ_BY: dict[str, Any] = {
    "labels": True,
    "ignore": True,
    "unannotated": True,
    "data": {"resample_references"},
}
"""The settings that a reference is read by."""


@dataclass(frozen=True)
class Reading:
    """A reference and what was noticed on reading it.

    Attributes:
        mask: label numbers on the scan's grid.
        findings: warnings and notes, `where` is the case.
    """

    mask: Mask
    findings: tuple[Finding, ...]


@dataclass
class _Remarks:
    """Collects what is noticed about one case."""

    case_id: str
    findings: list[Finding] = field(default_factory=list)

    def add(self, severity: Severity, code: str, message: str) -> None:
        self.findings.append(Finding(severity, code, self.case_id, message))


# ------------------------------------------------------------------------------------------------------------ reading


def read_reference(case: Case, grid: Grid, config: Config) -> Mask:
    """Read a case's reference; what was noticed is logged at DEBUG only, for `open_reference` returns it.

    Args:
        case: with a reference.
        grid: of the case's first scan, as its voxels were read.
        config: labels, what to ignore, what is not annotated, and whether a reference on another grid is resampled.

    Returns:
        Label numbers 1, 2, ... in the order of `config.labels` and `UNANNOTATED`, on `grid` exactly.

    Raises:
        MaskError: MASK-MISSING without a reference, MASK-GRID beside the scan (with mm), MASK-VALUES for numbers that
            no label takes, LABEL-UNKNOWN when no structure fits a label, MASK-READ.
        NiftiError: the file is unfit.
    """
    reading = open_reference(case, grid, config)
    for finding in reading.findings:
        log.debug("%s: %s (%s)", finding.where, finding.message, finding.code)
    return reading.mask


def open_reference(case: Case, grid: Grid, config: Config) -> Reading:
    """Read a case's reference and say what was noticed; arguments and errors as for `read_reference`."""
    remarks = _Remarks(case.id)
    if not case.references:
        raise MaskError("MASK-MISSING", case.id, "has no reference", "Add one, or leave the case out.")
    files = [reference for reference in case.references if isinstance(reference, Path)]
    objects = [reference for reference in case.references if not isinstance(reference, Path)]
    if len(files) > 1 or (files and objects):
        names = ", ".join(file_of(reference).name for reference in case.references)
        raise MaskError("MASK-AMBIGUOUS", case.id, f"has several references: {names}", "Keep one of them.")
    mask = _read_file(files[0], grid, config, remarks) if files else _read_objects(objects, grid, config, remarks)
    return Reading(mask, tuple(remarks.findings))


def file_of(reference: Path | ReferenceFile) -> Path:
    """Return the file of a reference."""
    return reference if isinstance(reference, Path) else reference.path


@contextmanager
def _about(case_id: str, path: Path) -> Iterator[None]:
    """Let an error name the case and the reference's file instead of whatever place it gives."""
    try:
        yield
    except MedsegError as error:
        problem = f"reference {path.name}: {error.problem}"
        raise type(error)(error.code, case_id, problem, error.advice) from error


@contextmanager
def _advising(advice: str) -> Iterator[None]:
    """Say what to do about a mask that is not on its scan's grid."""
    try:
        yield
    except MaskError as error:
        if error.code != "MASK-GRID":
            raise
        raise MaskError(error.code, error.where, error.problem, advice) from error


# -------------------------------------------------------------------------------------------------------------- NIfTI


def _read_file(path: Path, grid: Grid, config: Config, remarks: _Remarks) -> Mask:
    with _about(remarks.case_id, path):
        numbers, own = read_numbers(path)
        stored = to_labels(numbers, "")
        if numbers.dtype.kind == "f":
            _remark_floats(numbers, stored, remarks)
        mask = Mask(_renumbered(stored, config), own)
        if config.data.resample_references and own.order_onto(grid) is None:
            remarks.add(
                "warning", "MASK-RESAMPLED", f"reference {path.name} lay on another grid; resampled, nearest voxel"
            )
            return resampled(mask, grid, outside=UNANNOTATED if 0 in config.unannotated else 0)
        with _advising("If it was drawn on a resampled copy, set data.resample_references; else take the right mask."):
            return mask.placed_on(grid)


def _remark_floats(numbers: NDArray[Any], stored: NDArray[Any], remarks: _Remarks) -> None:
    last = range(numbers.shape[2])
    farthest = max(float(np.abs(numbers[..., k].astype(np.float64) - stored[..., k]).max()) for k in last)
    if farthest > EXACT_FLOATS:
        text = f"label numbers are floats up to {farthest:.2g} from whole ones; rounded. Was the mask rescaled?"
        remarks.add("warning", "MASK-ROUNDED", text)
    else:
        remarks.add(
            "note", "MASK-ROUNDED", "label numbers are stored as floats; read as the whole numbers that they are"
        )


def _renumbered(stored: NDArray[np.uint8] | NDArray[np.uint16], config: Config) -> NDArray[np.uint8]:
    """Give the file's numbers the numbers of the configuration's labels.

    Raises:
        MaskError: MASK-VALUES for a number that the configuration does not know.
    """
    counts = np.bincount(stored.ravel(order="K"), minlength=1)
    table = np.zeros(len(counts), dtype=np.uint8)
    known = {0} | {number for number in config.ignore if isinstance(number, int)}
    for number, sources in [*enumerate(config.labels.values(), start=1), (UNANNOTATED, config.unannotated)]:
        for source in sources:
            if isinstance(source, int) and source < len(table):
                table[source] = number
                known.add(source)
    strange = [value for value in np.flatnonzero(counts).tolist() if value not in known]
    if strange:
        wanted = ", ".join(
            f"{name}: {[s for s in sources if isinstance(s, int)] or 'no numbers'}"
            for name, sources in config.labels.items()
        )
        problem = (
            f"holds the {'numbers' if len(strange) > 1 else 'number'} {listed(strange)} that no label takes ({wanted})"
        )
        raise MaskError(
            "MASK-VALUES",
            "",
            problem,
            "Add them under `labels`; under `ignore` to make them background; under `unannotated` to leave them out.",
        )
    return table[stored]


def resampled(mask: Mask, grid: Grid, outside: int = 0) -> Mask:
    """Lay a mask on another grid: each voxel takes the number of the mask's voxel nearest to its centre.

    Args:
        mask: as it was drawn.
        grid: of the result.
        outside: number of the voxels that lie outside the mask.

    Raises:
        MaskError: MASK-GRID when more than a hundredth of the labelled voxels lies outside the grid.
    """
    _check_covered(mask, grid)
    to_mask = np.linalg.inv(mask.grid.affine) @ grid.affine
    labels: NDArray[Any] = np.full(grid.shape, outside, dtype=mask.labels.dtype)
    i, j = np.meshgrid(np.arange(grid.shape[0]), np.arange(grid.shape[1]), indexing="ij")
    plane = i[..., None] * to_mask[:3, 0] + j[..., None] * to_mask[:3, 1] + to_mask[:3, 3]
    for k in range(grid.shape[2]):  # a slice at a time: the coordinates of a whole volume would be 24 bytes a voxel
        index = np.rint(plane + k * to_mask[:3, 2]).astype(np.int64)
        inside = ((index >= 0) & (index < mask.grid.shape)).all(axis=-1)
        labels[..., k][inside] = mask.labels[tuple(index[inside].T)]
    return Mask(labels, grid)


def _check_covered(mask: Mask, grid: Grid) -> None:
    labelled = outside = 0
    for k in range(mask.labels.shape[2]):  # a slice at a time: index and world coordinates are 72 bytes a voxel
        i, j = np.nonzero((mask.labels[..., k] != 0) & (mask.labels[..., k] != UNANNOTATED))
        index = grid.to_index(mask.grid.to_world(np.stack([i, j, np.full_like(i, k)], axis=-1)))
        labelled += len(index)
        outside += int(((index < -0.5) | (index > np.array(grid.shape) - 0.5)).any(axis=-1).sum())
    if outside > MAX_OUTSIDE * labelled:
        problem = f"{outside / labelled:.0%} of its labelled voxels lie outside the scan"
        raise MaskError("MASK-GRID", "", problem, "Take the reference that was drawn on this scan.")


# -------------------------------------------------------------------------------------------------- RTSTRUCT and SEG


def _read_objects(references: Sequence[ReferenceFile], grid: Grid, config: Config, remarks: _Remarks) -> Mask:
    """Merge the structures of one or more DICOM objects."""
    voxels: dict[str, Bool] = {}
    unknown: Bool = np.zeros(grid.shape, dtype=bool)
    taken_from: dict[str, str] = {}
    matches: list[tuple[ReferenceFile, LabelMatch]] = []
    for reference in references:
        with _about(remarks.case_id, reference.path):
            match, found = _read_object(reference, grid, config)
        matches.append((reference, match))
        for label, names in match.sources.items():
            if taken_from.setdefault(label, reference.path.name) != reference.path.name:
                problem = f"label {label!r} is in both {taken_from[label]} and {reference.path.name}"
                raise MaskError(
                    "MASK-AMBIGUOUS", remarks.case_id, problem, "Keep one of them, or narrow the label's patterns."
                )
            voxels[label] = np.logical_or.reduce([found[name] for name in names])
        for name in match.unannotated:
            unknown |= found[name]
    if not voxels:
        seen = [name for reference in references for name in reference.names]
        raise MaskError("LABEL-UNKNOWN", remarks.case_id, *no_label(seen, config))
    missing = [label for label in config.labels if label not in voxels]
    for reference, match in matches:
        _remark_match(match, reference, missing, remarks)
    if missing and not any(match.unmatched for _, match in matches):
        remarks.add("note", "MASK-STRUCTURES", f"no structure here for {', '.join(missing)}")
    return Mask(_stacked(voxels, unknown, config, remarks), grid)


def _read_object(reference: ReferenceFile, grid: Grid, config: Config) -> tuple[LabelMatch, dict[str, Bool]]:
    match = match_reference(reference, config)
    names = [*(name for taken in match.sources.values() for name in taken), *match.unannotated]
    if not names:
        return match, {}
    if reference.kind == "rtstruct":
        return match, read_rtstruct(reference.path, grid, names)
    with _advising(
        "A SEG must lie on its scan: data.resample_references is for NIfTI masks. Convert it, or redraw it."
    ):
        return match, read_dicom_seg(reference.path, grid, names)


def _stacked(voxels: Mapping[str, Bool], unknown: Bool, config: Config, remarks: _Remarks) -> NDArray[np.uint8]:
    labels = np.zeros(unknown.shape, dtype=np.uint8)
    for number, label in enumerate(config.labels, start=1):
        if label in voxels:
            covered = int(np.count_nonzero(labels[voxels[label]]))
            if covered:
                remarks.add(
                    "note", "MASK-OVERLAP", f"{label} covers {covered} voxels of labels before it in the configuration"
                )
            labels[voxels[label]] = number
    if covered := int(np.count_nonzero(labels[unknown])):
        remarks.add("note", "MASK-OVERLAP", f"{covered} voxels of labels are marked as not annotated, and are left out")
    labels[unknown] = UNANNOTATED
    return labels


def _remark_match(match: LabelMatch, reference: ReferenceFile, missing: Sequence[str], remarks: _Remarks) -> None:
    if match.unmatched and missing:  # a label's structure under another name would be trained as background
        text = f"{reference.path.name}: nothing for {', '.join(missing)}, and no label takes {listed(match.unmatched)}"
        advice = "background there. Is one of these meant? Name it under `labels`; else under `ignore`"
        remarks.add("warning", "MASK-STRUCTURES", f"{text}; {advice}")
    elif match.unmatched:
        text = f"{reference.path.name}: no label takes {listed(match.unmatched)}; background there"
        remarks.add("note", "MASK-STRUCTURES", text)
    if match.loose:
        text = f"{reference.path.name}: {listed(match.loose)} fits only without regard to upper and lower case"
        remarks.add("note", "MASK-STRUCTURES", text)


def describe_labels(case: Case, config: Config) -> list[str]:
    """Return lines for people: what each label takes from a case's references, and what nothing takes.

    Raises:
        InputError: when a reference cannot be read.
    """
    lines = []
    for reference in case.references:
        with _about(case.id, file_of(reference)):
            match = (
                _match_values(reference, config) if isinstance(reference, Path) else match_reference(reference, config)
            )
        lines.append(f"{case.id}: {file_of(reference).name}")
        for number, label in enumerate(config.labels, start=1):
            lines.append(f"  {label} ({number}) takes {listed(match.sources.get(label, ())) or 'nothing'}")
        lines.extend(
            f"  {what}: {listed(names)}"
            for what, names in (
                ("ignored", match.ignored),
                ("not annotated", match.unannotated),
                ("taken by no label", match.unmatched),
            )
            if names
        )
    return lines


def describe_all(cases: Sequence[Case], config: Config) -> list[str]:
    """Return what the labels take from the DICOM references of all cases: each line once, with how many cases say it.

    Of NIfTI masks only the first is described: their numbers are not in a header, and a number that no label takes is
    refused case by case.

    Raises:
        InputError: when a reference cannot be read.
    """
    named = [case for case in cases if any(isinstance(item, ReferenceFile) for item in case.references)]
    lines = Counter(line.strip() for case in named for line in describe_labels(case, config) if line.startswith(" "))
    told = [f"{line} (in {count} of {len(named)} cases)" for line, count in lines.most_common()]
    others = [case for case in cases if case not in named]
    return told + (describe_labels(others[0], config) if others else [])


def _match_values(path: Path, config: Config) -> LabelMatch:
    stored = to_labels(read_numbers(path)[0], "")
    values = [value for value in np.flatnonzero(np.bincount(stored.ravel(order="K"))).tolist() if value]
    return match_names([str(value) for value in values], config, {str(value): {value} for value in values})
