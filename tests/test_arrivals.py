"""Watching a folder, by a clock of the test's own: what keeps still is predicted, what grows is predicted again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from medseg import arrivals as module
from medseg.arrivals import Rhythm, predict_arrivals
from medseg.batch import predict_folder
from medseg.config.settings import BatchConfig
from medseg.errors import RunError, UsageError
from medseg.io.lock import exclusive
from medseg.ledger import Ledger, read_rows
from medseg.models.model_folder import Model
from medseg.prediction import Predictor
from tests.studies import dicom_patient, nifti_case, threshold_model

HERE = BatchConfig(workers=0)
Event = Callable[[], object]


class StopError(Exception):
    """The test's script is at its end."""


class Script:
    """A clock that moves only while somebody sleeps, and events that happen then."""

    def __init__(self, *events: Event) -> None:
        self.now = 0.0
        self.events = list(events)
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)
        if not self.events:
            raise StopError
        self.events.pop(0)()

    def rhythm(self, interval_s: float = 10, quiet_s: float = 25) -> Rhythm:
        return Rhythm(interval_s, quiet_s, lambda: self.now, self.sleep)


def nothing() -> None:
    pass


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    (tmp_path / "scans").mkdir()
    return tmp_path / "scans"


@pytest.fixture
def model() -> Model:
    return threshold_model(400)


def watched(inbox: Path, model: Model, *events: Event, quiet_s: float = 25) -> list[dict[str, str]]:
    """Watch while the events happen, 10 s apart; return what the ledger said after each look."""
    out, said = inbox.parent / "out", []

    def then(event: Event) -> Event:
        def happen() -> None:
            said.append(statuses(out))
            event()

        return happen

    script = Script(*map(then, events))
    with pytest.raises(StopError):
        predict_arrivals(inbox, Predictor(model), out, batch=HERE, rhythm=script.rhythm(quiet_s=quiet_s))
    return [*said, statuses(out)]


def statuses(out: Path) -> dict[str, str]:
    rows = read_rows(out / "cases.csv") if (out / "cases.csv").exists() else []
    return {row.case: f"{row.status} {row.code}".strip() for row in rows}


def count_calls(model: Model) -> list[int]:
    calls: list[int] = []
    model.networks[0].register_forward_hook(lambda *args: calls.append(1))
    return calls


def test_a_scan_is_predicted_once_it_keeps_still(inbox: Path, model: Model) -> None:
    """Seen after 10 s, changed after 20 s: it has kept still for 20 s at the look after 40 s, for 30 s at the next."""
    path = inbox / "p0.nii.gz"
    said = watched(inbox, model, lambda: nifti_case(inbox.parent, "p0", 0), lambda: os.utime(path), *[nothing] * 4)
    assert said == [{}] * 5 + [{"p0": "done"}] * 2


def test_nothing_is_done_twice(inbox: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    nifti_case(inbox.parent, "p0", 0)
    calls, inventories = count_calls(model), []
    original = module.take_inventory
    monkeypatch.setattr(module, "take_inventory", lambda *a, **k: inventories.append(1) or original(*a, **k))
    watched(inbox, model, *[nothing] * 3, lambda: nifti_case(inbox.parent, "p1", 1), *[nothing] * 6)
    assert len(calls) == 2  # one block for each scan
    assert len(inventories) == 2  # headers are read when something has changed and kept still
    said = watched(inbox, model, *[nothing] * 4)  # a restart
    assert said[-1] == {"p0": "reused", "p1": "reused"}
    assert len(calls) == 2


def test_a_series_that_grows_is_predicted_again(inbox: Path, model: Model) -> None:
    series = dicom_patient(inbox, 1, reference=False)
    last = inbox.parent / "last.dcm"
    shutil.move(series / "0005.dcm", last)
    calls = count_calls(model)
    said = watched(inbox, model, *[nothing] * 4, lambda: shutil.move(last, series / "0005.dcm"), *[nothing] * 5)
    (case,) = said[4]
    assert [list(found.values()) for found in said[4:]] == [["done"]] * 7
    assert set(said[-1]) == {case}  # the same name: it does not depend on what else is there
    assert len(calls) == 2


def test_names_last_when_others_come(inbox: Path, model: Model) -> None:
    """One series alone in the folder could do with the folder's name; a second would take that away."""
    dicom_patient(inbox, 1, reference=False)
    said = watched(inbox, model, *[nothing] * 4, lambda: dicom_patient(inbox, 2, reference=False), *[nothing] * 5)
    first, second = sorted(said[-1])
    assert set(said[4]) == {first}
    assert first.startswith("case_1_series-s")
    assert second.startswith("case_2_series-s")
    assert said[-1] == {first: "done", second: "done"}


def test_another_study_does_not_wait(inbox: Path, model: Model) -> None:
    """A study that is still being written holds up itself alone, all in one folder."""
    for seed in (1, 2):
        for file in dicom_patient(inbox.parent / "archive", seed, reference=False).iterdir():
            shutil.move(file, inbox / f"{seed}-{file.name}")
    growing = inbox / "2-0001.dcm"
    said = watched(inbox, model, *[lambda: os.utime(growing)] * 5)
    assert list(said[-1].values()) == ["done"]


def test_one_bad_scan_stops_nothing(inbox: Path, model: Model) -> None:
    (inbox / "bad.nii.gz").write_bytes(b"")
    nifti_case(inbox.parent, "good", 0)
    repaired = lambda: nifti_case(inbox.parent, "bad", 1)  # noqa: E731
    said = watched(inbox, model, *[nothing] * 4, repaired, *[nothing] * 5)
    assert said[4] == {"bad": "rejected NIFTI-READ", "good": "done"}
    assert said[-1] == {"bad": "done", "good": "done"}


def test_masks_of_scans_that_are_taken_away_stay(inbox: Path, model: Model) -> None:
    path = nifti_case(inbox.parent, "p0", 0)
    said = watched(inbox, model, *[nothing] * 4, path.unlink, lambda: nifti_case(inbox.parent, "p1", 1), *[nothing] * 5)
    assert said[-1] == {"p0": "done", "p1": "done"}
    out = inbox.parent / "out"
    assert {"p0.nii.gz", "p1.nii.gz"} <= {path.name for path in out.iterdir()}
    assert [line.split(",")[0] for line in (out / "review.csv").read_text().splitlines()[1:]] == ["p0", "p1"]


def test_a_share_that_goes_away_is_waited_for(inbox: Path, model: Model, caplog: pytest.LogCaptureFixture) -> None:
    nifti_case(inbox.parent, "p0", 0)
    away = inbox.with_name("away")
    said = watched(inbox, model, lambda: inbox.rename(away), nothing, lambda: away.rename(inbox), *[nothing] * 5)
    assert said[-1] == {"p0": "done"}
    assert "Trying again in 10 s" in caplog.text


def test_a_folder_that_is_busy_for_a_while(inbox: Path, model: Model) -> None:
    nifti_case(inbox.parent, "p0", 0)
    out = inbox.parent / "out"
    other = exclusive(out)
    events = [other.__enter__, nothing, nothing, nothing, lambda: other.__exit__(None, None, None), nothing]
    assert watched(inbox, model, *events)[-1] == {"p0": "done"}


def test_a_second_watch_on_one_folder_is_refused(inbox: Path, model: Model) -> None:
    with exclusive(inbox.parent / "out", "watch"), pytest.raises(RunError) as raised:
        predict_arrivals(inbox, Predictor(model), inbox.parent / "out", once=True)
    assert raised.value.code == "RUN-BUSY"


def test_what_is_wrong_from_the_beginning_ends_it(inbox: Path, model: Model) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        predict_arrivals(inbox / "none", Predictor(model), inbox.parent / "out")
    with pytest.raises(UsageError, match="is the one that is watched"):
        predict_arrivals(inbox, Predictor(model), inbox)


def test_scans_below_the_output_folder_are_seen(inbox: Path, model: Model) -> None:
    nifti_case(inbox.parent, "p0", 0)
    out = inbox.parent
    rhythm = Script(nothing).rhythm()
    ledger = predict_arrivals(inbox, Predictor(model), out, batch=HERE, rhythm=rhythm, once=True)
    assert ledger is not None
    assert (out / "p0.nii.gz").exists()


def once(inbox: Path, model: Model, *events: Event) -> Ledger | None:
    script = Script(*events, nothing)
    out = inbox / "masks"  # masks among the scans are none
    return predict_arrivals(inbox, Predictor(model), out, batch=HERE, rhythm=script.rhythm(), once=True)


def test_once_takes_what_keeps_still_and_ends(inbox: Path, model: Model) -> None:
    for number in range(2):
        nifti_case(inbox.parent, f"p{number}", number)
    ledger = once(inbox, model, lambda: os.utime(inbox / "p1.nii.gz"))
    assert ledger is not None
    assert [(row.case, row.status) for row in ledger] == [("p0", "done")]
    ledger = once(inbox, model)
    assert ledger is not None
    assert [(row.case, row.status) for row in ledger] == [("p0", "reused"), ("p1", "done")]
    assert ledger.exit_code == 0


def test_what_is_not_compared_is_said_once(inbox: Path, model: Model) -> None:
    told: list[str] = []
    script = Script(*[nothing] * 4, lambda: nifti_case(inbox.parent, "p0", 0), *[nothing] * 4)
    nifti_case(inbox.parent, "p1", 1)
    place = inbox.parent / "out"
    with pytest.raises(StopError):
        predict_arrivals(
            inbox, Predictor(model), place, batch=HERE, rhythm=script.rhythm(), watch=lambda *n: told.append(n[-1])
        )
    assert [line.partition(",")[0] for line in told if ": done" in line] == ["p1: done", "p0: done"]
    assert sum("does not tell how far" in line for line in told) == 1


def test_once_with_nothing_there(inbox: Path, model: Model) -> None:
    assert once(inbox, model) is None


def names(ledger: Ledger) -> Sequence[str]:
    return [row.case for row in ledger]


def test_masks_are_those_of_predict(inbox: Path, model: Model) -> None:
    dicom_patient(inbox, 1, reference=False)
    by_watch = once(inbox, model)
    by_predict = predict_folder([inbox / "case_1"], model, inbox.parent / "other", batch=HERE)
    assert by_watch is not None
    (one,), (other,) = names(by_watch), names(by_predict)
    written = (inbox / "masks" / f"{one}.nii.gz").read_bytes()
    assert written == (inbox.parent / "other" / f"{other}.nii.gz").read_bytes()
