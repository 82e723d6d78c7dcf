"""Whether a mirrored slice is a slice that could have been: if not, training and prediction mirror nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable

from medseg.config.settings import Plane
from medseg.fingerprint import Fingerprint

SIDES = {"left", "right", "links", "rechts"}
"""Words that name a side by themselves."""

COUNTERPARTS = {"l": "r", "r": "l", "lt": "rt", "rt": "lt"}
"""Abbreviations: they name a side only where another label has the same name with the other one."""


def unlike_sides(plane: Plane, labels: Iterable[str], measured: Fingerprint) -> str:
    """Say why slices must not be mirrored; empty when they may be.

    Args:
        plane: of the slices.
        labels: their names.
        measured: the training cases.
    """
    if plane == "sagittal":
        return "the columns of sagittal slices run from front to back, which are not alike"
    if named := labels_with_a_side(labels):
        return f"{_quoted(named)} {'are labels' if len(named) > 1 else 'is a label'} of one side, by name"
    if measured.mirrored:
        return f"{_quoted(measured.mirrored[0])} lie left and right of each other in most cases and are of one size"
    return ""


def labels_with_a_side(labels: Iterable[str]) -> list[str]:
    """Return the labels whose names tell the side: "kidney left", "LungLeft", or "eye_l" beside "eye_r"."""
    words = {name: _words(name) for name in labels}
    everything = set(words.values())
    return [name for name, own in words.items() if SIDES & set(own) or everything & _counterparts(own)]


def _words(name: str) -> tuple[str, ...]:
    return tuple(word.lower() for word in re.split(r"[\W_\d]+|(?<=[a-z])(?=[A-Z])", name) if word)


def _counterparts(words: tuple[str, ...]) -> set[tuple[str, ...]]:
    places = [place for place, word in enumerate(words) if word in COUNTERPARTS]
    return {(*words[:place], COUNTERPARTS[words[place]], *words[place + 1 :]) for place in places}


def _quoted(names: Iterable[str]) -> str:
    return " and ".join(f"'{name}'" for name in list(names)[:2])
