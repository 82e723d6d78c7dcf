"""`review.csv`: the predicted cases, the one to look at first on top, with the reasons."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from medseg.facts import LabelFacts, ScanFacts, Seen
from medseg.io.atomic import write_text
from medseg.ledger import cell
from medseg.preparation import Preparation
from medseg.quality import Flag, calibrated, judge_doubt, judge_mask, judge_scan, score_of

REVIEW = "review.csv"


@dataclass(frozen=True)
class Review:
    """What is known of a predicted case without a reference.

    Attributes:
        flags: why to look at it.
        volume_ml: of each label, by name.
        expected_dice: of each label, as the model estimates it; labels without an estimate do not occur.
    """

    flags: tuple[Flag, ...]
    volume_ml: Mapping[str, float]
    expected_dice: Mapping[str, float]

    @property
    def score(self) -> float:
        """By how much it should be looked at before others."""
        return score_of(self.flags, self.expected_dice)

    def to_dict(self) -> dict[str, object]:
        """Plain types for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: object) -> Review:
        """Read what `to_dict` gave.

        Raises:
            ValueError: it is something else, or of a version with other flags.
        """
        return _REVIEW.validate_python(stored)


_REVIEW = TypeAdapter(Review)


def judge(
    scan: ScanFacts | None,
    labels: Mapping[str, LabelFacts],
    expected_dice: Mapping[str, float],
    offsets: Mapping[str, float],
    seen: Seen | None,
    preparation: Preparation,
) -> Review:
    """Put together all that is to be said of a case.

    Args:
        scan: as measured; None when it was not.
        labels: of its mask, by name.
        expected_dice: by label name, as far as the model tells.
        offsets: that calibrate it, by label name. A label without one is not flagged for doubt: the figure ranks cases,
            and says nothing about how well one of them is drawn.
        seen: by the model in training; None when it does not tell.
        preparation: how the model takes a scan.
    """
    expected = calibrated(expected_dice, offsets)
    flags = [
        *judge_doubt({name: dice for name, dice in expected.items() if name in offsets}),
        *judge_mask(labels, seen, preparation.plane),
        *(judge_scan(scan, seen, preparation) if scan and seen else ()),
    ]
    heaviest_first = sorted(flags, key=lambda flag: -flag.weight)
    return Review(tuple(heaviest_first), {name: facts.volume_ml for name, facts in labels.items()}, expected)


class Reviews:
    """The reviews of a batch and their file; current on disk after each.

    Args:
        path: of the file.
        labels: their names, in order.
    """

    def __init__(self, path: Path, labels: Sequence[str]) -> None:
        self.path = path
        self._labels = labels
        self._lines: dict[str, tuple[float, str]] = {}

    def record(self, reviews: Mapping[str, Review]) -> None:
        """Add or replace the reviews of some cases, and write the file.

        Raises:
            RunError: RUN-WRITE.
        """
        # The lines of thousands of cases are made once, not after every case.
        self._lines.update({case: (-review.score, self._line(case, review)) for case, review in reviews.items()})
        worst_first = sorted(self._lines, key=lambda case: (self._lines[case][0], case))
        write_text(self.path, self._titles() + "".join(self._lines[case][1] for case in worst_first))

    def _titles(self) -> str:
        dice, volumes = ([f"{what}_{name}" for name in self._labels] for what in ("expected_dice", "volume_ml"))
        return _csv_line(["case", "score", *dice, *volumes, "flags", "reasons"])

    def _line(self, case: str, review: Review) -> str:
        dice = [_number(review.expected_dice.get(name), 3) for name in self._labels]
        volumes = [_number(review.volume_ml.get(name), 4) for name in self._labels]
        flags = "; ".join(flag.code for flag in review.flags)
        reasons = " ".join(str(flag) for flag in review.flags)
        return _csv_line([case, f"{review.score:.1f}", *dice, *volumes, flags, reasons])


def _csv_line(texts: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([cell(value) for value in texts])
    return text.getvalue()


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}g}"
