"""`run.json`: how a batch was run, how it went, and what a later run must know of each case."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg.case_work import Done, Failed
from medseg.io.atomic import write_text
from medseg.review import Review

log = logging.getLogger(__name__)

RUN = "run.json"


class RunFile:
    """The memory of a batch and its file; current on disk after each `save`.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known = _remembered(path)
        self._lines = {case: _line(case, known) for case, known in self._known.items()}

    def known(self, case: str) -> Done | Failed | None:
        """Return what is known of a case."""
        return self._known.get(case)

    def review(self, case: str) -> Review | None:
        """Return what a person should look at in a finished case; None when it is not, or of another version."""
        known = self._known.get(case)
        try:
            return Review.from_dict(known.review) if isinstance(known, Done) else None
        except ValueError:
            return None

    def remember(self, case: str, known: Done | Failed | None) -> None:
        """Know this of a case from now on; None: nothing."""
        self._known.pop(case, None)
        self._lines.pop(case, None)
        if known is not None:
            self._known[case] = known
            self._lines[case] = _line(case, known)

    def take(self, other: RunFile, belongs: Callable[[str], bool]) -> None:
        """Know of the cases that belong to it what the other one knows, and nothing else of them."""
        for case in [case for case in self._known if belongs(case)]:
            self.remember(case, None)
        for case, known in other._known.items():
            if belongs(case):
                self.remember(case, known)

    def fill(self, other: RunFile, belongs: Callable[[str], bool]) -> None:
        """Know what the other one knows of cases that belong to it and are unknown here."""
        for case, known in other._known.items():
            if belongs(case) and case not in self._known:
                self.remember(case, known)

    def save(self, facts: Mapping[str, Any]) -> None:
        """Write the file.

        Args:
            facts: of the run: versions, model, totals, seconds.

        Raises:
            RunError: RUN-WRITE.
        """
        # The lines of thousands of cases are made once, not after every case.
        head = json.dumps(facts, indent=1).removesuffix("\n}")
        finished = [case for case in sorted(self._known) if isinstance(self._known[case], Done)]
        failed = [case for case in sorted(self._known) if isinstance(self._known[case], Failed)]
        sections = [self._section("finished", finished), self._section("failed", failed)]
        write_text(self.path, ",\n".join([head, *sections]) + "\n}\n")

    def _section(self, name: str, cases: Sequence[str]) -> str:
        lines = ",\n".join(self._lines[case] for case in cases)
        return f' "{name}": {{\n{lines}\n }}'


def _line(case: str, known: Done | Failed) -> str:
    return f"  {json.dumps(case)}: {json.dumps(vars(known))}"


def read_facts(path: Path) -> dict[str, Any]:
    """Return what a run file says beside its cases; nothing when it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {key: value for key, value in content.items() if key not in ("finished", "failed")}
    except (OSError, ValueError, AttributeError):
        return {}


def _remembered(path: Path) -> dict[str, Done | Failed]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        finished = {case: Done(**known) for case, known in content["finished"].items()}
        return finished | {case: Failed(**known) for case, known in content.get("failed", {}).items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        log.warning("%s cannot be read: every case is done anew", path)
        return {}
