"""Case ids: short, unique, safe as file names on every system, and made from the names of folders and files only."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.io.dicom_series import SeriesVolume
from medseg.io.files import Found
from medseg.io.nifti import nifti_stem

Parts = tuple[str, ...]

LONGEST = 120
"""Characters of an id: with an ending it stays below the 255 bytes of a file name for most scripts."""

RESERVED = {"con", "prn", "aux", "nul", *(f"com{n}" for n in range(1, 10)), *(f"lpt{n}" for n in range(1, 10))}
"""Device names that Windows does not take as file names, whatever the ending."""


@dataclass(frozen=True)
class Place:
    """Where a scan was found.

    Attributes:
        root: the folder that was given (of a file that was given: its folder), without `..`.
        components: name of the root and of the folders below it; for a NIfTI also the stem of the file.
        series: SeriesInstanceUID or what stands for it; None for a NIfTI.
        number: SeriesNumber, None when unknown.
        folders: components of every folder that holds files of the series.
    """

    root: Path
    components: Parts
    series: str | None = None
    number: int | None = None
    folders: frozenset[Parts] = frozenset()

    @classmethod
    def series_of(cls, files: Sequence[Found], volume: SeriesVolume) -> Place:
        """Place of a DICOM series by its files."""
        header = volume.headers[0]
        folders = [_folder(found) for found in files]
        name = header.series_uid or str(min(found.path for found in files))
        return cls(_root(files[0]), folders[0], name, header.series_number, frozenset(folders))

    @classmethod
    def nifti(cls, found: Found) -> Place:
        """Place of a NIfTI file."""
        return cls(_root(found), (*_folder(found), nifti_stem(found.path)))


def _root(found: Found) -> Path:
    root = found.root if found.path != found.root else found.root.parent
    return Path(os.path.abspath(root))  # noqa: PTH100  not resolve(): a link keeps the name that was given


def _folder(found: Found) -> Parts:
    return (_root(found).name or "scan", *found.parts)


def assign_ids(places: Sequence[Place], lasting: bool = False) -> list[str]:
    """Give each place its id, in the order of `places`; ids differ in more than the case of letters.

    Args:
        places: of the scans.
        lasting: an id depends on its own place alone, but for clashes: it stays when other scans come.
    """
    holders = _holders(places)
    names = _ordinals([_lasting_name(place) if lasting else _name(place, holders) for place in places])
    if len({place.root for place in places}) > 1:
        names = _distinct(names, [place.components[0] + "_" for place in places], before=True)
    names = _distinct(names, ["-" + _tag(place, whole=False) for place in places])
    return _distinct(names, ["-" + _tag(place, whole=True) for place in places])


Holders = dict[tuple[Path, Parts], set[str]]


def _holders(places: Sequence[Place]) -> Holders:
    """Which series lie in or below each folder."""
    found: Holders = defaultdict(set)
    for place in places:
        for folder in place.folders if place.series is not None else ():
            for length in range(1, len(folder) + 1):
                found[place.root, folder[:length]].add(place.series or "")
    return found


def _name(place: Place, holders: Holders) -> tuple[str, object]:
    """The id before it is made unique, and where it belongs: ids of one place are told apart by ordinals."""
    parts = place.components
    if place.series is None:
        return safe_name("_".join(parts[1:])), (place.root, parts, None)
    for length in range(1, len(parts) + 1):
        if len(holders[place.root, parts[:length]]) == 1:
            return safe_name("_".join(parts[1:length] or parts[:1])), (place.root, parts)
    ending = "" if place.number is None else f"-s{place.number}"
    return safe_name("_".join(parts[1:] or parts[:1]) + ending), (place.root, parts)


def _lasting_name(place: Place) -> tuple[str, object]:
    """The whole way of folders; for a series its number too, and what tells it from others that may come there."""
    name = "_".join(place.components[1:] or place.components[:1])
    if place.series is not None:
        number = "" if place.number is None else f"-s{place.number}"
        tag = hashlib.sha256(place.series.encode("utf-8", "surrogateescape")).hexdigest()[:8]
        name = f"{name}{number}-{tag}"
    return safe_name(name), (place.root, place.components, place.series)


def _ordinals(names: Sequence[tuple[str, object]]) -> list[str]:
    """Number the ids that are equal within one place: several series of one number, several volumes of one series."""
    total, so_far = Counter(names), Counter[tuple[str, object]]()
    ids = []
    for name in names:
        so_far[name] += 1
        ids.append(f"{name[0]}-{so_far[name]}" if total[name] > 1 else name[0])
    return ids


def _distinct(ids: Sequence[str], marks: Sequence[str], before: bool = False) -> list[str]:
    """Add its mark to each id that is not unique."""
    counts = Counter(name.casefold() for name in ids)
    new = []
    for name, mark in zip(ids, marks, strict=True):
        marked = safe_name(mark + name if before else name + mark)
        new.append(marked if counts[name.casefold()] > 1 and not (before and name + "_" == mark) else name)
    return new


def safe_name(text: str) -> str:
    """Make a name that every file system takes: letters of any script, digits, `._-`; the rest becomes `_`."""
    normal = unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode("utf-8"))
    kept = "".join(c if c.isalnum() or c in "._-" or unicodedata.category(c) == "Mn" else "_" for c in normal)
    while "__" in kept:
        kept = kept.replace("__", "_")
    kept = kept.strip("._- ")
    if len(kept.encode()) > LONGEST:
        kept = _shortened(kept)
    if not kept or kept.casefold().partition(".")[0] in RESERVED:
        return f"scan_{kept}".rstrip("_")
    return kept


def _shortened(name: str) -> str:
    """Cut to `LONGEST` bytes, told apart from others that begin so by a hash of the whole."""
    start = name.encode()[: LONGEST - 7].decode("utf-8", "ignore").rstrip("._- ")
    return f"{start}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _tag(place: Place, whole: bool) -> str:
    """Six digits for the place below its root, or for the whole path."""
    path = "/".join(place.components)
    text = f"{place.root}/{path}/{place.series}" if whole else path
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:6]
