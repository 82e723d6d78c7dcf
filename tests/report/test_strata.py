"""Strata: which cases they hold, what they count, and which columns are refused."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.errors import UsageError
from medseg.report import Report, evaluate
from medseg.report.strata import NOT_GIVEN, place, read_strata
from medseg.volume import Labels

from .study import make_study


def table(folder, text):
    path = folder / "cases.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_figures_by_site(tmp_path):
    masks, references = make_study(tmp_path)
    rows = "".join(f"CASE_{n},{'south' if n % 2 else 'north'},Annabel\n" for n in range(5))
    sites = table(tmp_path, f"case,site,name\n{rows}missing,south,Benedict\nshifted,north,Evangeline\n")
    report = evaluate(masks, references, tmp_path / "out", labels=Labels({1: "t"}), strata=read_strata(sites, ["site"]))
    north, south, rest = report.strata
    assert [(s.value, s.result.summary("dice").cases, s.refused) for s in report.strata] == [
        ("north", 3, 1),
        ("south", 3, 0),
        (NOT_GIVEN, 1, 1),
    ]
    # Cases n are shifted by n % 3 of 6: Dice 1, 5/6, 4/6. North: 0, 2, 4; south: 1, 3 and the missing one; rest: 5.
    assert north.result.summary("dice").mean == pytest.approx((1 + 4 / 6 + 5 / 6) / 3)
    assert south.result.summary("dice").mean == pytest.approx((5 / 6 + 1 + 0) / 3)
    assert (south.result.missing, south.result.outcomes["missed"]) == (1, 1)
    assert rest.result.summary("dice").mean == pytest.approx(4 / 6)
    assert sum(s.result.summary("dice").cases for s in report.strata) == report.results[0].summary("dice").cases
    assert Report.from_json(report.to_json()) == report
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "by site" in page
    assert not [name for name in ("Annabel", "Benedict", "Evangeline") if name in page + report.to_json()]


def test_numbers_are_cut_into_thirds_and_few_are_kept(tmp_path):
    ages = np.arange(9)
    path = table(tmp_path, "case;age;stage\n" + "".join(f"c{n};{n};{n % 3}\n" for n in ages))
    columns = read_strata(path, ["age", "stage"])
    # Thirds of 0 to 8 end at 8/3 and 16/3: 0 1 2, 3 4 5, 6 7 8.
    assert [len(v) for v in place([f"c{n}" for n in ages], columns["age"]).values()] == [3, 3, 3]
    assert list(place(["c8", "c0"], columns["age"])) == ["up to 2.667", "above 5.333"]
    assert list(place([f"c{n}" for n in ages], columns["stage"])) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("text", "columns", "code"),
    [
        ("case,site\na,x\n", ["age"], "USAGE-OPTION"),
        ("id,site\na,x\n", ["site"], "USAGE-OPTION"),
        ("case,site\n", ["site"], "USAGE-OPTION"),
        ("case,name\n" + "".join(f"c{n},person {n}\n" for n in range(20)), ["name"], "USAGE-OPTION"),
    ],
)
def test_unfit_tables_are_refused(tmp_path, text, columns, code):
    with pytest.raises(UsageError) as caught:
        read_strata(table(tmp_path, text), columns)
    assert caught.value.code == code
    assert "person 1" not in str(caught.value)


def test_a_table_that_is_not_there_or_not_text(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path / "bytes.csv"):
        (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00case")
        with pytest.raises(UsageError, match="USAGE-PATH"):
            read_strata(path, ["site"])
