"""`Case`, `Dataset`, `Finding`, `Split`: the nouns of a data set, plain and frozen."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from medseg.errors import MedsegError
from medseg.io.dicom_series import shown
from medseg.scan import ReferenceFile, Scan

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Case:
    """What a model is trained on, or predicts: the scans of one patient at one time, and their reference.

    Attributes:
        id: safe as a file name, unique in its data set; from paths, never from patient headers.
        group: the patient. Cases of one group never stand on both sides of a split.
        scans: one for each channel, in the order of `data.select`; the mask lies on the first one's grid.
        references: one NIfTI mask, or DICOM objects whose structures complete each other; none when unknown.
    """

    id: str
    group: str
    scans: tuple[Scan, ...]
    references: tuple[Path | ReferenceFile, ...] = ()

    @property
    def voxels(self) -> int:
        """Voxels of all scans, by their headers."""
        return sum(math.prod(scan.grid.shape) for scan in self.scans if scan.grid is not None)


@dataclass(frozen=True)
class Finding:
    """Something a person should know about a data set.

    Attributes:
        severity: `error`: the case is left out, or nothing may start when `where` is not a case; `warning`: used, but
            look at it; `note`: for information.
        code: a key of `medseg.errors.CODES`.
        where: case id, or the name of a file or a setting.
        message: what was found and what to do; never anything from patient headers.
    """

    severity: Severity
    code: str
    where: str
    message: str

    def __post_init__(self) -> None:
        """Make names of files printable: theirs may hold control characters, or bytes that are not UTF-8."""
        for field in ("where", "message"):
            object.__setattr__(self, field, shown(getattr(self, field)))

    def __str__(self) -> str:
        """One line for a terminal or a log."""
        return f"{self.severity}: {self.where}: {self.message} ({self.code})"

    @classmethod
    def from_error(cls, error: MedsegError, where: str) -> Finding:
        """Return the error's finding for a case; a more precise place that the error names stands in front."""
        place = f"{error.where}: " if error.where and error.where != where else ""
        advice = f". {error.advice}" if error.advice else ""
        return cls("error", error.code, where, f"{place}{error.problem}{advice}")


@dataclass(frozen=True)
class Dataset:
    """The usable cases, and what was found on the way to them.

    Attributes:
        cases: in the order of their ids.
        findings: in the order of their places.
    """

    cases: tuple[Case, ...]
    findings: tuple[Finding, ...]

    @property
    def left_out(self) -> frozenset[str]:
        """The places that an error names: ids of cases that exist and cannot be used."""
        return frozenset(finding.where for finding in self.findings if finding.severity == "error")

    def without(self, findings: Iterable[Finding]) -> Dataset:
        """Return the data set with `findings` added and the cases that an error among them names left out."""
        more = tuple(finding for finding in findings if finding not in self.findings)
        bad = {finding.where for finding in more if finding.severity == "error"}
        return replace(
            self, cases=tuple(case for case in self.cases if case.id not in bad), findings=self.findings + more
        )


@dataclass(frozen=True)
class Split:
    """Case ids for training and for validation, both in ascending order."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
