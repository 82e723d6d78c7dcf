"""Which scans are of one patient: what their headers say, unless that is a stand-in; else folders and names.

Anonymisers write one id for everybody ("ANON"). Taken at its word it makes a whole data set one patient, and nothing
can be held out.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.naming import owner_key, parts_below
from medseg.scan import Scan

_WORDS = (
    "anon anonym anonymous anonymized anonymised deidentified de-identified removed none null nil na n/a unknown "
    "undefined noid no_id patient patientid patient_id subject test testpatient dummy default phantom x xx xxx - . ?"
)
_NUMBERS = "0 00 000 0000 00000 000000 0000000 00000000 1 123 1234 12345 123456 1234567 12345678 123456789 999999"


def _hashes(names: str) -> frozenset[str]:
    spelled = {spelling for name in names.split() for spelling in (name, name.upper(), name.capitalize())}
    return frozenset(hashlib.sha256(name.encode()).hexdigest()[:12] for name in spelled)


# As `Scan.group` is made: the id itself is nowhere.
STAND_INS = _hashes(_WORDS)
"""Hashes of ids that are nobody's."""

COMMON_NUMBERS = _hashes(_NUMBERS)
"""Hashes of numbers that may be somebody's: stand-ins only where every DICOM scan has the same one."""


@dataclass(frozen=True)
class Patients:
    """Whose each scan is.

    Attributes:
        of_scan: case id of a scan to its patient.
        by_folder: ids of the scans whose header names nobody, while they are of several patients.
    """

    of_scan: Mapping[str, str]
    by_folder: tuple[str, ...] = ()


def tell_patients(scans: Sequence[Scan], roots: Sequence[Path]) -> Patients:
    """Tell the patient of each scan.

    By the hash of the header's patient id; BIDS' `sub-` folder or name; for DICOM that names nobody, by the first
    folder in which these scans differ (joined where one study lies in two); for NIfTI by the name without decorations.

    Args:
        scans: of one inventory.
        roots: the files and folders that were given.
    """
    shared = {scan.group for scan in scans if scan.kind == "dicom"}
    nobody = STAND_INS | {""} | (COMMON_NUMBERS if len(shared) == 1 else frozenset())
    found = {scan.case_id: scan.group if scan.group not in nobody else _bids_patient(scan, roots) for scan in scans}
    unnamed = [scan for scan in scans if scan.kind == "dicom" and not found[scan.case_id]]
    folders = _by_folder(unnamed)
    several = len(set(folders.values())) > 1
    of_scan = {
        scan.case_id: found[scan.case_id] or folders.get(scan.case_id) or _by_name(scan, roots) for scan in scans
    }
    return Patients(of_scan, tuple(sorted(folders)) if several else ())


def _bids_patient(scan: Scan, roots: Sequence[Path]) -> str:
    patients = (re.match(r"sub-[A-Za-z0-9]+", part) for part in parts_below(scan.path, roots))
    return next((patient[0] for patient in patients if patient), "")


def _by_name(scan: Scan, roots: Sequence[Path]) -> str:
    return "_".join(owner_key(parts_below(scan.path, roots))) or scan.case_id


def _by_folder(scans: Sequence[Scan]) -> dict[str, str]:
    """Return case id to the first folder in which the scans' paths differ; folders that share a study are one."""
    paths = {scan.case_id: scan.path.absolute().parts for scan in scans}
    depth = 0
    while len({parts[: depth + 1] for parts in paths.values()}) == 1 and all(depth < len(p) for p in paths.values()):
        depth += 1
    folder = {case_id: parts[min(depth, len(parts) - 1)] for case_id, parts in paths.items()}
    together: list[set[str]] = []
    for study in sorted({scan.study_uid or scan.case_id for scan in scans}):
        group = {folder[scan.case_id] for scan in scans if (scan.study_uid or scan.case_id) == study}
        touching = [other for other in together if other & group]
        together = [other for other in together if not other & group] + [group.union(*touching)]
    patient = {name: min(group) for group in together for name in group}
    return {case_id: patient[name] for case_id, name in folder.items()}
