"""Durations as people write them: `90s`, `10m`, `1h30m`."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator

_FORM = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def seconds(text: str) -> int:
    """Return how many seconds a duration has.

    Raises:
        ValueError: when it is none.
    """
    found = _FORM.fullmatch(text)
    hours, minutes, rest = (int(number or 0) for number in found.groups()) if found else (0, 0, 0)
    total = 3600 * hours + 60 * minutes + rest
    if not total:
        raise ValueError(f"{text!r}, wanted a duration such as 90s, 10m or 1h30m")
    return total


def written(total: float) -> str:
    """Return a duration as it would be written, rounded up to whole seconds: `seconds` reads it back."""
    whole = max(1, -int(-total // 1))
    parts = ((whole // 3600, "h"), (whole // 60 % 60, "m"), (whole % 60, "s"))
    return "".join(f"{number}{unit}" for number, unit in parts if number)


def _checked(value: object) -> object:
    if value is not None:
        seconds(str(value))
    return value


Duration = Annotated[str, BeforeValidator(_checked)]
