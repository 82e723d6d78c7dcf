"""What can be seen of a run while it goes; none of it changes what is learned, or can end a run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from safetensors.torch import load_file

from medseg.config import Config
from medseg.store import Entry, SliceStore
from medseg.training import Epoch, train
from medseg.training.checkpoint import State
from medseg.training.curves import curves
from medseg.training.history import line, overrun_s
from medseg.training.overlays import PREDICTION, REFERENCE, choose_slices
from medseg.training.showing import Showing, flat, is_shown
from medseg.training.trackers import TensorBoard
from medseg.volume import UNANNOTATED
from tests.studies import settings


class Diary:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.settings: Mapping[str, object] = {}
        self.epochs: list[int] = []
        self.finished = 0

    def start(self, settings: Mapping[str, object]) -> None:
        self.settings = settings

    def epoch(self, row: Epoch) -> None:
        self.epochs.append(row.epoch)

    def finish(self) -> None:
        self.finished += 1


class Broken(Diary):
    def epoch(self, row: Epoch) -> None:
        super().epoch(row)
        raise ConnectionError("no network")


@pytest.fixture(scope="module")
def config(study: Path) -> Config:
    return settings(study, epochs=3, overlays=2)


@pytest.fixture(scope="module")
def shown(config: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Diary, Broken]:
    folder, diary, broken = tmp_path_factory.mktemp("shown") / "run", Diary(), Broken()
    train(config, folder, trackers=[broken, diary])
    return folder, diary, broken


def epochs(*losses: float, dice: float = 0.5, seconds: float = 60) -> list[Epoch]:
    return [Epoch(n, loss, dice, 1e-3, seconds, True) for n, loss in enumerate(losses, start=1)]


# ----------------------------------------------------------------------------------------------------- lines and curves


def test_a_run_far_behind_its_budget_is_reckoned_by_the_median_of_its_epochs() -> None:
    steady = epochs(3, 2, 1, seconds=100)
    assert overrun_s(steady, 10, 1000) == 0  # as planned
    assert overrun_s(steady, 10, 950) == 0  # 5 % late: not worth a word
    assert overrun_s(steady, 10, 600) == 400  # 300 s done and 7 x 100 s to come
    assert overrun_s(steady[:1], 10, 100) == 0  # one epoch tells little
    hiccup = [*epochs(5, 4, 3, 2, seconds=100), Epoch(5, 1, 0.5, 1e-3, 150, True)]
    assert overrun_s(hiccup, 10, 1000) == 0  # 550 s done, 5 x 100 s to come


def test_a_slow_machine_is_told_once(config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train_config = config.train.model_copy(update={"epochs": 10})
    slow = config.model_copy(update={"budget": "10m", "train": train_config})
    rows = epochs(4, 3, 2, 1, seconds=100)
    with caplog.at_level(logging.WARNING), Showing(tmp_path, slow, [], None) as shown:
        for count in range(1, 5):
            shown(torch.nn.Identity(), rows[:count])  # type: ignore[arg-type]  # nothing is drawn with it
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert "about 6m40s more than the budget of 10m" in told[0]


def test_a_line_says_how_long_the_run_will_take() -> None:
    # Three of forty epochs in 100 s each: 37 x 100 s = 3700 s, one hour and 1.7 minutes.
    assert line(epochs(2, 1, 0.5, seconds=100), 40) == (
        "epoch   3/40  loss 0.5000  Dice 0.5000 (best)  100 s, about 1 h 2 min left"
    )
    assert (
        line(epochs(2, dice=float("nan"), seconds=10), 3) == "epoch   1/3  loss 2.0000  10 s, less than a minute left"
    )
    assert line(epochs(2, 1), 2).endswith("(best)  60 s")
    slow_start = [Epoch(1, 1, 0.5, 1e-3, 9999, True), *(Epoch(n, 1, 0.5, 1e-3, 60, True) for n in range(2, 13))]
    assert line(slow_start, 22).endswith("about 10 min left")  # of the last ten epochs, not of the first


def test_curves_show_every_epoch_and_the_whole_run() -> None:
    history = [Epoch(n, 1 / n, 0.1 * n if n % 2 else float("nan"), 1e-3, 1, True) for n in range(1, 6)]
    figure = curves(history, 40)
    assert [axes.get_ylabel() for axes in figure.axes] == ["training loss", "validation Dice", "learning rate"]
    assert figure.axes[-1].get_xlim()[1] > 40
    assert figure.axes[0].lines[0].get_xydata() == pytest.approx(np.array([[n, 1 / n] for n in range(1, 6)]))
    assert figure.axes[1].lines[0].get_xdata() == pytest.approx([1, 3, 5])  # where something was validated
    assert figure.axes[1].lines[1].get_xydata() == pytest.approx(np.array([[5, 0.5]]))  # the best
    assert len(curves([Epoch(1, 1, float("nan"), 1e-3, 1, True)], 2).axes) == 2  # nothing validated, nothing drawn


# ------------------------------------------------------------------------------------------------------------ overlays


def test_pictures_are_evenly_spread_and_end_with_the_run() -> None:
    assert [n for n in range(1, 41) if is_shown(n, 40, 4)] == [10, 20, 30, 40]
    assert [n for n in range(1, 4) if is_shown(n, 3, 10)] == [1, 2, 3]
    assert [n for n in range(1, 8) if is_shown(n, 7, 1)] == [7]
    assert not any(is_shown(n, 7, 0) for n in range(1, 8))


def entry(folder: Path, name: str, areas: list[int]) -> Entry:
    """A case whose slices hold so many pixels of foreground, and everywhere pixels that nobody annotated."""
    masks = np.zeros((len(areas), 8, 8), np.uint8)
    for mask, area in zip(masks, areas, strict=True):
        mask.flat[:area] = 1
        mask[7] = UNANNOTATED
    (folder / name).mkdir()
    np.save(folder / name / "masks.npy", masks)
    return Entry(name, folder / name, (len(areas), 1, 8, 8), {1: tuple(np.flatnonzero(areas).tolist())})


def test_the_largest_slice_of_each_case_from_small_to_large(tmp_path: Path) -> None:
    entries = [entry(tmp_path, f"c{n}", [0, 3, n, 0]) for n in range(11)]
    chosen = choose_slices(SliceStore({each.case: each for each in entries}, {}))
    # Eleven cases: the areas are 3 (c0 to c3), 4, ... 10; six of them, two places apart.
    assert [(each.entry.case, each.index) for each in chosen] == [
        ("c0", 1),
        ("c2", 1),
        ("c4", 2),
        ("c6", 2),
        ("c8", 2),
        ("c10", 2),
    ]
    assert len(choose_slices(SliceStore({"c0": entries[0]}, {}))) == 1


def test_a_picture_holds_both_outlines(shown: tuple[Path, Diary, Broken]) -> None:
    folder = shown[0] / "overlays"
    assert sorted(path.name for path in folder.iterdir()) == ["epoch-002.png", "epoch-003.png"]
    pixels = imread(folder / "epoch-003.png")[..., :3].reshape(-1, 3)
    for colour in (REFERENCE, PREDICTION):
        near = np.abs(pixels - np.array(to_rgb(colour))).max(axis=1) < 0.05
        assert near.sum() > 200, colour


# ------------------------------------------------------------------------------------------------------------ trackers


def test_trackers_are_told_every_epoch_and_no_path(shown: tuple[Path, Diary, Broken], study: Path) -> None:
    _, diary, _ = shown
    assert diary.epochs == [1, 2, 3]
    assert diary.finished == 1
    assert diary.settings["train.patch"] == [24, 20]  # as it was decided
    assert str(study) not in repr(diary.settings)


def test_a_tracker_that_fails_is_told_no_more(shown: tuple[Path, Diary, Broken]) -> None:
    folder, _, broken = shown
    assert broken.epochs == [1]
    assert broken.finished == 0
    assert (folder / "model" / "model.yaml").is_file()


def test_a_failing_tracker_is_named(config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="medseg"):
        train(
            config.model_copy(update={"train": config.train.model_copy(update={"epochs": 1})}),
            tmp_path / "run",
            trackers=[Broken()],
        )
    assert "the tracker Broken failed and is told no more: no network" in caplog.text


def test_a_resumed_run_tells_all_epochs(config: Config, shown: tuple[Path, Diary, Broken], tmp_path: Path) -> None:
    """And what is shown changes nothing: without pictures and trackers, the weights are the same."""
    from medseg.training import loop

    quiet = config.model_copy(update={"train": config.train.model_copy(update={"overlays": 0})})
    save, saved = loop.save_checkpoint, []

    def stop(path: Path, state: State) -> None:
        save(path, state)
        saved.append(state["epoch"])
        if len(saved) == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            train(quiet, tmp_path / "run")
    assert not (tmp_path / "run" / "overlays").exists()
    diary = Diary()
    train(quiet, tmp_path / "run", resume=True, trackers=[diary])
    assert diary.epochs == [1, 2, 3]
    one, other = (load_file(folder / "model" / "weights.safetensors") for folder in (tmp_path / "run", shown[0]))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_tensorboard_reads_what_was_written_and_not_twice(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for losses in ([3.0, 2.0], [3.0, 2.0, 1.0]):  # stopped after two epochs, resumed
        board = TensorBoard(tmp_path / "events")
        board.start({"train.epochs": 3})
        for row in epochs(*losses):
            board.epoch(row)
        board.finish()
    events = accumulator.EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 3), (2, 2), (3, 1)]
    assert len(events.Scalars("dice")) == 3


def test_settings_get_one_name_each() -> None:
    assert flat({"a": {"b": {"c": 1}, "d": [2]}, "e": None}) == {"a.b.c": 1, "a.d": [2], "e": None}
