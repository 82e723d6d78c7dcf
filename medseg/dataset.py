"""From a configuration to cases: select the scans, pair them with their references. Headers only.

    inventory --select_cases--> cases --pair--> cases with a reference

Whatever is left out has a finding that names it and says what to do; the rest goes on.
"""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol

from medseg.case import Case, Dataset, Finding
from medseg.config.settings import Config, DataConfig
from medseg.errors import ConfigError
from medseg.io.dicom_series import ADVICE
from medseg.matching import keep_needed, listed
from medseg.naming import (
    MASK_WORDS,
    PREDICTION_WORDS,
    SCAN_WORDS,
    bare,
    looks_like,
    owner_key,
    parts_below,
    words,
)
from medseg.pairing import References, pair_all, pair_dicom
from medseg.patients import Patients, tell_patients
from medseg.reference import describe_labels, read_reference
from medseg.scan import Inventory, ReferenceFile, Scan, Skipped, take_inventory

__all__ = [
    "Case",
    "Dataset",
    "Finding",
    "describe_labels",
    "find_cases",
    "read_reference",
    "select_cases",
]

log = logging.getLogger(__name__)


class Wanted(Protocol):
    """What tells a channel's scan from the others: `ChannelConfig`, or what a model remembers of it."""

    @property
    def name(self) -> str:
        """What the channel is called."""

    @property
    def modality(self) -> str | None:
        """DICOM modality; any when None."""

    @property
    def description(self) -> str | None:
        """Pattern for the series description, or the name of the file or folder; any when None."""

    @property
    def referenced(self) -> bool:
        """Whether an RTSTRUCT or DICOM SEG must refer to the series."""


# ---------------------------------------------------------------------------------------------------------- selecting


def select_cases(inventory: Inventory, channels: Sequence[Wanted], roots: Sequence[Path] = ()) -> Dataset:
    """Choose the scans that a model takes and group them into cases, without references.

    With one channel each chosen scan is a case. With several, the scans of one patient and study make one (for NIfTI:
    of one folder, or of one name without the words that tell the sequence).

    Args:
        inventory: what was found.
        channels: how to know each channel's scan, in order.
        roots: the files and folders that were given; a file given by its own name is a scan however it is called.

    Returns:
        The cases; and findings: unfit scans, several scans or none for one channel, and, as notes (NOT-SELECTED), the
        usable scans that were passed over.
    """
    findings: list[Finding] = []
    scans, named_otherwise = _without_masks(inventory.scans, roots)
    findings.extend(named_otherwise)
    referenced, remarks = _referenced(scans, inventory.references, channels)
    findings.extend(remarks)
    fitting = [tuple(n for n, want in enumerate(channels) if _fits(scan, want, referenced)) for scan in scans]
    for scan, fits in zip(scans, fitting, strict=True):
        if not fits:
            findings.append(_not_selected(scan, "it is not what `select` asks for"))
        elif not scan.usable:
            advice = ADVICE.get(scan.code, "Export it again, or leave it out.").rstrip(".")
            findings.append(Finding("error", scan.code, scan.case_id, f"{scan.reason}. {advice}"))
        else:
            findings.extend(Finding("warning", note.code, scan.case_id, note.message) for note in scan.warnings)
    chosen = [(scan, fits) for scan, fits in zip(scans, fitting, strict=True) if fits and scan.usable]
    cases, more = _grouped(chosen, channels, roots)
    return Dataset(tuple(sorted(cases, key=lambda case: case.id)), _in_order([*findings, *more]))


def _without_masks(scans: Sequence[Scan], roots: Sequence[Path]) -> tuple[list[Scan], list[Finding]]:
    """Set aside NIfTI files that are masks or predictions by their names or headers."""
    given = {root.absolute() for root in roots}
    kept, findings = [], []
    for scan in scans:
        named = _kind_by_name(scan, roots)
        if scan.path.absolute() in given or not (named or scan.holds_labels):
            kept.append(scan)
            continue
        why = f"by its name it is a {named}" if named else "by its header it is a mask"
        findings.append(_not_selected(scan, f"{why}; give the file itself to use it as a scan"))
    return kept, findings


def _kind_by_name(scan: Scan, roots: Sequence[Path]) -> str:
    if scan.kind != "nifti":
        return ""
    parts = parts_below(scan.path, roots)
    if looks_like(parts, PREDICTION_WORDS):
        return "prediction"
    return "mask" if looks_like(parts, MASK_WORDS) else ""


def _not_selected(scan: Scan, why: str) -> Finding:
    return Finding("note", "NOT-SELECTED", scan.case_id, f"not selected: {why}")


def _referenced(
    scans: Sequence[Scan], references: Sequence[ReferenceFile], channels: Sequence[Wanted]
) -> tuple[frozenset[str] | None, list[Finding]]:
    """Return the ids of the scans that a DICOM reference belongs to; None when no channel asks, or nobody can tell."""
    if not any(want.referenced for want in channels):
        return None, []
    if not references:
        text = "no RTSTRUCT or DICOM SEG is here, so that `referenced` is no help; the rest of `select` chose"
        return None, [Finding("warning", "NOT-SELECTED", "select", text)]
    singles = [Case(scan.case_id, scan.group, (scan,)) for scan in scans]
    pairs = pair_dicom(singles, references)
    errors = [finding for finding in pairs.findings if finding.severity == "error"]
    return frozenset(singles[number].id for number in pairs.of_case), errors


def _fits(scan: Scan, want: Wanted, referenced: frozenset[str] | None) -> bool:
    # A NIfTI does not know its modality: what the configuration says of it is taken.
    if want.modality and scan.modality and scan.modality.upper() != want.modality.upper():
        return False
    if want.referenced and referenced is not None and scan.case_id not in referenced:
        return False
    if want.description is None:
        return True
    pattern = want.description.casefold()
    names = (scan.description, scan.path.name, parts_below(scan.path, ())[-1])
    return any(fnmatchcase(name.casefold(), pattern) for name in names if name)


# ----------------------------------------------------------------------------------------------------------- grouping


Chosen = tuple[Scan, tuple[int, ...]]
"""A scan, and the indices of the channels that it fits."""


def _grouped(
    chosen: Sequence[Chosen], channels: Sequence[Wanted], roots: Sequence[Path]
) -> tuple[list[Case], list[Finding]]:
    patients = tell_patients([scan for scan, _ in chosen], roots)
    findings = _stand_ins(patients)
    if len(channels) == 1:
        return [Case(scan.case_id, patients.of_scan[scan.case_id], (scan,)) for scan, _ in chosen], findings
    cases: list[Case] = []
    for group in _groups(chosen, len(channels), roots):
        by_channel = [[scan for scan, fits in group if number in fits] for number in range(len(channels))]
        case_id = _common_id([scan.case_id for scan, _ in group])
        problem = _channel_problem(by_channel, channels, case_id)
        if problem:
            findings.append(problem)
        else:
            scans = tuple(found[0] for found in by_channel)
            cases.append(Case(case_id, patients.of_scan[scans[0].case_id], scans))
    return _unique(cases), findings


def _stand_ins(patients: Patients) -> list[Finding]:
    ids = patients.by_folder
    if not ids:
        return []
    text = f"{len(ids)} scans have no patient id, or one that anonymisers give to everybody: {listed(ids)}. "
    advice = "Their folders stand for the patients: keep all scans of a patient in one folder"
    return [Finding("warning", "DICOM-IDENTITY", "patients", text + advice)]


def _groups(chosen: Sequence[Chosen], channels: int, roots: Sequence[Path]) -> list[list[Chosen]]:
    """Group by patient and study; without these by folder if it holds one scan for each channel, else by bare name."""
    studies: dict[tuple[str, ...], list[Chosen]] = defaultdict(list)
    folders: dict[Path, list[Chosen]] = defaultdict(list)
    for scan, fits in chosen:
        if scan.kind == "dicom" and scan.study_uid:
            studies[(scan.group, scan.study_uid)].append((scan, fits))
        else:
            folders[scan.path.parent].append((scan, fits))
    names: dict[tuple[str, ...], list[Chosen]] = defaultdict(list)
    whole: list[list[Chosen]] = []
    for group in folders.values():
        if sorted(number for _, fits in group for number in fits) == list(range(channels)):
            whole.append(group)
        else:
            for scan, fits in group:
                names[owner_key(parts_below(scan.path, roots))].append((scan, fits))
    return [*studies.values(), *whole, *names.values()]


def _channel_problem(by_channel: Sequence[Sequence[Scan]], channels: Sequence[Wanted], case_id: str) -> Finding | None:
    for want, scans in zip(channels, by_channel, strict=True):
        if len(scans) > 1:
            ids = ", ".join(scan.case_id for scan in scans)
            text = f"{len(scans)} scans fit channel {want.name!r}: {ids}. Narrow its `description` in `select`"
            return Finding("error", "DATA-AMBIGUOUS", case_id, text)
        if not scans:
            text = f"no usable scan fits channel {want.name!r}. Add it, widen `select`, or leave the case out"
            return Finding("error", "DATA-CHANNEL", case_id, text)
    return None


def _common_id(ids: Sequence[str]) -> str:
    """Return what the ids of a case's scans begin with, without the words that tell the sequence; else the first id."""
    if len(ids) == 1:
        return ids[0]
    split = [re.split(r"([_.\- ]+)", name) for name in ids]
    shared = [pieces[0] for pieces in zip(*split, strict=False)]
    while shared and any(pieces[: len(shared)] != shared for pieces in split):
        shared.pop()
    while shared and not bare(words(shared[-1]), SCAN_WORDS):
        shared.pop()
    return "".join(shared) or min(ids)


def _unique(cases: list[Case]) -> list[Case]:
    times = Counter(case.id.casefold() for case in cases)
    return [replace(case, id=case.scans[0].case_id) if times[case.id.casefold()] > 1 else case for case in cases]


# ------------------------------------------------------------------------------------------------------------ pairing


def find_cases(config: Config) -> Dataset:
    """Find the scans and references of a configuration and pair them; only headers are read.

    NIfTI references lie in `data.references`; when that is empty, beside the scans with a mask's name. RTSTRUCT and
    DICOM SEG are found in both, and those in `data.references` go first.

    Returns:
        The cases with a reference, and everything that was left out with its reason.

    Raises:
        UsageError: USAGE-PATH when a path does not exist; CONFIG-VALUE when `data.scans` is empty.
    """
    data = config.data
    if not data.scans:
        raise ConfigError("CONFIG-VALUE", "data.scans", "names no folder", "Write where the scans are.")
    inventory = take_inventory(data.scans)
    extra = take_inventory(data.references) if data.references else Inventory((), (), ())
    inventory, given, beside = _divided(inventory, extra, data)
    selected = select_cases(inventory, data.select, data.scans)
    chosen = {scan.case_id for case in selected.cases for scan in case.scans}
    passed_over = [scan for scan in inventory.scans if scan.case_id not in chosen]
    paired, findings = pair_all(selected.cases, passed_over, given, beside, data.scans, tuple(config.labels))
    needed, unfit = keep_needed(paired, config)
    unread = [_unread(skipped) for skipped in inventory.skipped + extra.skipped if not skipped.code.startswith("SKIP")]
    return Dataset(tuple(needed), _in_order([*selected.findings, *findings, *unfit, *unread]))


def _divided(inventory: Inventory, extra: Inventory, data: DataConfig) -> tuple[Inventory, References, References]:
    """Tell scans from masks where trees overlap: by the deeper of the folders that were given, then by name.

    A label header alone makes no reference: what medseg predicted among the scans must not train the next model.
    """
    in_scans = {scan.path for scan in inventory.scans}
    masks = tuple(scan for scan in extra.scans if scan.kind == "nifti" and _is_reference(scan, in_scans, data))
    taken = {mask.path for mask in masks}
    kept = tuple(scan for scan in inventory.scans if scan.path not in taken)
    named = (
        ()
        if data.references
        else tuple(s for s in kept if s.path not in data.scans and _kind_by_name(s, data.scans) == "mask")
    )
    named_paths = {scan.path for scan in named}
    given_objects = {reference.path for reference in extra.references}
    beside = tuple(reference for reference in inventory.references if reference.path not in given_objects)
    scans = tuple(scan for scan in kept if scan.path not in named_paths)
    return (
        replace(inventory, scans=scans, references=(*beside, *extra.references)),
        References(masks, extra.references, data.references),
        References(named, beside, data.scans),
    )


def _is_reference(scan: Scan, in_scans: set[Path], data: DataConfig) -> bool:
    """Whether a NIfTI in `references` is a mask although it may also lie in `scans`."""
    if scan.path not in in_scans:
        return True
    depths = [
        max(
            (len(root.absolute().parts) for root in roots if scan.path.absolute().is_relative_to(root.absolute())),
            default=0,
        )
        for roots in (data.references, data.scans)
    ]
    if depths[0] != depths[1]:
        return depths[0] > depths[1]
    named = _kind_by_name(scan, data.references)
    return named == "mask" or (scan.holds_labels and not named)


def _unread(skipped: Skipped) -> Finding:
    return Finding("warning", skipped.code, skipped.path.name, skipped.reason)


def _in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    rank = {"error": 0, "warning": 1, "note": 2}
    return tuple(sorted(dict.fromkeys(findings), key=lambda f: (rank[f.severity], f.where, f.code, f.message)))
