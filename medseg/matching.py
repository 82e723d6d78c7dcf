"""Which structures of RTSTRUCT and DICOM SEG objects belong to which label of the configuration."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from medseg.case import Case, Finding
from medseg.config.settings import Config
from medseg.errors import MaskError, MedsegError
from medseg.io.dicom_seg import segment_numbers
from medseg.scan import ReferenceFile

IGNORED, NOT_ANNOTATED = "", " "
"""What stands for a label in `_label_of`; no label has a name of spaces."""

SHOWN = 8
"""Names and values that a message lists before it only counts."""


@dataclass(frozen=True)
class LabelMatch:
    """Which structures each label takes.

    Attributes:
        sources: label to the names of structures, in the file's order; labels without any are not among the keys.
        ignored: structures that the configuration knows and leaves to the background.
        unannotated: structures that mark what nobody annotated.
        unmatched: structures that the configuration does not know; they are left to the background, and said so.
        loose: structures that match only without regard to upper and lower case.
    """

    sources: Mapping[str, tuple[str, ...]]
    ignored: tuple[str, ...] = ()
    unannotated: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()
    loose: tuple[str, ...] = ()


def match_reference(reference: ReferenceFile, config: Config) -> LabelMatch:
    """Match the structures of a DICOM reference with the labels; a SEG also by segment numbers.

    Raises:
        MaskError: MASK-READ when segment numbers are needed and the file cannot be read; MASK-AMBIGUOUS when two
            segments of one name belong to different labels.
    """
    by_number = any(isinstance(source, int) for source in _all_sources(config))
    if reference.kind != "dicom-seg" or not by_number:
        return match_names(reference.names, config)
    numbers: dict[str, set[int]] = defaultdict(set)
    for number, name in segment_numbers(reference.path).items():
        numbers[name].add(number)
    return match_names(list(numbers), config, numbers)


def _all_sources(config: Config) -> Iterable[int | str]:
    return [*(source for _, sources in _tables(config) for source in sources)]


def _tables(config: Config) -> list[tuple[str, tuple[int | str, ...]]]:
    return [(IGNORED, config.ignore), (NOT_ANNOTATED, config.unannotated), *config.labels.items()]


def match_names(names: Sequence[str], config: Config, numbers: Mapping[str, set[int]] | None = None) -> LabelMatch:
    """Match structure names with the labels' names and patterns (`*`, `?`, `[...]`).

    A name that is written out decides before a number, a number before a pattern, a pattern of `ignore` or
    `unannotated` before one of a label, an earlier label before a later one; upper and lower case count unless nothing
    else fits.

    Args:
        names: of structures or segments; repeated names count once.
        config: `labels`, `ignore` and `unannotated`.
        numbers: segment numbers of each name, for DICOM SEG.

    Raises:
        MaskError: MASK-AMBIGUOUS when two segments of one name belong to different labels.
    """
    sources: dict[str, tuple[str, ...]] = {}
    others: dict[str, list[str]] = {IGNORED: [], NOT_ANNOTATED: []}
    unmatched, loose = [], []
    for name in dict.fromkeys(names):
        label, exactly = _label_of(name, config, (numbers or {}).get(name, set()))
        if label is None:
            unmatched.append(name)
        elif label in others:
            others[label].append(name)
        else:
            sources[label] = (*sources.get(label, ()), name)
        if label and not exactly:
            loose.append(name)
    ignored, unannotated = (tuple(others[kind]) for kind in (IGNORED, NOT_ANNOTATED))
    return LabelMatch(sources, ignored, unannotated, tuple(unmatched), tuple(loose))


def _label_of(name: str, config: Config, numbers: set[int]) -> tuple[str | None, bool]:
    """Return the label of a structure, `IGNORED`, `NOT_ANNOTATED`, or None; and whether its letters' case fits."""
    tables = _tables(config)
    for label, sources in tables:
        if name in sources:
            return label, True
    by_number = {label for label, sources in tables if numbers & {s for s in sources if isinstance(s, int)}}
    if len(by_number) > 1:
        problem = f"segments {sorted(numbers)} are all called {name!r} and belong to different labels"
        raise MaskError("MASK-AMBIGUOUS", "", problem, "Give the segments different names.")
    if by_number:
        return by_number.pop(), True
    for exactly in (True, False):
        for label, sources in tables:
            if any(_like(name, str(source), exactly) for source in sources if isinstance(source, str)):
                return label, exactly
    return None, True


def _like(name: str, pattern: str, exactly: bool) -> bool:
    return fnmatchcase(name, pattern) if exactly else fnmatchcase(name.casefold(), pattern.casefold())


def no_label(names: Sequence[str], config: Config) -> tuple[str, str]:
    """Return problem and advice for a reference without any structure that a label takes."""
    wanted = "; ".join(f"{label}: {', '.join(map(str, sources))}" for label, sources in config.labels.items())
    problem = f"none of its structures ({listed(names) or 'none at all'}) fits a label ({wanted})"
    example = f"{next(iter(config.labels))}: [{names[0] if names else '...'}]"
    advice = f"Name it in the configuration, such as `labels: {{{example}}}`."
    return problem, advice


def keep_needed(cases: Sequence[Case], config: Config) -> tuple[list[Case], list[Finding]]:
    """Keep, of each case's DICOM references, those with a structure for a label; headers only.

    Returns:
        The cases whose references fit, and findings: errors for cases without (LABEL-UNKNOWN) or with two for one
        label (MASK-AMBIGUOUS), and a note on which structures each label takes in how many cases.
    """
    kept: list[Case] = []
    findings: list[Finding] = []
    matches: list[LabelMatch] = []
    for case in cases:
        try:
            objects, found = _needed(case, config)
        except MedsegError as error:
            findings.append(Finding.from_error(error, case.id))
            continue
        matches.extend(found)
        kept.append(replace(case, references=objects))
    return kept, [*findings, *_matched(matches, config)]


def _needed(case: Case, config: Config) -> tuple[tuple[Path | ReferenceFile, ...], list[LabelMatch]]:
    needed: list[Path | ReferenceFile] = []
    matches: list[LabelMatch] = []
    owner: dict[str, str] = {}
    for reference in case.references:
        if isinstance(reference, Path):
            needed.append(reference)
            continue
        match = match_reference(reference, config)
        matches.append(match)
        if match.sources or match.unannotated:
            needed.append(reference)
        for label in match.sources:
            if owner.setdefault(label, reference.path.name) != reference.path.name:
                problem = f"label {label!r} is in both {owner[label]} and {reference.path.name}"
                raise MaskError("MASK-AMBIGUOUS", case.id, problem, "Keep one of them, or narrow the label's patterns.")
    if not owner and not any(isinstance(reference, Path) for reference in needed):
        names = [name for reference in case.references if not isinstance(reference, Path) for name in reference.names]
        raise MaskError("LABEL-UNKNOWN", case.id, *no_label(names, config))
    return tuple(needed), matches


def _matched(matches: Sequence[LabelMatch], config: Config) -> list[Finding]:
    if not matches:
        return []
    lines = []
    for label in config.labels:
        counts = Counter(name for match in matches for name in match.sources.get(label, ()))
        lines.append((label, ", ".join(f"{name} ({n})" for name, n in sorted(counts.items())) or "nothing"))
    unmatched = Counter(name for match in matches for name in match.unmatched)
    text = f"structures, and in how many references: {'; '.join(f'{label} takes {names}' for label, names in lines)}"
    if unmatched:
        text += f". No label takes {listed([f'{name} ({n})' for name, n in sorted(unmatched.items())])}"
    return [Finding("note", "MASK-STRUCTURES", "labels", text)]


def listed(items: Sequence[object]) -> str:
    """Return the items with commas between them; beyond `SHOWN` of them only their number."""
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(str(item) for item in items[:SHOWN]) + more
