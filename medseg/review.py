"""`review.csv`: the predicted cases, the one to look at first on top, with the reasons."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from medseg.io.atomic import write_text
from medseg.ledger import cell
from medseg.quality import Flag, score_of

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


def write_reviews(folder: Path, reviews: Mapping[str, Review], labels: Sequence[str]) -> None:
    """Write `review.csv`, the highest score first.

    Args:
        folder: the output folder.
        reviews: by case id.
        labels: their names, in order.

    Raises:
        RunError: RUN-WRITE.
    """
    titles = ["case", "score", *(f"expected_dice_{name}" for name in labels), *(f"volume_ml_{name}" for name in labels)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([cell(title) for title in (*titles, "flags", "reasons")])
    for case, review in sorted(reviews.items(), key=lambda item: (-item[1].score, item[0])):
        numbers = [_number(review.expected_dice.get(name), 3) for name in labels]
        numbers += [_number(review.volume_ml.get(name), 4) for name in labels]
        flags = "; ".join(flag.code for flag in review.flags)
        reasons = " ".join(str(flag) for flag in review.flags)
        writer.writerow([cell(case), f"{review.score:.1f}", *numbers, cell(flags), cell(reasons)])
    write_text(folder / REVIEW, text.getvalue())


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}g}"
