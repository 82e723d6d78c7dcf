"""Shards of a batch: each case in one, one folder for all, one ledger at the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.batch import predict_folder
from medseg.cli.prediction import batch_settings, merge
from medseg.config.settings import BatchConfig
from medseg.errors import RunError, UsageError
from medseg.ledger import Ledger, read_rows
from medseg.shards import Shard, held, join
from tests.studies import nifti_case, threshold_model

CASES = 9


@settings(max_examples=25)
@given(st.text(min_size=1), st.integers(1, 20))
def test_every_case_is_in_one_shard(case: str, count: int) -> None:
    assert sum(Shard(number, count).has(case) for number in range(1, count + 1)) == 1
    assert Shard().has(case)


def test_shards_are_about_equal() -> None:
    counts = [sum(Shard(number, 8).has(f"case_{n}") for n in range(8000)) for number in range(1, 9)]
    assert sum(counts) == 8000
    assert max(abs(count - 1000) for count in counts) < 150  # five standard deviations of a binomial: 5 * 30


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/", "/2", "a/b", "1/4/2", "-1/4"])
def test_what_is_no_shard(text: str) -> None:
    with pytest.raises(UsageError, match="such as 1/8") as caught:
        batch_settings({"shard": text})
    assert caught.value.code == "USAGE-OPTION"


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    for number in range(CASES):
        nifti_case(tmp_path, f"p{number}", number)
    (tmp_path / "scans" / "empty.nii.gz").touch()
    return tmp_path / "scans"


def run(scans: Path, out: Path, shard: str | None, above: float = 400) -> Ledger:
    return predict_folder([scans], threshold_model(above), out, batch=BatchConfig(workers=0, shard=shard))


def statuses(out: Path) -> list[str]:
    return [row.status for row in read_rows(out / "cases.csv")]


def records(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir() if "-of-" in path.name and "lock" not in path.name)


def masks(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.nii.gz")}


def test_shards_one_after_the_other_do_what_one_run_does(scans: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    run(scans, whole, None)
    rows = 0
    for number in (2, 3, 1):
        assert not json.loads((out / "run.json").read_text())["complete"] if rows else True
        rows += len(run(scans, out, f"{number}/3"))
        assert len(read_rows(out / "cases.csv")) == rows
        assert records(out) == []
    facts = json.loads((out / "run.json").read_text())
    assert facts["complete"]
    assert facts["totals"] == {"done": CASES, "rejected": 1}
    assert sorted(facts["shards"]) == ["1/3", "2/3", "3/3"]
    assert facts["finished"] == json.loads((whole / "run.json").read_text())["finished"]
    assert masks(out) == masks(whole)
    assert (out / "review.csv").read_bytes() == (whole / "review.csv").read_bytes()
    assert [row.case for row in read_rows(out / "cases.csv")] == [row.case for row in read_rows(whole / "cases.csv")]
    (scans / "p4.nii.gz").unlink()
    for shard in ("1/2", "2/2", None):  # other shares, and all at once, find everything done
        run(scans, out, shard)
    assert sorted(statuses(out)) == ["rejected"] + ["reused"] * (CASES - 1)  # the scan that is gone has no row


def test_shards_side_by_side(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with held(out, Shard(1, 2)):
        run(scans, out, "2/2")
        assert records(out) == [".medseg-outputs-2-of-2", "cases-2-of-2.csv", "review-2-of-2.csv", "run-2-of-2.json"]
        assert not (out / "cases.csv").exists()  # the first is at work: it will join
        for other in ("1/2", None):
            with pytest.raises(RunError) as caught:
                run(scans, out, other)
            assert caught.value.code == "RUN-BUSY"
        with pytest.raises(RunError) as caught:
            join(out)
        assert caught.value.code == "RUN-BUSY"
    run(scans, out, "1/2")
    assert records(out) == []
    assert sorted(statuses(out)) == ["done"] * CASES + ["rejected"]


def test_a_killed_shard_is_joined_as_far_as_it_came_and_goes_on(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def stop(_: str, done: int, *__: object) -> None:
        if done:  # what is ahead is told before the first case
            raise SystemExit  # no chance to say goodbye

    with pytest.raises(SystemExit):
        predict_folder([scans], threshold_model(400), out, batch=BatchConfig(workers=0, shard="1/2"), watch=stop)
    assert merge(out) == 3
    assert "shard 1/2 has not come to its end" in capsys.readouterr().err
    assert "shard 2/2 has not come to its end" in merge_words(out, capsys)
    assert statuses(out).count("done") == 1
    assert run(scans, out, "1/2").counts()["reused"] == 1
    run(scans, out, "2/2")
    assert merge(out) == 3  # the empty scan
    assert "come to its end" not in merge_words(out, capsys)


def merge_words(out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    merge(out)
    return capsys.readouterr().err


def test_a_run_of_all_takes_over_what_shards_left(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with held(out, Shard(1, 2)):
        done = len(run(scans, out, "2/2"))
    ledger = run(scans, out, None)
    assert records(out) == []
    assert sum(row.status != "done" for row in ledger) >= done


def test_shards_of_two_models_do_not_mix(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with held(out, Shard(1, 2)):
        run(scans, out, "2/2")
    with pytest.raises(UsageError, match="another model"):
        run(scans, out, "1/2", above=10_000)


def test_nothing_to_join(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UsageError) as caught:
            join(place)
        assert caught.value.code == "USAGE-PATH"
