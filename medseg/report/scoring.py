"""Scoring pairs of masks and references, several at a time; one bad pair stops no other."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from scipy import ndimage

from medseg.errors import MedsegError, UsageError
from medseg.metrics import CaseScores, annotated_part, score_case, score_missing
from medseg.report.floor import location_curve
from medseg.report.placement import other_places
from medseg.report.provenance import content_hash
from medseg.report.results import Refusal
from medseg.surfaces import Floats
from medseg.volume import Labels, Mask, Volume

log = logging.getLogger(__name__)

MOST_WORKERS = 4
"""Cases in memory at a time: a 512 x 512 x 400 pair is about 0.5 GB with what scoring it needs."""


@dataclass(frozen=True)
class Pair:
    """One case to score; nothing is read before its turn comes.

    Attributes:
        case: case id.
        reference: reads the reference.
        mask: reads the prediction; None when it is missing.
        scan: reads the scan, for the picture; None, or giving None, when there is none.
        reason: why the prediction is missing.
        group: the patient; the case itself when empty.
    """

    case: str
    reference: Callable[[], Mask]
    mask: Callable[[], Mask] | None
    scan: Callable[[], Volume | None] | None = None
    reason: str = "no mask"
    group: str = ""


@dataclass(frozen=True)
class Scored:
    """What came of one pair.

    Attributes:
        result: its scores, or why there are none.
        curves: by label, the Dice of centred ellipsoids (`medseg.report.floor`).
        reference_hash: of the reference's content; empty where it could not be read.
        mask_hash: likewise.
        places: Dice at other places (`medseg.report.placement`); None where nothing was compared.
    """

    result: CaseScores | Refusal
    curves: dict[str, Floats | None]
    reference_hash: str = ""
    mask_hash: str = ""
    places: Floats | None = None


def score_pairs(
    pairs: Sequence[Pair],
    labels: Labels,
    tolerance_mm: float,
    watch: Callable[[int, int], None] | None = None,
    unannotated: Collection[int] = (),
) -> list[Scored]:
    """Score each pair, in the order given.

    Args:
        pairs: what to score.
        labels: the numbers that masks may hold.
        tolerance_mm: of surface Dice.
        watch: called with (done, all) after each case.
        unannotated: numbers of references that mark what nobody annotated.
    """
    workers = max(1, min(MOST_WORKERS, os.cpu_count() or 1, len(pairs)))
    found = []
    # Threads: inflating, the k-d tree and most of numpy let each other run, and nothing must be sent between processes.
    with ThreadPoolExecutor(workers) as pool:
        for scored in pool.map(lambda pair: score_pair(pair, labels, tolerance_mm, unannotated), pairs):
            found.append(scored)
            if watch:
                watch(len(found), len(pairs))
    return found


def score_pair(pair: Pair, labels: Labels, tolerance_mm: float, unannotated: Collection[int] = ()) -> Scored:
    """Read and score one pair; whatever goes wrong refuses this pair only."""
    result: CaseScores | Refusal
    curves: dict[str, Floats | None] = {}
    reference_hash, mask_hash, places = "", "", None
    try:
        reference = pair.reference()
        reference_hash = content_hash(reference)
        if pair.mask is None:
            scores = score_missing(reference, labels, pair.case, pair.reason, unannotated)
        else:
            mask = pair.mask()
            mask_hash = content_hash(mask)
            scores = score_case(mask, reference, labels, pair.case, tolerance_mm=tolerance_mm, unannotated=unannotated)
            placed = annotated_part(mask.placed_on(reference.grid), reference, unannotated)
            places = other_places(placed, annotated_part(reference, reference, unannotated))
        curves = {name: location_curve(reference, number, unannotated) for number, name in labels}
        result = replace(scores, group=pair.group, reference_hash=reference_hash)
    except MedsegError as error:
        result = Refusal(pair.case, error.code, error.message)
    except Exception as error:  # one pair must not take the others along
        log.exception("%s: could not be scored", pair.case)
        result = Refusal(pair.case, "RUN-CRASH", f"unexpected {type(error).__name__}; the log has more")
    return Scored(result, curves, reference_hash, mask_hash, places)


def numbers_found(pairs: Iterable[Pair], unannotated: Collection[int] = ()) -> Labels:
    """Return a label, named `label-<n>`, for each number that a readable reference holds, but for `unannotated`.

    The numbers of the references decide: a number that only a mask holds is an unknown label, and refused.

    Raises:
        UsageError: DATA-EMPTY when no reference holds any number.
    """
    numbers: set[int] = set()
    for pair in pairs:
        try:
            labels = pair.reference().labels
        except MedsegError:
            continue  # it is refused with its reason when its turn comes
        numbers |= {n for n, box in enumerate(ndimage.find_objects(labels), start=1) if box is not None}
    numbers -= set(unannotated)
    if not numbers:
        raise UsageError(
            "DATA-EMPTY", "references", "no reference holds a label", "Name the labels, or give other masks."
        )
    return Labels({number: f"label-{number}" for number in numbers})
