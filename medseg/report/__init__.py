"""Dice reports: `evaluate` scores folders of masks, `evaluate_pairs` anything else that can be read as masks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medseg.errors import MedsegError, UsageError
from medseg.io.atomic import write_text
from medseg.metrics import TOLERANCE_MM, CaseScores, LabelScores, annotated_part
from medseg.report.compare import Difference, compare, differences_to_csv, differences_to_json
from medseg.report.floor import Floor, location_floor
from medseg.report.folders import Found, Source, find_pairs, read_labels
from medseg.report.html import case_dice, render, render_comparison
from medseg.report.pictures import Picture, draw
from medseg.report.placement import suspicions
from medseg.report.provenance import predicted_by, provenance
from medseg.report.results import LabelReport, Refusal, Report, Summary, json_schema, summarise
from medseg.report.scoring import Pair, Scored, numbers_found, score_pairs
from medseg.report.strata import Columns, read_strata
from medseg.report.tables import to_csv
from medseg.report.viewer import LIMIT_MB, Embedded, embed
from medseg.volume import Labels, Mask, Volume

__all__ = [
    "CaseScores",
    "Difference",
    "Floor",
    "LabelReport",
    "LabelScores",
    "Pair",
    "Refusal",
    "Report",
    "Summary",
    "compare",
    "evaluate",
    "evaluate_pairs",
    "json_schema",
    "read_strata",
    "write_comparison",
]

log = logging.getLogger(__name__)

PICTURES = 100
"""Cases with pictures by default, worst first: a report of about 5 MB, and no scan is read for the others."""

Watch = Callable[[int, int], None]


@dataclass
class _Shown:
    """What the page shows of the worst cases, gathered case by case.

    Attributes:
        pictures: how many cases get any.
        room_mb: what is left for volumes; the first that does not fit ends them, so that the worst have them.
    """

    pictures: int
    room_mb: float
    drawn: dict[str, tuple[Picture, ...]] = field(default_factory=dict)
    volumes: dict[str, Embedded] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def add(self, case: str, reference: Mask, mask: Mask | None, scan: Volume | None) -> None:
        self.drawn[case] = draw(reference, mask, scan)
        volume = embed(reference, mask, scan) if self.room_mb > 0 else None
        if volume is not None:
            self.room_mb -= len(volume.payload) / 1e6
            if self.room_mb >= 0:
                self.volumes[case] = volume


def evaluate(
    masks: Path,
    references: Path | Mapping[str, Path],
    output: Path,
    *,
    labels: Labels | None = None,
    scans: Mapping[str, Source] | None = None,
    groups: Mapping[str, str] | None = None,
    strata: Columns | None = None,
    tolerance_mm: float = TOLERANCE_MM,
    unannotated: Collection[int] = (),
    pictures: int = PICTURES,
    viewer_mb: float = LIMIT_MB,
    command: str = "",
    watch: Watch | None = None,
) -> Report:
    """Score the NIfTI masks of a folder against references, and write `report.json`, `scores.csv` and `report.html`.

    Masks and references pair by name (`medseg.report.folders.find_pairs`), are compared by geometry first, and are
    refused where they do not lie in one place. A reference without a mask counts as Dice 0.

    Args:
        masks: folder of masks; its `cases.csv` and `labels.json` are read when there.
        references: folder of reference masks, or case id to file.
        output: folder for the three files.
        labels: the numbers that masks may hold, and their names; by default those of `labels.json`, else every number
            found in the references, named `label-<n>`.
        scans: case id to scan, for the pictures; the sources in `cases.csv` by default.
        groups: case id to patient; intervals draw patients. Every case is its own patient by default.
        strata: columns by which the figures are given again (`medseg.report.strata.read_strata`).
        tolerance_mm: of surface Dice.
        unannotated: numbers of references that mark what nobody annotated: there neither mask counts.
        pictures: how many cases get pictures, worst first.
        viewer_mb: size of the volumes that the report's viewer scrolls through, worst cases first; 0 for none.
        command: what the report's provenance says it was called by.
        watch: called with (done, all) after each case.

    Raises:
        UsageError: USAGE-PATH, DATA-EMPTY or LABEL-* when there is nothing that could be scored.
        RunError: RUN-WRITE.
    """
    found = find_pairs(masks, references, scans, groups)
    names = labels or read_labels(masks) or numbers_found(found.pairs, unannotated)
    shown = _Shown(pictures, viewer_mb)
    known = ({"command": command} if command else {}) | predicted_by(masks)
    return _evaluate(found, output, names, tolerance_mm, frozenset(unannotated), strata or {}, shown, watch, known)


def evaluate_pairs(
    pairs: Sequence[Pair],
    output: Path,
    labels: Labels,
    *,
    strata: Columns | None = None,
    tolerance_mm: float = TOLERANCE_MM,
    unannotated: Collection[int] = (),
    pictures: int = PICTURES,
    viewer_mb: float = LIMIT_MB,
    watch: Watch | None = None,
) -> Report:
    """Score pairs from any source (references read from RTSTRUCT, masks in memory), and write the three files.

    Raises:
        UsageError: DATA-EMPTY without pairs.
        RunError: RUN-WRITE.
    """
    if not pairs:
        raise UsageError("DATA-EMPTY", str(output), "no case to score")
    found, shown = Found(tuple(pairs), (), ()), _Shown(pictures, viewer_mb)
    return _evaluate(found, output, labels, tolerance_mm, frozenset(unannotated), strata or {}, shown, watch)


def write_comparison(differences: Sequence[Difference], folder: Path) -> None:
    """Write `compare.html`, `compare.json` and `compare.csv`.

    Args:
        differences: what `compare` returned; at least one.
        folder: for the three files.

    Raises:
        RunError: RUN-WRITE.
    """
    write_text(folder / "compare.html", render_comparison(differences))
    write_text(folder / "compare.json", differences_to_json(differences))
    write_text(folder / "compare.csv", differences_to_csv(differences))


def _evaluate(
    found: Found,
    output: Path,
    labels: Labels,
    tolerance_mm: float,
    unannotated: frozenset[int],
    strata: Columns,
    shown: _Shown,
    watch: Watch | None,
    predicted: Mapping[str, str] | None = None,
) -> Report:
    if both := sorted(unannotated & (set(labels.names) | {0})):
        problem = f"{both[0]} is {'background' if not both[0] else f'the label {labels.names[both[0]]!r}'}"
        raise UsageError("USAGE-OPTION", "unannotated", problem, "Name a number that no label has.")
    for column, values in strata.items():
        known = {case.casefold() for case in values}
        if not any(pair.case.casefold() in known for pair in found.pairs):
            problem = f"no case of the table is among the cases, such as {found.pairs[0].case!r}"
            raise UsageError("USAGE-OPTION", column, problem, "Its column case holds the case ids, as in scores.csv.")
    scored = score_pairs(found.pairs, labels, tolerance_mm, watch, unannotated)
    report = summarise(
        labels,
        tolerance_mm,
        [s.result for s in scored if isinstance(s.result, CaseScores)],
        [s.result for s in scored if isinstance(s.result, Refusal)],
        floors=_floors(scored, labels),
        unscored=found.unscored,
        unreferenced=found.unreferenced,
        provenance=provenance(
            [s.reference_hash for s in scored],
            [s.mask_hash for s in scored],
            {"labels": dict(labels.names), "tolerance_mm": tolerance_mm, "unannotated": sorted(unannotated)},
            predicted or {},
        ),
        strata=strata,
        remarks=[*_copies(scored), *suspicions({s.result.case: s.places for s in scored if s.places is not None})],
    )
    _draw_worst(report, {pair.case: pair for pair in found.pairs}, unannotated, shown)
    write_text(output / "report.json", report.to_json())
    write_text(output / "scores.csv", to_csv(report))
    write_text(output / "report.html", render(report, shown.drawn, shown.notes, shown.volumes))
    return report


def _copies(scored: Sequence[Scored]) -> list[str]:
    """Say that masks are their references; a single equal pair may be chance, of a tiny target."""
    pairs = [s for s in scored if s.places is not None]
    equal = sum(s.mask_hash == s.reference_hash for s in pairs)
    if equal < 2 or 2 * equal < len(pairs):
        return []
    return [f"Copies? {equal} of {len(pairs)} masks equal their references voxel by voxel. No model does that."]


def _floors(scored: Sequence[Scored], labels: Labels) -> dict[str, Floor]:
    floors = {name: location_floor([s.curves.get(name) for s in scored]) for _, name in labels}
    return {name: floor for name, floor in floors.items() if floor}


def _draw_worst(report: Report, pairs: Mapping[str, Pair], unannotated: frozenset[int], shown: _Shown) -> None:
    """Draw the worst cases; a picture that cannot be drawn leaves a note and never stops a report."""
    worst = sorted(report.cases, key=lambda case: (not case.missing, 2.0 if (d := case_dice(case)) is None else d))
    for case in worst[: shown.pictures]:
        pair, scan = pairs[case.case], None
        try:
            scan = pair.scan() if pair.scan else None
        except MedsegError as error:
            shown.notes[case.case] = f"Without the scan: {error.problem}."
        try:
            reference = pair.reference()
            mask = annotated_part(pair.mask().placed_on(reference.grid), reference, unannotated) if pair.mask else None
            shown.add(case.case, annotated_part(reference, reference, unannotated), mask, scan)
        except MedsegError as error:
            shown.notes[case.case] = f"No picture: {error.problem}."
