"""`Scan`: one series or one NIfTI file, judged by its headers alone. A folder in, an inventory with verdicts out.

    take_inventory(paths) -> Inventory(scans, references, skipped)
    read(scan)            -> Volume

Files are known by their content, not by their names; what is no scan is skipped with a reason. Case ids come from the
names of folders and files, never from patient headers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from medseg.errors import InputError, MedsegError
from medseg.grid import Grid
from medseg.io.dicom import read_volume as read_dicom_volume
from medseg.io.dicom_headers import Header
from medseg.io.dicom_many import read_headers
from medseg.io.dicom_series import ADVICE, SeriesVolume, plan_volumes, shown
from medseg.io.files import Found, Skip, walk
from medseg.io.nifti import inspect, is_nifti
from medseg.io.nifti import read_volume as read_nifti_volume
from medseg.io.nifti_bytes import holds_nifti
from medseg.scan_ids import Place, assign_ids
from medseg.volume import Volume

DICOM_ENDINGS = ("dcm", "dicom", "dic", "ima")
"""By which files claim to be DICOM."""

PACKED = (".zip", ".tar", ".tgz", ".tar.gz", ".bz2", ".xz", ".7z", ".rar")
OTHER_IMAGES = (".nrrd", ".nhdr", ".mha", ".mhd", ".mgh", ".mgz", ".mnc", ".par", ".rec")
"""Endings of what may hold scans, but not as DICOM or NIfTI files."""


@dataclass(frozen=True)
class Note:
    """A warning: the scan was understood, and something about it is odd."""

    code: str
    message: str


@dataclass(frozen=True)
class Scan:
    """One volume as its headers describe it, with a verdict.

    Attributes:
        case_id: unique in its inventory, a safe file name, made from folder and file names.
        path: the NIfTI file, or the folder that holds the series' first file.
        files: one NIfTI file, or the DICOM files in slice order (the order of the volume's last axis k).
        kind: which door reads it.
        modality: "CT", "MR", "PT", ...; "" when unknown.
        grid: of the voxels as `read` returns them, RAS+; None when none could be made out.
        group: stands for the patient: a hash of PatientID, or "" when unknown.
        series_uid: for linking references; written to DICOM outputs only, as are the next two.
        study_uid: StudyInstanceUID.
        frame_uid: FrameOfReferenceUID.
        description: SeriesDescription, for selection only; never written.
        body_part: BodyPartExamined, one of the standard's own terms; "" when unknown.
        code: why the scan is unfit, "" when it is fit.
        reason: the same in words.
        warnings: what is odd but understood.
        holds_labels: NIfTI: its header says that it is a mask (`medseg.io.nifti.write_mask` says so).
        frames: DICOM: for each slice its file's place in `files` and its frame's place in that file, from 0.
    """

    case_id: str
    path: Path
    files: tuple[Path, ...]
    kind: Literal["nifti", "dicom"]
    modality: str = ""
    grid: Grid | None = None
    group: str = field(default="", repr=False)
    series_uid: str = field(default="", repr=False)
    study_uid: str = field(default="", repr=False)
    frame_uid: str = field(default="", repr=False)
    description: str = field(default="", repr=False)
    body_part: str = ""
    code: str = ""
    reason: str = ""
    warnings: tuple[Note, ...] = ()
    holds_labels: bool = False
    frames: tuple[tuple[int, int], ...] = field(default=(), repr=False)

    @property
    def usable(self) -> bool:
        """Whether `read` may be tried."""
        return self.code == ""


@dataclass(frozen=True)
class ReferenceFile:
    """A DICOM object that holds reference masks: an RTSTRUCT or a SEG, by its header.

    Attributes:
        path: the file.
        kind: `rtstruct` or `dicom-seg`.
        series_uids: the series that it refers to.
        frame_uid: its frame of reference.
        names: of its structures or segments.
        group: as for `Scan`.
    """

    path: Path
    kind: Literal["rtstruct", "dicom-seg"]
    series_uids: frozenset[str] = field(default=frozenset(), repr=False)
    frame_uid: str = field(default="", repr=False)
    names: tuple[str, ...] = ()
    group: str = field(default="", repr=False)


@dataclass(frozen=True)
class Skipped:
    """A file that is no scan and no reference, and why."""

    path: Path
    code: str
    reason: str


@dataclass(frozen=True)
class Inventory:
    """What some folders hold: scans by case id, references and skipped files by path."""

    scans: tuple[Scan, ...]
    references: tuple[ReferenceFile, ...]
    skipped: tuple[Skipped, ...]


def take_inventory(paths: Sequence[Path], *, lasting_ids: bool = False) -> Inventory:
    """List every scan and reference below some files and folders; only headers are read.

    Args:
        paths: files and folders, searched to any depth; links are followed, each folder once.
        lasting_ids: case ids that stay as they are when other scans come; longer ones.

    Raises:
        UsageError: USAGE-PATH when a path does not exist.
    """
    files, skipped = walk(paths)
    niftis = [found for found in files if is_nifti(found.path)]
    headers, others = _read_headers([found for found in files if not is_nifti(found.path)])
    nameless = [holds_nifti(found.path) for found in others]
    niftis += [found for found, is_one in zip(others, nameless, strict=True) if is_one]
    junk = [_junk(found.path) for found, is_one in zip(others, nameless, strict=True) if not is_one]
    volumes, left_over = _plan_series([header for header, _ in headers])
    places = {header.path: found for header, found in headers}
    scans = _named(volumes, niftis, places, lasting_ids)
    references = [_reference(header) for header, _ in headers if header.kind in ("rtstruct", "dicom-seg")]
    objects = [Skipped(h.path, "SKIP-OBJECT", h.reason) for h, _ in headers if h.kind == "object"]
    damaged = [Skipped(h.path, "SKIP-DAMAGED", h.reason) for h in left_over]
    rest = [Skipped(skip.path, skip.code, skip.reason) for skip in (*skipped, *junk)]
    return Inventory(
        tuple(sorted(scans, key=lambda scan: scan.case_id)),
        tuple(sorted(references, key=lambda reference: reference.path)),
        tuple(sorted([*rest, *objects, *damaged], key=lambda skip: skip.path)),
    )


def find_scans(*paths: Path) -> list[Scan]:
    """List the scans below some files and folders by case id, unfit ones included.

    Raises:
        UsageError: USAGE-PATH when a path does not exist.
    """
    return list(take_inventory(paths).scans)


def read(scan: Scan) -> Volume:
    """Read a scan's voxels: `(1, i, j, k)` on `scan.grid`, modality values (HU for CT).

    Raises:
        InputError: with the scan's code when it is unfit, or with what the voxels reveal.
    """
    if not scan.usable or scan.grid is None:
        raise InputError(scan.code or "DICOM-GEOMETRY", scan.case_id, scan.reason, ADVICE.get(scan.code, ""))
    try:
        if scan.kind == "nifti":
            return read_nifti_volume(scan.files[0])
        return read_dicom_volume(scan.files, scan.frames, scan.grid)
    except InputError as error:
        problem = f"{shown(error.where)}: {error.problem}" if scan.kind == "dicom" and error.where else error.problem
        raise type(error)(error.code, scan.case_id, problem, error.advice) from error


# ---- DICOM ---------------------------------------------------------------------------------------------------------


def _read_headers(files: Sequence[Found]) -> tuple[list[tuple[Header, Found]], list[Found]]:
    """Headers of what is DICOM, or may have been; and everything else."""
    read = list(zip(files, read_headers(files), strict=True))
    slices = _name_patterns(header for _, header in read if header and header.kind == "image")
    headers, others = [], []
    for found, header in read:
        if header is not None:
            headers.append((header, found))
        elif _is_named_like_slices(found.path, slices):
            reason = "the file is not DICOM, although it is named like the slices beside it"
            headers.append((Header(found.path, code="DICOM-READ", reason=reason), found))
        else:
            others.append(found)
    return headers, others


def _junk(path: Path) -> Skip:
    name = path.name.casefold()
    if name.endswith(PACKED):
        return Skip(path, "SKIP-FORMAT", "packed: unpack it if it holds scans")
    if name.endswith(OTHER_IMAGES):
        return Skip(path, "SKIP-FORMAT", "an image of a format that is not read: convert it to NIfTI")
    return Skip(path, "SKIP-JUNK", "neither DICOM nor NIfTI")


def _name_patterns(headers: Iterable[Header]) -> dict[Path, set[tuple[str, str]]]:
    """How the images of each folder are named."""
    patterns: dict[Path, set[tuple[str, str]]] = defaultdict(set)
    for header in headers:
        patterns[header.path.parent].add(_name_pattern(header.path))
    return patterns


def _is_named_like_slices(path: Path, slices: dict[Path, set[tuple[str, str]]]) -> bool:
    """Whether a file that is not DICOM was one: overwritten by zeros, or by the web page of a failed download."""
    beside = slices.get(path.parent, set())
    pattern = _name_pattern(path)
    return pattern in beside or (pattern[1] in DICOM_ENDINGS and pattern[1] in {ending for _, ending in beside})


def _plan_series(headers: Sequence[Header]) -> tuple[list[SeriesVolume], list[Header]]:
    """Volumes of all series, and the damaged files that belong to none."""
    series: dict[str, list[Header]] = defaultdict(list)
    for header in headers:
        if header.kind == "image":
            series[header.series_uid or f"{header.path.parent}/{header.modality}/{header.study_uid}"].append(header)
    left_over = []
    for header in headers:
        if header.kind == "damaged":
            homes = _homes(header, series)
            for uid in homes:
                series[uid].append(header)
            left_over += [] if homes else [header]
    return [plan for members in series.values() for plan in plan_volumes(members)], left_over


def _homes(damaged: Header, series: dict[str, list[Header]]) -> list[str]:
    """The series that an unreadable file may be a slice of: those whose files lie beside it and are named like it.

    An empty or cut-off slice at the end of a stack leaves no gap; it must not pass as a shorter volume.
    """
    beside = {
        uid: {_name_pattern(member.path) for member in members if member.path.parent == damaged.path.parent}
        for uid, members in series.items()
        if any(len(member.frames) < 2 for member in members)  # files that are volumes lack no slice
    }
    pattern = _name_pattern(damaged.path)
    alike = [uid for uid, patterns in beside.items() if pattern in patterns]
    if alike:
        return alike
    endings = {uid: {ending for _, ending in patterns} for uid, patterns in beside.items()}
    plausible = pattern[1] not in ("", "#") or "#" in pattern[0]  # LICENSE and README are no slices
    return [uid for uid, known in endings.items() if pattern[1] in known and plausible]


def _name_pattern(path: Path) -> tuple[str, str]:
    """Stem and ending of a name with each run of digits as one `#`."""
    name = path.name.casefold().removesuffix(".gz")  # a slice that somebody packed
    stem, _, ending = name.rpartition(".") if "." in name else (name, "", "")
    return _digits_out(stem), _digits_out(ending)


def _digits_out(text: str) -> str:
    out = ""
    for character in text:
        if not character.isdigit():
            out += character
        elif not out.endswith("#"):
            out += "#"
    return out


def _reference(header: Header) -> ReferenceFile:
    kind: Literal["rtstruct", "dicom-seg"] = "rtstruct" if header.kind == "rtstruct" else "dicom-seg"
    return ReferenceFile(header.path, kind, header.series_uids, header.frame_uid, header.names, header.group)


# ---- scans with their ids ------------------------------------------------------------------------------------------


def _named(
    volumes: Sequence[SeriesVolume], niftis: Sequence[Found], places: dict[Path, Found], lasting_ids: bool
) -> list[Scan]:
    """Make scans of everything found, with ids that are unique in the whole inventory."""
    volumes = sorted(volumes, key=lambda v: (v.headers[0].series_number or 0, v.headers[0].series_uid, _first(v)))
    spots = [Place.series_of([places[p] for p in sorted(h.path for h in v.headers)], v) for v in volumes]
    ids = assign_ids(spots + [Place.nifti(found) for found in niftis], lasting_ids)
    dicom = [_dicom_scan(case_id, volume) for case_id, volume in zip(ids, volumes, strict=False)]
    return dicom + [_nifti_scan(i, found.path) for i, found in zip(ids[len(volumes) :], niftis, strict=True)]


def _first(volume: SeriesVolume) -> Path:
    return min(header.path for header in volume.headers)


def _dicom_scan(case_id: str, volume: SeriesVolume) -> Scan:
    header = volume.headers[0]
    files = tuple(h.path for h in volume.headers)
    number = {path: n for n, path in enumerate(files)}
    return Scan(
        case_id,
        _first(volume).parent,
        files,
        "dicom",
        modality=header.modality,
        grid=volume.grid,
        group=header.group if volume.code != "DICOM-PATIENT" else "",
        series_uid=header.series_uid,
        study_uid=header.study_uid,
        frame_uid=header.frame_uid,
        description=header.description,
        body_part=header.body_part,
        code=volume.code,
        reason=volume.reason,
        warnings=tuple(Note(code, message) for code, message in volume.notes),
        frames=tuple((number[frame.path], frame.number) for frame in volume.frames) if volume.grid else (),
    )


def _nifti_scan(case_id: str, path: Path) -> Scan:
    try:
        header = inspect(path)
    except MedsegError as error:
        return Scan(case_id, path, (path,), "nifti", code=error.code, reason=error.problem)
    notes = tuple(Note(*note) for note in header.notes)
    return Scan(case_id, path, (path,), "nifti", grid=header.grid, warnings=notes, holds_labels=header.holds_labels)
