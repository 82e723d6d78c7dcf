"""From folders of masks and references to pairs, by name and ledger; whether they fit is for geometry to say."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from medseg.errors import MaskError, UsageError
from medseg.io.atomic import PARTIAL_PREFIX
from medseg.io.nifti import is_nifti, nifti_stem, read_mask
from medseg.ledger import NOT_SELECTED, Row, read_rows
from medseg.naming import MASK_WORDS, PREDICTION_WORDS, STRUCTURE_WORDS, Key, Parts, owner_key, plain_key, words
from medseg.report.results import Refusal
from medseg.report.scoring import Pair
from medseg.scan import Scan, find_scans, read
from medseg.volume import Labels, Mask, Volume

log = logging.getLogger(__name__)

LABELS_FILE = "labels.json"
"""In a folder of masks: number to name, such as `{"1": "tumour"}`."""

DECORATIONS = MASK_WORDS | STRUCTURE_WORDS | PREDICTION_WORDS

Source = Path | Scan


@dataclass(frozen=True)
class Found:
    """What the folders hold.

    Attributes:
        pairs: one for each reference.
        unreferenced: ids of masks that have no reference.
        unscored: rejected and failed cases of the ledger that have no reference.
    """

    pairs: tuple[Pair, ...]
    unreferenced: tuple[str, ...]
    unscored: tuple[Refusal, ...]


def find_pairs(
    masks: Path,
    references: Path | Mapping[str, Path],
    scans: Mapping[str, Source] | None = None,
    groups: Mapping[str, str] | None = None,
) -> Found:
    """Pair the NIfTI masks of a folder with references, one to one.

    Names are compared letter case aside and as words (`siteA/case_01` is `siteA_case_01`), then without words that only
    say that a file is a mask (`case_01_seg`), then without the kind of scan (`case_01_0000`).

    Args:
        masks: a folder of NIfTI masks, with the `cases.csv` of the batch when there is one.
        references: a folder of NIfTI masks, or case id to file.
        scans: case id to NIfTI file, DICOM folder or scan, for the pictures; the ledger's sources by default.
        groups: case id to patient, for the statistics; letter case of the ids aside.

    Raises:
        UsageError: USAGE-PATH for a folder that does not exist, DATA-EMPTY without references, or when nothing
            pairs and no ledger says why, USAGE-OPTION for groups that name none of the cases.
    """
    rows = _ledger(masks)
    mine = _masks(masks, rows)
    theirs = _references(references)
    if not theirs:
        raise UsageError(
            "DATA-EMPTY", str(references), "no NIfTI reference mask found", "Give the folder that holds them."
        )
    ids = [*mine, *(row.case for row in rows if row.case not in mine)]
    matched, unsure = _match([(words(i), *_loose((i,))) for i in ids], [(_joined(p), *_loose(p)) for _, p, _ in theirs])
    if not matched and not unsure and not rows:
        names = f"masks such as {ids[0]!r}, references such as {theirs[0][0]!r}" if ids else "no NIfTI mask found"
        raise UsageError("DATA-EMPTY", str(masks), names, "Masks and references pair by equal names.")
    of_case = {row.case: row for row in rows}
    patients = _numbered(groups or {})
    pairs = []
    for number, (name, _, path) in enumerate(theirs):
        case = ids[matched[number]] if number in matched else name
        source = (scans or {}).get(case) or _source(of_case.get(case))
        reason = _why_missing(of_case.get(case))
        mask = partial(read_mask, mine[case]) if number in matched and case in mine else None
        if number in unsure:
            mask = partial(_refuse, name, [ids[n] for n in unsure[number]])
        scan = partial(_read_scan, source) if source else None
        pairs.append(Pair(case, partial(read_mask, path), mask, scan, reason, patients.get(case.casefold(), "")))
    if patients and not any(pair.group for pair in pairs):
        raise UsageError(
            "USAGE-OPTION",
            "groups",
            f"no case of the table is among the cases, such as {pairs[0].case!r}",
            "Its column case holds the case ids, as in scores.csv.",
        )
    used = {ids[n] for n in matched.values()} | {ids[n] for some in unsure.values() for n in some}
    unscored = [Refusal(r.case, r.code, r.message) for r in rows if _lost(r) and r.case not in used]
    return Found(tuple(pairs), tuple(sorted(set(mine) - used)), tuple(unscored))


def read_labels(masks: Path) -> Labels | None:
    """Read `labels.json` beside the masks; None when there is none.

    Raises:
        UsageError: USAGE-PATH when it is not an object of number to name.
    """
    path = masks / LABELS_FILE
    if not path.is_file():
        return None
    try:
        return Labels({int(number): str(name) for number, name in json.loads(path.read_text("utf-8")).items()})
    except (ValueError, AttributeError) as error:
        wanted = 'wanted an object such as {"1": "tumour"}'
        raise UsageError("USAGE-PATH", str(path), f"not readable as label names; {wanted}") from error


def _ledger(masks: Path) -> list[Row]:
    if not masks.is_dir():
        raise UsageError("USAGE-PATH", str(masks), "not a folder", "Give the folder that holds the masks.")
    path = masks / "cases.csv"
    if not path.is_file():
        return []
    try:
        return [row for row in read_rows(path) if row.code != NOT_SELECTED]
    except (ValueError, UnicodeDecodeError) as error:
        raise UsageError("USAGE-PATH", str(path), f"not a ledger of medseg: {error}", "Remove or repair it.") from error


def _masks(folder: Path, rows: Sequence[Row]) -> dict[str, Path]:
    """Case id to mask file; the ledger's word goes before the file's name."""
    found = {_text("_".join(parts)): path for parts, path in _niftis(folder)}
    by_ledger = {row.case: folder / row.output for row in rows if is_nifti(Path(row.output or "-"))}
    listed = {path.absolute() for path in by_ledger.values()}
    rest = {case: path for case, path in found.items() if path.absolute() not in listed and not _is_lost(case, rows)}
    return {**rest, **{case: path for case, path in by_ledger.items() if path.is_file()}}


def _is_lost(case: str, rows: Sequence[Row]) -> bool:
    """A mask from an earlier run does not stand for a case that was rejected or failed in this one."""
    return any(row.case == case and _lost(row) for row in rows)


def _references(references: Path | Mapping[str, Path]) -> list[tuple[str, Parts, Path]]:
    if isinstance(references, Mapping):
        return [(case, (case,), path) for case, path in sorted(references.items())]
    if not references.is_dir():
        raise UsageError("USAGE-PATH", str(references), "not a folder", "Give the folder that holds the references.")
    return [(_text("_".join(parts)), parts, path) for parts, path in _niftis(references)]


def _niftis(folder: Path) -> list[tuple[Parts, Path]]:
    """Names below the folder, and path, of each NIfTI file; hidden files and folders are passed over."""
    found = []
    for where, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(names):
            path = Path(where, name)
            if is_nifti(path) and not name.startswith((".", PARTIAL_PREFIX)) and path.is_file():
                found.append(((*path.relative_to(folder).parts[:-1], nifti_stem(path)), path))
    return found


def _text(name: str) -> str:
    return name.encode("utf-8", "replace").decode()  # bytes of a name that are not UTF-8 become question marks


def _joined(parts: Parts) -> Key:
    return tuple(word for part in parts for word in words(part))


def _loose(parts: Parts) -> tuple[Key, Key]:
    return plain_key(parts, DECORATIONS, DECORATIONS), owner_key(parts)


def _match(
    mine: Sequence[tuple[Key, ...]], theirs: Sequence[tuple[Key, ...]]
) -> tuple[dict[int, int], dict[int, list[int]]]:
    """Pair by the strictest key that fits: reference to mask, and reference to masks where it is not one to one."""
    matched: dict[int, int] = {}
    unsure: dict[int, list[int]] = {}
    for level in range(3):
        taken = set(matched.values()) | {n for some in unsure.values() for n in some}
        free = [r for r in range(len(theirs)) if r not in matched and r not in unsure]
        fits = {
            r: [m for m in range(len(mine)) if m not in taken and mine[m][level] == theirs[r][level] != ()]
            for r in free
        }
        for reference, found in fits.items():
            rivals = [other for other in free if fits[other] == found]
            if len(found) == len(rivals) == 1:
                matched[reference] = found[0]
            elif found:
                unsure[reference] = found
    return matched, unsure


def _refuse(reference: str, candidates: Sequence[str]) -> Mask:
    problem = f"more than one reference or mask goes by this name: {', '.join(candidates)}"
    raise MaskError("MASK-AMBIGUOUS", reference, problem, "Rename them, so that one mask fits one reference.")


def _numbered(groups: Mapping[str, str]) -> dict[str, str]:
    """Case id (folded) to the patient's number: what people call their patients stays out of reports."""
    names = sorted({name for name in groups.values() if name})
    return {case.casefold(): f"patient-{names.index(name) + 1}" for case, name in groups.items() if name}


def _lost(row: Row) -> bool:
    return row.status in ("rejected", "failed")


def _why_missing(row: Row | None) -> str:
    if row is None:
        return "no mask of this name"
    return f"{row.status}: {row.message}" if _lost(row) else "the mask that cases.csv names is not there"


def _source(row: Row | None) -> Path | None:
    return Path(row.source) if row and row.source and Path(row.source).exists() else None


def _read_scan(source: Source) -> Volume | None:
    """Return the scan behind a path; None when the path holds none, or several."""
    if isinstance(source, Scan):
        return read(source)
    found = [scan for scan in find_scans(source) if scan.usable]
    if len(found) != 1:
        log.info("%s: %d usable scans, wanted one for the picture", source, len(found))
        return None
    return read(found[0])
