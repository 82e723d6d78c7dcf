"""The page of reliability is what the tests say, and every mutant still fits the code."""

from __future__ import annotations

import pytest

from tests.benchmarks.mutants import MUTANTS, ROOT
from tests.reliability import PAGE, functions_of, page, proofs


def test_page_is_current() -> None:
    assert PAGE.read_text("utf-8") == page(), "not current; run: python -m tests.reliability"


def test_every_row_names_a_test_that_is_there() -> None:
    for path, name in proofs():
        assert path.is_file()
        assert not name or name in functions_of(path), name


@pytest.mark.parametrize("file", sorted({mutant[0] for mutant in MUTANTS}))
def test_mutants_change_the_code_as_it_is(file: str) -> None:
    content = (ROOT / "medseg" / file).read_text("utf-8")
    for before, after in (mutant[1:3] for mutant in MUTANTS if mutant[0] == file):
        assert content.count(before) == 1
        assert before != after
