"""Errors: the catalogue, the form of the sentence, and their way between processes."""

from __future__ import annotations

import pickle
import re

import pytest

from medseg import errors
from medseg.codes import CODES
from medseg.errors import ConfigError, InputError, MedsegError, ModelError, RunError, UsageError

CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, MedsegError)]


@pytest.mark.parametrize("kind", CLASSES)
def test_survives_the_way_between_processes(kind: type[MedsegError]) -> None:
    error = kind("RUN-WRITE", "case-07", "the disk is full", "Free space.")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert (back.code, back.where, back.problem, back.advice, str(back)) == (
        "RUN-WRITE", "case-07", "the disk is full", "Free space.", str(error)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("where", "advice", "text"),
    [
        ("case-07", "Export it again.", "case-07: a slice is missing (DICOM-GAP). Export it again."),
        ("", "Export it again.", "a slice is missing (DICOM-GAP). Export it again."),
        ("case-07", "", "case-07: a slice is missing (DICOM-GAP)."),
    ],
)
def test_says_where_what_and_what_to_do(where: str, advice: str, text: str) -> None:
    assert str(InputError("DICOM-GAP", where, "a slice is missing", advice)) == text


def test_message_leaves_out_the_place() -> None:
    assert InputError("DICOM-GAP", "case-07", "a slice is missing").message == "a slice is missing (DICOM-GAP)."


def test_unknown_codes_are_a_fault_of_the_program() -> None:
    with pytest.raises(KeyError, match="DICOM-NOPE"):
        MedsegError("DICOM-NOPE", "", "")


@pytest.mark.parametrize("kind", CLASSES)
def test_exit_code_tells_wrong_usage_from_faults(kind: type[MedsegError]) -> None:
    assert kind("RUN-CRASH", "", "").exit_code == (2 if issubclass(kind, UsageError) else 1)


@pytest.mark.parametrize("code", CODES)
def test_catalogue(code: str) -> None:
    assert re.fullmatch(r"[A-Z]+(-[A-Z]+)+", code)
    assert CODES[code]
    assert not CODES[code].endswith(".")


def test_the_tree_is_the_one_drawn_in_the_docstring() -> None:
    drawn = re.findall(r"^\s+[|`\s-]*(\w+Error)\b", errors.__doc__ or "", re.MULTILINE)
    assert {kind.__name__ for kind in CLASSES} == set(drawn)
    assert issubclass(ConfigError, UsageError)
    assert issubclass(ModelError, UsageError)
    assert not issubclass(InputError, UsageError)
    assert not issubclass(RunError, (UsageError, InputError))
