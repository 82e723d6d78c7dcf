"""Which reference belongs to which case: what DICOM objects refer to, then names. One to one, or a finding.

Whether a reference really lies on its scan is decided later, by geometry (`medseg.reference`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medseg.case import Case, Finding
from medseg.matching import listed
from medseg.naming import MASK_WORDS, Named, Parts, bare, pair_names, parts_below, words
from medseg.scan import ReferenceFile, Scan


@dataclass(frozen=True)
class References:
    """The references of one tree.

    Attributes:
        masks: NIfTI files that are masks, unfit ones too.
        objects: RTSTRUCT and DICOM SEG.
        roots: the files and folders that were given.
    """

    masks: tuple[Scan, ...]
    objects: tuple[ReferenceFile, ...]
    roots: tuple[Path, ...]


@dataclass
class _Matched:
    """What one tree of references gives: references of each case (by index), findings, orphans."""

    of_case: dict[int, list[Scan | ReferenceFile]]
    findings: list[Finding]
    masks: list[Scan]
    objects: list[ReferenceFile]


def pair_all(
    cases: Sequence[Case],
    passed_over: Sequence[Scan],
    given: References,
    beside: References,
    roots: Sequence[Path],
    labels: Sequence[str] = (),
) -> tuple[list[Case], list[Finding]]:
    """Give each case its references.

    Args:
        cases: without references.
        passed_over: scans that are no case (unfit or not selected), to explain a reference that stays alone.
        given: references that the configuration names; they go before `beside`.
        beside: those that lie among the scans.
        roots: of the scans.
        labels: names of the labels, to know masks that come one file for each label.

    Returns:
        The cases that have references, all fit; and findings.
    """
    first, given = _match_whole(cases, given, roots, labels)
    second, beside = _match_whole(cases, beside, roots, labels)
    settled = {cases[number].id for number in first.of_case}
    findings = first.findings + [finding for finding in second.findings if finding.where not in settled]
    findings.extend(_spare(cases, first, second))
    in_doubt = {finding.where for finding in findings if finding.severity == "error"}
    paired: list[Case] = []
    for number, case in enumerate(cases):
        found = first.of_case.get(number) or second.of_case.get(number)
        if found and case.id not in in_doubt:
            complete, more = _complete(case, found)
            paired.extend(complete)
            findings.extend(more)
            in_doubt |= set() if complete else {case.id}
    findings.extend(_alone(cases, paired, in_doubt))
    for matched, tree in ((first, given), (second, beside)):
        findings.extend(_orphans(matched, tree, passed_over, roots))
    return paired, findings


def _spare(cases: Sequence[Case], first: _Matched, second: _Matched) -> list[Finding]:
    both = [cases[number].id for number in sorted(first.of_case) if number in second.of_case]
    if not both:
        return []
    text = f"{len(both)} scans have another reference beside them, which is not used: {', '.join(both[:3])}"
    return [Finding("note", "MASK-SPARE", "references", text + (", ..." if len(both) > 3 else ""))]


def _named(case: Case, roots: Sequence[Path]) -> Named:
    # Several scans of one case have a name only in what they share.
    root = _root_of(case.scans[0].path, roots)
    return Named(case.id, tuple(parts_below(scan.path, roots) for scan in case.scans), root)


def _root_of(path: Path, roots: Sequence[Path]) -> str:
    holding = [root for root in roots if path.absolute().is_relative_to(root.absolute())]
    return max(holding, key=lambda root: len(root.parts)).name if holding else ""


def _match(cases: Sequence[Case], tree: References, roots: Sequence[Path]) -> _Matched:
    dicom = pair_dicom(cases, tree.objects)
    of_case: dict[int, list[Scan | ReferenceFile]] = {number: list(found) for number, found in dicom.of_case.items()}
    findings = list(dicom.findings)
    masks = [Named(mask.case_id, (parts_below(mask.path, tree.roots),)) for mask in tree.masks]
    pairs, knots = pair_names([_named(case, roots) for case in cases], masks)
    for number, mask in pairs.items():
        of_case.setdefault(number, []).append(tree.masks[mask])
    used = set(pairs.values())
    for some_cases, some_masks in knots:
        used |= some_masks
        findings.extend(_knot([cases[n] for n in sorted(some_cases)], [tree.masks[n] for n in sorted(some_masks)]))
    orphans = [mask for number, mask in enumerate(tree.masks) if number not in used]
    return _Matched(of_case, findings, orphans, list(dicom.orphans))


def _match_whole(
    cases: Sequence[Case], tree: References, roots: Sequence[Path], labels: Sequence[str]
) -> tuple[_Matched, References]:
    """Match what holds all labels; masks of one label each are set aside, with a finding that says what to do."""
    single = _one_for_each_label(cases, tree, roots, labels)
    aside = {mask.path for masks in single.values() for mask in masks}
    whole = replace(tree, masks=tuple(mask for mask in tree.masks if mask.path not in aside))
    matched = _match(cases, whole, roots)
    for number, masks in single.items():
        names = listed([mask.path.name for mask in masks])
        if number in matched.of_case:
            text = f"masks of one label each are not used beside the one of all labels: {names}"
            matched.findings.append(Finding("note", "MASK-SPARE", cases[number].id, text))
        else:
            numbers = ", ".join(f"{label} {n}" for n, label in enumerate(labels, start=1))
            text = f"has one mask for each label: {names}. Merge them into one file with a number for each: {numbers}"
            matched.findings.append(Finding("error", "MASK-AMBIGUOUS", cases[number].id, text))
    return matched, whole


def _one_for_each_label(
    cases: Sequence[Case], tree: References, roots: Sequence[Path], labels: Sequence[str]
) -> dict[int, list[Scan]]:
    """Return, by index of the case, masks named by it and a label (`case_01_liver`, `liver/case_01`), two or more."""
    named = [_named(case, roots) for case in cases]
    own = {words(parts[-1]) for case in named for parts in case.parts}
    families: dict[Parts, dict[str, Scan]] = defaultdict(dict)
    for mask in tree.masks:
        parts = parts_below(mask.path, tree.roots)
        label, rest = _without_label(parts, labels)
        if rest and (len(rest) < len(parts) or words(parts[-1]) not in own):
            families[rest].setdefault(label, mask)
    several = [(rest, list(masks.values())) for rest, masks in families.items() if len(masks) > 1]
    pairs, _ = pair_names(named, [Named("", (rest,)) for rest, _ in several])
    return {number: several[family][1] for number, family in pairs.items()}


def _without_label(parts: Parts, labels: Sequence[str]) -> tuple[str, Parts]:
    """Return the label in a mask's name, or in that of its folder, and the rest; nothing when none is there."""
    stem = words(parts[-1])
    for label in sorted(labels, key=len, reverse=True):  # "liver tumour" before "tumour"
        name = words(label)
        for place, part in enumerate(parts):
            if words(part) == name:
                return label, (*parts[:place], *parts[place + 1 :])
        for rest in (stem[: -len(name)] if stem[-len(name) :] == name else (), stem[len(name) :]):
            if rest and stem in ((*rest, *name), (*name, *rest)):
                return label, (*parts[:-1], "_".join(bare(rest, MASK_WORDS) or rest))
    return "", ()


def _knot(cases: Sequence[Case], masks: Sequence[Scan]) -> list[Finding]:
    scans = ", ".join(case.id for case in cases)
    names = ", ".join(mask.path.name for mask in masks)
    text = f"by name the masks {names} fit the scans {scans}, not one to one. Name each like its scan"
    return [Finding("error", "MASK-AMBIGUOUS", case.id, text) for case in cases]


_RENEW = "Export it again, or leave the case out"


def _complete(case: Case, found: Sequence[Scan | ReferenceFile]) -> tuple[list[Case], list[Finding]]:
    """Return the case with its references, unless one of them is unfit or they exclude each other."""
    masks = [reference for reference in found if isinstance(reference, Scan)]
    if masks and len(found) > 1:
        names = " and ".join(reference.path.name for reference in found)
        text = f"has several references: {names}. Keep one, or write under `references` where the right ones are"
        return [], [Finding("error", "MASK-AMBIGUOUS", case.id, text)]
    findings = [
        Finding("warning", note.code, case.id, f"reference {mask.path.name}: {note.message}")
        for mask in masks
        for note in mask.warnings
    ]
    unfit = [mask for mask in masks if not mask.usable]
    if unfit:
        return [], [
            Finding("error", unfit[0].code, case.id, f"reference {unfit[0].path.name}: {unfit[0].reason}. {_RENEW}")
        ]
    return [replace(case, references=tuple(r.path if isinstance(r, Scan) else r for r in found))], findings


def _alone(cases: Sequence[Case], paired: Sequence[Case], in_doubt: set[str]) -> list[Finding]:
    """Return findings for the cases without a reference: a note where another series of the study has one."""
    done = {case.id for case in paired} | in_doubt
    studies = {scan.study_uid for case in paired for scan in case.scans if scan.study_uid}
    findings = []
    for case in cases:
        if case.id in done:
            continue
        if case.scans[0].study_uid in studies:
            text = "not selected: its study has a reference, and that belongs to another series"
            findings.append(Finding("note", "NOT-SELECTED", case.id, text))
        else:
            text = "has no reference mask. Add one named like the scan, or leave the scan out"
            findings.append(Finding("error", "MASK-MISSING", case.id, text))
    return findings


def _orphans(matched: _Matched, tree: References, passed_over: Sequence[Scan], roots: Sequence[Path]) -> list[Finding]:
    """Return findings for the references without a case: a note where its scan is there, but unfit or not selected."""
    others = [Case(scan.case_id, scan.group, (scan,)) for scan in passed_over]
    explained = _match(others, References(tuple(matched.masks), tuple(matched.objects), tree.roots), roots)
    scan_of: Mapping[Path, str] = {
        reference.path: others[number].id for number, found in explained.of_case.items() for reference in found
    }
    findings = []
    alone: list[Scan | ReferenceFile] = [*matched.masks, *matched.objects]
    for reference in alone:
        where = "/".join((*parts_below(reference.path, tree.roots)[:-1], reference.path.name))
        if reference.path in scan_of:
            text = f"not used: its scan {scan_of[reference.path]} is unfit or not selected"
            findings.append(Finding("note", "MASK-MISSING", where, text))
        else:
            text = "a reference without a scan: no scan bears its name or is what it refers to. Add it, or remove this"
            findings.append(Finding("error", "MASK-MISSING", where, text))
    return findings


# ------------------------------------------------------------------------------------------------- by DICOM references


@dataclass(frozen=True)
class DicomPairs:
    """What the DICOM references say.

    Attributes:
        of_case: index of a case to its references, in the order of their paths.
        findings: references that belong to several cases, or were placed with less than their own word.
        orphans: references that belong to no case.
    """

    of_case: Mapping[int, tuple[ReferenceFile, ...]]
    findings: tuple[Finding, ...]
    orphans: tuple[ReferenceFile, ...]


def pair_dicom(cases: Sequence[Case], references: Sequence[ReferenceFile]) -> DicomPairs:
    """Pair RTSTRUCT and DICOM SEG objects with cases.

    By the SeriesInstanceUID that a reference names; else by frame of reference and patient; else a reference and a
    scan that are alone in their folder. An object of another patient is never taken on less than the series' UID.
    """
    of_case: dict[int, tuple[ReferenceFile, ...]] = {}
    findings: list[Finding] = []
    orphans: list[ReferenceFile] = []
    for reference in sorted(references, key=lambda r: str(r.path)):
        fitting, remarks = _cases_of(reference, cases, references)
        if len(fitting) > 1:
            findings.extend(_several(reference, [cases[number] for number in fitting]))
        elif fitting:
            of_case[fitting[0]] = (*of_case.get(fitting[0], ()), reference)
            findings.extend(Finding("warning", code, cases[fitting[0]].id, text) for code, text in remarks)
        else:
            orphans.append(reference)
    return DicomPairs(of_case, tuple(findings), tuple(orphans))


def _cases_of(
    reference: ReferenceFile, cases: Sequence[Case], references: Sequence[ReferenceFile]
) -> tuple[list[int], list[tuple[str, str]]]:
    """Return the indices of the cases that a reference fits, and remarks as (code, text)."""
    where = f"{reference.path.name} ({reference.kind})"
    by_series = _fitting(cases, lambda scan: bool(scan.series_uid) and scan.series_uid in reference.series_uids)
    if by_series:
        if all(_other_patient(scan, reference) for scan in cases[by_series[0]].scans):
            text = f"{where} names this series, but its patient id differs. Make sure that it is the same patient"
            return by_series, [("MASK-PATIENT", text)]
        return by_series, []
    by_frame = _fitting(
        cases,
        lambda scan: bool(scan.frame_uid) and scan.frame_uid == reference.frame_uid and scan.group == reference.group,
    )
    if by_frame:
        text = f"{where} names another series of the same patient and frame of reference; it is placed by geometry"
        return by_frame, [("MASK-PLACED", text)]
    alone = _alone_with(reference, cases, references)
    text = f"{where} names no series that is here; it is taken because it is alone with this scan in a folder"
    return alone, [("MASK-PLACED", text)] if alone else []


def _fitting(cases: Sequence[Case], fits: Callable[[Scan], bool]) -> list[int]:
    return [number for number, case in enumerate(cases) if any(fits(scan) for scan in case.scans)]


def _other_patient(scan: Scan, reference: ReferenceFile) -> bool:
    return bool(scan.group and reference.group) and scan.group != reference.group


def _alone_with(reference: ReferenceFile, cases: Sequence[Case], references: Sequence[ReferenceFile]) -> list[int]:
    """Return the only case beside a reference: in its folder, or in the one above (`P1/CT/` beside `P1/RTSTRUCT/`)."""
    for folder in (reference.path.parent, reference.path.parent.parent):
        inside = _fitting(cases, lambda scan, folder=folder: scan.path.is_relative_to(folder))  # type: ignore[misc]
        others = [other for other in references if other.path.is_relative_to(folder)]
        if inside:
            fits = len(inside) == len(others) == 1 and not _other_patient(cases[inside[0]].scans[0], reference)
            return inside if fits else []
    return []


def _several(reference: ReferenceFile, cases: Sequence[Case]) -> list[Finding]:
    ids = ", ".join(case.id for case in cases)
    text = f"{reference.path.name} ({reference.kind}) fits several scans: {ids}. Choose one by `select`"
    return [Finding("error", "MASK-AMBIGUOUS", case.id, text) for case in cases]
