"""Dividing the cases: into training and validation, or into folds. All cases of a patient stay together."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg.case import Case, Split
from medseg.config.settings import DataConfig
from medseg.errors import UsageError
from medseg.io.nifti import nifti_stem
from medseg.matching import listed
from medseg.naming import parts_below, words

log = logging.getLogger(__name__)

Volumes = Mapping[str, Sequence[float]]
"""Case id to the volume of each label in ml, in the order of the configuration."""


def split_cases(cases: Sequence[Case], data: DataConfig, seed: int, left_out: Collection[str] = ()) -> Split:
    """Divide cases into training and validation; all cases of a patient go to one side.

    A split file is followed to the letter. Without one, patients are ordered by a hash of the seed and their name and
    the first ones are held out: the same whatever the order of files, and largely the same when patients are added.

    Args:
        cases: usable ones.
        data: `split`, or the share `validation` of the patients (at least one, when above 0).
        seed: of the random division.
        left_out: ids that a split file may name although they are not among the cases (`Dataset.left_out`).

    Raises:
        UsageError: DATA-EMPTY without cases; DATA-SPLIT when the file names what is not there, puts a case or patient
            on both sides, or leaves nothing to train on.
    """
    if not cases:
        raise UsageError("DATA-EMPTY", "data", "no case is left", _NO_CASE)
    split = (
        _read_split(data.split, cases, data, left_out) if data.split else _random_split(cases, data.validation, seed)
    )
    if not split.train:
        raise UsageError("DATA-SPLIT", str(data.split or "data"), "leaves no case to train on", "Hold out fewer.")
    return split


_NO_CASE = "Add cases under data.scans, or mend those that were left out."


def _random_split(cases: Sequence[Case], share: float, seed: int) -> Split:
    groups = sorted(
        {case.group for case in cases}, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest()
    )
    held_out = min(max(1, round(share * len(groups))), len(groups) - 1) if share else 0
    if share and not held_out:
        problem = "all cases belong to one patient, so that none can be held out"
        raise UsageError("DATA-SPLIT", "data.validation", problem, "Set data.validation to 0, or add patients.")
    return _split(cases, set(groups[:held_out]))


def _split(cases: Sequence[Case], held_out: Collection[str]) -> Split:
    train = sorted(case.id for case in cases if case.group not in held_out)
    return Split(tuple(train), tuple(sorted(case.id for case in cases if case.group in held_out)))


def _read_split(path: Path, cases: Sequence[Case], data: DataConfig, left_out: Collection[str]) -> Split:
    content = _read_json(path)
    if set(content) != {"train", "validation"} or not _are_names(list(content.values())):
        advice = "Set folds to how many it holds." if set(content) == {"folds"} else _SPLIT_FORM
        raise UsageError("DATA-SPLIT", str(path), "is not two lists of names", advice)
    train, validation = _named_sides(
        [content["train"], content["validation"]], cases, data.scans, left_out, path, "on both sides"
    )
    return Split(train, validation)


_SPLIT_FORM = 'Write {"train": ["case_01", ...], "validation": ["case_02", ...]}.'


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not JSON in UTF-8"
        raise UsageError("DATA-SPLIT", str(path), f"cannot be read: {reason}", _SPLIT_FORM) from error
    return content if isinstance(content, dict) else {}


def _are_names(lists: object) -> bool:
    return isinstance(lists, list) and all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists
    )


def _named_sides(
    sides: Sequence[Sequence[str]],
    cases: Sequence[Case],
    roots: Sequence[Path],
    left_out: Collection[str],
    path: Path,
    more: str,
) -> list[tuple[str, ...]]:
    """Return the ids of the cases that each list of a file names.

    Raises:
        UsageError: DATA-SPLIT for a name that is not there, and for a case or patient in two lists.
    """
    named = [_named_cases(names, cases, roots, left_out, path) for names in sides]
    ids = Counter(case.id for side in named for case in side)
    patients = Counter(group for side in named for group in {case.group for case in side})
    both = sorted(case for case, times in ids.items() if times > 1)
    if both or any(times > 1 for times in patients.values()):
        shared = both or sorted({case.id for side in named for case in side if patients[case.group] > 1})
        problem = f"{'' if both else 'one patient, as '}{listed(shared)} {'stand' if both else 'stands'} {more}"
        raise UsageError("DATA-SPLIT", str(path), problem, "Keep all cases of a patient, and copies, together.")
    if unnamed := sorted({case.id for case in cases} - set(ids)):
        log.warning("%s names %d cases nowhere; they are not used: %s", path.name, len(unnamed), listed(unnamed))
    return [tuple(sorted(case.id for case in side)) for side in named]


def _named_cases(
    names: Sequence[str], cases: Sequence[Case], roots: Sequence[Path], left_out: Collection[str], path: Path
) -> list[Case]:
    """Return the cases that a split's list names by case id, patient, or a file or folder of the scan below `roots`."""
    holders: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        places = {part for scan in case.scans for part in (*parts_below(scan.path, roots), scan.path.name)}
        for name in {case.id, case.group} | places:
            holders[name].append(case)
    named = {case.id: case for name in names for case in holders.get(name, ())}
    absent = sorted({name for name in names if name not in holders})
    gone = {name for name in absent if any(_same_name(name, other) for other in left_out)}
    if gone:
        log.warning("%s names %d cases that cannot be used: %s", path.name, len(gone), listed(sorted(gone)))
    unknown = [name for name in absent if name not in gone]
    if unknown:
        problem = (
            f"names {listed(unknown)}, which {'is' if len(unknown) == 1 else 'are'} no case, patient or folder here"
        )
        raise UsageError("DATA-SPLIT", str(path), problem, "Correct the names; `medseg check` shows the case ids.")
    return list(named.values())


def _same_name(name: str, place: str) -> bool:
    """Whether a finding's place (case id or file) is about a name of the split file."""
    stem = nifti_stem(Path(place))
    return words(name) in (words(place), words(stem)) or words(stem)[: len(words(name))] == words(name)


# -------------------------------------------------------------------------------------------------------------- folds


def fold_cases(
    cases: Sequence[Case], volumes: Volumes, folds: int, data: DataConfig, seed: int, left_out: Collection[str] = ()
) -> tuple[Split, ...]:
    """Divide cases into folds, and return the split of each: its own cases to validate, all others to train on.

    Patients are sorted by which labels they have, then by how much, then by a hash of the seed and their name, and
    dealt out like cards: each run of `folds` patients goes to as many folds, in the order of that hash. So every fold
    gets its share of patients with each label and of large and small ones, and the sizes of folds differ by one patient
    at most. The result does not depend on the order of files.

    Args:
        cases: usable ones.
        volumes: of their labels.
        folds: how many, from 2 up.
        data: `split`, a file `{"folds": [["case_01", ...], ...]}` that is followed to the letter.
        seed: of the order among equals.
        left_out: ids that a split file may name although they are not among the cases (`Dataset.left_out`).

    Raises:
        UsageError: DATA-EMPTY without cases; DATA-SPLIT when there are too few patients, or the file is wrong.
    """
    if not cases:
        raise UsageError("DATA-EMPTY", "data", "no case is left", _NO_CASE)
    if data.split:
        members = _read_folds(data.split, cases, folds, data, left_out)
    else:
        members = _dealt(cases, volumes, folds, seed)
    everything = {case for fold in members for case in fold}
    return tuple(Split(tuple(sorted(everything - set(fold))), fold) for fold in members)


def folds_text(splits: Sequence[Split]) -> str:
    """Return folds as JSON for people, one line each, which `data.split` reads."""
    lines = ",\n".join(f"  {json.dumps(split.validation, ensure_ascii=False)}" for split in splits)
    return f'{{"folds": [\n{lines}\n]}}\n'


def _dealt(cases: Sequence[Case], volumes: Volumes, folds: int, seed: int) -> list[tuple[str, ...]]:
    patients: dict[str, list[Sequence[float]]] = defaultdict(list)
    for case in sorted(cases, key=lambda case: case.id):  # sums of floats depend on the order
        patients[case.group].append(volumes[case.id])
    sizes = {name: [sum(ml) / len(own) for ml in zip(*own, strict=True)] for name, own in patients.items()}
    _check_enough(list(sizes.values()), folds)

    def chance(name: str) -> bytes:
        return hashlib.sha256(f"{seed}:{name}".encode()).digest()

    ordered = sorted(sizes, key=lambda name: ([ml == 0 for ml in sizes[name]], -sum(sizes[name]), chance(name)))
    hands = [ordered[start : start + folds] for start in range(0, len(ordered), folds)]
    fold_of = {name: fold for hand in hands for fold, name in enumerate(sorted(hand, key=chance))}
    return [tuple(sorted(case.id for case in cases if fold_of[case.group] == fold)) for fold in range(folds)]


def _check_enough(sizes: Sequence[Sequence[float]], folds: int) -> None:
    """Make sure that each fold has something to find, and each label a case to learn from when one is held out.

    Raises:
        UsageError: DATA-SPLIT.
    """
    holding = sum(any(patient) for patient in sizes)
    if holding < folds:
        problem = f"{folds} folds need as many patients with a label, there are {holding}"
        raise UsageError("DATA-SPLIT", "folds", problem, "Choose fewer folds, or add patients.")
    rare = [number for number, column in enumerate(zip(*sizes, strict=True), start=1) if sum(map(bool, column)) == 1]
    if rare:
        problem = f"label {rare[0]} is in one patient only: the fold that holds it out could not learn it"
        raise UsageError("DATA-SPLIT", "folds", problem, "Add patients with it, or leave the label out.")


def _read_folds(
    path: Path, cases: Sequence[Case], folds: int, data: DataConfig, left_out: Collection[str]
) -> list[tuple[str, ...]]:
    content = _read_json(path)
    if set(content) != {"folds"} or not _are_names(content["folds"]):
        raise UsageError("DATA-SPLIT", str(path), "is not a list of folds", _FOLDS_FORM)
    if len(content["folds"]) != folds:
        problem = f"holds {len(content['folds'])} folds, the configuration wants {folds}"
        raise UsageError("DATA-SPLIT", str(path), problem, "Set folds to how many it holds.")
    members = _named_sides(content["folds"], cases, data.scans, left_out, path, "in several folds")
    if empty := [number for number, fold in enumerate(members, start=1) if not fold]:
        raise UsageError("DATA-SPLIT", str(path), f"fold {empty[0]} has no case that can be used", "Name some in it.")
    return members


_FOLDS_FORM = 'Write {"folds": [["case_01", ...], ["case_02", ...]]}.'
