"""Comparing reports: who is compared, what is counted, what the sentence says, and that the test holds its level."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import escape

from medseg.errors import UsageError
from medseg.metrics import CaseScores, LabelScores
from medseg.report import write_comparison
from medseg.report.compare import compare, differences_to_csv, differences_to_json
from medseg.report.results import summarise
from medseg.volume import Labels

TUMOUR = Labels({1: "tumour"})


def scored(dice, *, reference_ml=1.0, hd95=None, outcome=None, label="tumour"):
    outcome = outcome or ("truly empty" if dice is None else "hit" if dice else "missed")
    return LabelScores(label, outcome, dice=dice, hd95_mm=hd95, reference_ml=reference_ml)


def report(dice, groups=None, **how):
    """A report from case id to Dice, or to the scores themselves."""
    cases = [
        CaseScores(case, (d if isinstance(d, LabelScores) else scored(d, **how),), group=(groups or {}).get(case, ""))
        for case, d in dice.items()
    ]
    return summarise(TUMOUR, 2.0, cases)


def numbered(values):
    return {f"c{n}": float(v) for n, v in enumerate(values)}


def test_arithmetic_of_a_small_comparison():
    # Differences .1, .2, .3, -.1: mean .125. Of the 16 sums of +-.1 +-.2 +-.3 +-.1, those of at least .5 in size:
    # all one way (.7, 2 ways) and all but one of the two .1 (.5, 2 x 2 ways): 6 of 16.
    first, second = report(numbered([0.5, 0.5, 0.5, 0.5])), report(numbered([0.6, 0.7, 0.8, 0.4]))
    (found,) = compare({"old": first, "new": second})
    assert found.test.difference == pytest.approx(0.125)
    assert found.test.p == pytest.approx(6 / 16)
    assert (found.test.exact, found.test.smallest_p) == (True, 2 / 16)
    assert (found.wins, found.losses) == (3, 1)
    assert [c.case for c in found.changes] == ["c3", "c0", "c1", "c2"]
    assert [c.case for c in found.regressions] == ["c3"]
    assert not found.shown
    assert "0.500 with old and 0.625 with new, a difference of +0.125" in found.sentence()
    assert "better in 3, worse in 1 and equal in 0" in found.sentence()
    assert "not evidence that there is none" in found.sentence()
    assert any("cannot give p < 0.05" in note for note in found.notes())


def test_cases_of_one_report_only_are_counted_and_said():
    first, second = report(numbered([0.5] * 8)), report(numbered([0.6] * 6) | {"x": 0.1})
    (found,) = compare({"A": first, "B": second})
    assert (found.test.cases, found.only_first, found.only_second) == (6, ("c6", "c7"), ("x",))
    assert found.second_mean == pytest.approx(0.6)  # x is not in the mean
    assert "2 cases only in A, not compared: c6, c7." in found.notes()
    assert "1 case only in B, not compared: x." in found.notes()


def test_another_reference_is_not_the_same_case():
    first = report(numbered([0.5, 0.5, 0.5]))
    second = report(numbered([0.6, 0.6]) | {"c2": scored(0.9, reference_ml=1.2)})
    (found,) = compare({"A": first, "B": second})
    assert (found.unlike, found.test.cases) == (("c2",), 2)
    with pytest.raises(UsageError, match="same reference"):
        compare({"A": first, "B": report(numbered([0.6] * 3), reference_ml=2.0)})


def test_a_false_alarm_does_not_hide_behind_a_blank():
    empty = scored(None, reference_ml=0.0)
    alarm = scored(0.0, reference_ml=0.0, outcome="false alarm")
    (found,) = compare({"A": report({"a": 0.5, "e": empty}), "B": report({"a": 0.5, "e": alarm})})
    assert (found.blank, found.alarms, found.test.cases) == (("e",), (0, 1), 1)
    assert any("0 in A, 1 in B" in note for note in found.notes())


def test_lower_is_better_for_distances():
    first = report({f"c{n}": scored(0.5, hd95=10.0 + n) for n in range(8)})
    second = report({f"c{n}": scored(0.5, hd95=(5.0 + n) if n else 30.0) for n in range(8)})
    (found,) = compare({"A": first, "B": second}, "hd95_mm")
    assert (found.wins, found.losses) == (7, 1)
    assert found.regressions[0].case == "c0"
    better = report({f"c{n}": scored(0.5, hd95=5.0 + n) for n in range(8)})
    (found,) = compare({"A": first, "B": better}, "hd95_mm")
    # Eight equal signs: 2 of 256.
    assert found.test.p == pytest.approx(2 / 256)
    assert found.sentence().endswith("B is better in HD95.")
    assert compare({"A": better, "B": first}, "hd95_mm")[0].sentence().endswith("A is better in HD95.")


def test_holm_goes_over_pairs_and_labels():
    rng = np.random.default_rng(3)
    reports = {name: report(numbered(rng.random(9))) for name in "ABC"}
    found = compare(reports)
    assert [(d.first, d.second) for d in found] == [("A", "B"), ("A", "C"), ("B", "C")]
    raw = sorted(d.test.p for d in found)
    steps = np.maximum.accumulate([min(1, p * k) for p, k in zip(raw, (3, 2, 1), strict=True)])
    assert sorted(d.corrected_p for d in found) == pytest.approx(steps.tolist())
    assert all(d.comparisons == 3 and "Holm's correction for 3" in d.sentence() for d in found)


def test_patients_are_exchanged_not_scans():
    groups = {f"c{n}": "one" for n in range(20)}
    first, second = report(numbered([0.5] * 20), groups), report(numbered([0.9] * 20), groups)
    (found,) = compare({"A": first, "B": second})
    assert (found.test.groups, found.test.p) == (1, 1.0)
    assert "of 1 patient the" in found.sentence()


@settings(max_examples=25)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=9))
def test_exact_p_is_the_share_of_all_sign_changes_and_turns_with_the_order(pairs):
    a, b = zip(*pairs, strict=True)
    first, second = report(numbered(a)), report(numbered(b))
    (forth,), (back,) = compare({"A": first, "B": second}), compare({"B": second, "A": first})
    d = np.subtract(b, a)
    least = abs(d.sum()) - 1e-12 * np.abs(d).sum()
    by_hand = np.mean([abs(np.dot(s, d)) >= least for s in product((-1, 1), repeat=len(d))])
    assert forth.test.p == pytest.approx(by_hand)
    assert back.test.p == forth.test.p
    assert back.test.difference == -forth.test.difference
    assert (back.wins, back.losses) == (forth.losses, forth.wins)
    if forth.test.interval:
        assert -1 <= forth.test.interval.low <= forth.test.difference + 1e-12
        assert forth.test.difference - 1e-12 <= forth.test.interval.high <= 1


def test_the_null_is_not_called_a_difference_too_often():
    rng, called = np.random.default_rng(5), 0
    for _ in range(200):
        # Heap at 0 and skew, independently for both: exchangeable within a case.
        both = rng.beta(8, 2, (2, 10)) * (rng.random((2, 10)) > 0.15)
        called += compare({"A": report(numbered(both[0])), "B": report(numbered(both[1]))})[0].shown
    # 5 % of 200 is 10; 3 standard deviations above is 19 (sqrt(200 x .05 x .95) = 3.1).
    assert called <= 19


@pytest.mark.parametrize(
    ("reports", "metric", "code"),
    [
        ({"A": report({"a": 0.5})}, "dice", "USAGE-OPTION"),
        ({"A": report({"a": 0.5}), "B": report({"a": 0.5})}, "f1", "USAGE-OPTION"),
        ({"A": report({"a": 0.5}), "B": report({"b": 0.5})}, "dice", "DATA-EMPTY"),
        ({"A": report({"a": 0.5}), "B": replace(report({"a": 0.5}), tolerance_mm=1.0)}, "surface_dice", "USAGE-OPTION"),
        ({"A": report({"a": 0.5}), "B": replace(report({"a": 0.5}), labels={1: "liver"})}, "dice", "DATA-EMPTY"),
    ],
)
def test_what_cannot_be_compared_is_refused(reports, metric, code):
    with pytest.raises(UsageError) as caught:
        compare(reports, metric)
    assert caught.value.code == code


def test_the_page_holds_every_sentence_and_nothing_breaks_out(tmp_path):
    evil = '"><script>alert(1)</script>'
    first = report(numbered([0.5, 0.4, 0.9, 0.8, 0.7]) | {evil: 0.5})
    second = report(numbered([0.6, 0.6, 0.8, 0.9, 0.7]) | {evil: 0.1})
    found = compare({evil: first, "B": second, "C": first})
    write_comparison(found, tmp_path)
    page = (tmp_path / "compare.html").read_text("utf-8")
    assert "<script" not in page
    for difference in found:
        assert str(escape(difference.sentence())) in page
    assert page.count("Worst regressions") == 2  # none from C back to the same scores
    assert {p.name for p in tmp_path.iterdir()} == {"compare.html", "compare.json", "compare.csv"}


def test_json_and_csv():
    found = compare({"=A": report({"=x": 0.5, "b": 0.6}), "B": report({"=x": 0.7, "b": 0.6})})
    assert json.loads(differences_to_json(found))[0]["test"]["better"] == 1
    rows = list(csv.DictReader(differences_to_csv(found).splitlines()))
    assert [r["case"] for r in rows] == ["b", "'=x"]
    assert (rows[0]["first"], rows[1]["second_value"]) == ("'=A", "0.7")
