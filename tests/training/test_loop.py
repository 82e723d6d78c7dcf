"""The loop: equal whether it is stopped or not, and honest when it goes wrong."""

from __future__ import annotations

import csv
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medseg.config import TrainConfig
from medseg.config.networks import UNetConfig
from medseg.errors import RunError
from medseg.models import Network, build
from medseg.progress import silent
from medseg.training import loop
from medseg.training.checkpoint import load_checkpoint
from medseg.training.loop import Fitted, LoopOptions, fit
from medseg.training.state import Average, learning_rate, seed_everything

CPU = torch.device("cpu")
EPOCHS = 4


class Blobs:
    """Batches of bright squares, a function of epoch and step as the protocol wants; can be told to go wrong."""

    def __init__(self, steps: int = 2, fault: tuple[int, int] | None = None) -> None:
        self.count, self.fault = steps, fault

    def steps(self, epoch: int) -> int:
        return self.count

    def batch(self, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        source = torch.Generator().manual_seed(1000 * epoch + step)
        labels = torch.zeros(2, 12, 12, dtype=torch.long)
        for mask in labels:
            i, j = torch.randint(0, 7, (2,), generator=source)
            mask[i : i + 5, j : j + 5] = 1
        images = torch.randn(2, 1, 12, 12, generator=source) + 3 * labels[:, None]
        return (images * math.nan if (epoch, step) == self.fault else images), labels


def dice(network: nn.Module) -> float:
    """Share of right pixels on one batch: as good a judge as any, and it changes from epoch to epoch."""
    images, labels = Blobs().batch(99, 0)
    with torch.inference_mode():
        return float((network(images).argmax(1) == labels).float().mean())


def settings(**changes: Any) -> TrainConfig:
    values = {"epochs": EPOCHS, "batch_size": 2, "learning_rate": 0.01, "precision": "fp32", "device": "cpu", **changes}
    return TrainConfig(**values)


def run(
    folder: Path,
    config: TrainConfig,
    *,
    resume: bool = False,
    data: Blobs | None = None,
    validate: Any = dice,
    dtype: torch.dtype = torch.float32,
    watch: Any = None,
) -> tuple[Fitted, Network]:
    seed_everything(3, deterministic=True)
    network = build(UNetConfig(widths=(4, 8), norm="batch", dropout=0.2), 1, 2)
    options = LoopOptions(folder, CPU, dtype, resume, watch or silent)
    return fit(network, data or Blobs(), validate, config, options), network


class Stop(Exception):  # noqa: N818  it stands for a power cut, not for an error
    """Ends a run from within."""


def stop_after(epoch: int, within: bool = False) -> Any:
    def watch(stage: str, done: int, total: int, note: str = "") -> None:
        if (within and stage.startswith(f"epoch {epoch + 1}/")) or (stage == "train" and done == epoch and not within):
            raise Stop

    return watch


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        measured = ("seconds", "waiting")
        return [{key: value for key, value in row.items() if key not in measured} for row in csv.DictReader(file)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("average", [None, 0.9])
@pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd"])
def test_a_resumed_run_equals_an_unbroken_one(
    tmp_path: Path, dtype: torch.dtype, average: float | None, optimizer: str
) -> None:
    config = settings(average=average, optimizer=optimizer)
    unbroken, network = run(tmp_path / "whole", config, dtype=dtype)
    for epoch in range(1, EPOCHS + 1):
        folder = tmp_path / str(epoch)
        with pytest.raises(Stop):
            run(folder, config, dtype=dtype, watch=stop_after(epoch))
        torch.rand(7)  # what else a process draws plays no part
        fitted, resumed = run(folder, config, dtype=dtype, resume=True)
        assert equal(fitted.weights, unbroken.weights)
        assert equal(resumed.state_dict(), network.state_dict())
        assert (fitted.best_epoch, fitted.best_dice) == (unbroken.best_epoch, unbroken.best_dice)
        assert rows(folder) == rows(tmp_path / "whole")


def test_a_run_stopped_within_an_epoch_does_that_epoch_again(tmp_path: Path) -> None:
    config = settings(average=0.9)
    unbroken, network = run(tmp_path / "whole", config)
    with pytest.raises(Stop):
        run(tmp_path / "cut", config, watch=stop_after(2, within=True))
    fitted, resumed = run(tmp_path / "cut", config, resume=True)
    assert equal(fitted.weights, unbroken.weights)
    assert equal(resumed.state_dict(), network.state_dict())


@pytest.mark.parametrize("average", [None, 0.9])
def test_a_checkpoint_within_an_epoch_is_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, average: float | None
) -> None:
    config = settings(average=average)
    unbroken, network = run(tmp_path / "whole", config, data=Blobs(steps=4))
    monkeypatch.setattr(loop, "SAVE_EVERY_S", -1.0)  # after every step
    for step in range(4):
        made: list[int] = []

        class Seen(Blobs):
            def batch(self, epoch: int, step: int) -> tuple[Tensor, Tensor]:
                made.append(step)  # noqa: B023
                return super().batch(epoch, step)

        def cut(stage: str, done: int, total: int, note: str = "", last: int = step + 1) -> None:
            if stage.startswith("epoch 2/") and done == last:
                raise Stop

        folder = tmp_path / str(step)
        with pytest.raises(Stop):
            run(folder, config, data=Blobs(steps=4), watch=cut)
        torch.rand(7)
        fitted, resumed = run(folder, config, resume=True, data=Seen(steps=4))
        assert made[:1] == [step]  # the step that was cut off, and none before it
        assert equal(fitted.weights, unbroken.weights)
        assert equal(resumed.state_dict(), network.state_dict())
        assert rows(folder) == rows(tmp_path / "whole")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
@pytest.mark.skipif(sys.platform == "win32", reason="signals are another matter there")
def test_asked_to_stop_it_saves_after_the_step_and_goes_on_from_there(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    unbroken, _ = run(tmp_path / "whole", settings())
    before = signal.getsignal(getattr(signal, name))
    seen: list[str] = []

    def watch(stage: str, done: int, total: int, note: str = "") -> None:
        seen.append(f"{stage} {done}")
        if stage.startswith("epoch 3/") and done == 1:
            os.kill(os.getpid(), getattr(signal, name))

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", settings(), watch=watch)
    assert seen[-1] == f"epoch 3/{EPOCHS} 1"
    assert "stopping after the step in hand" in caplog.text
    assert signal.getsignal(getattr(signal, name)) == before
    assert load_checkpoint(tmp_path / "cut" / "checkpoints" / "last.pt")["done"] == 1
    fitted, _ = run(tmp_path / "cut", settings(), resume=True)
    assert equal(fitted.weights, unbroken.weights)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_asked_to_stop_while_validating_it_ends_the_epoch(tmp_path: Path) -> None:
    def asking(network: nn.Module) -> float:
        os.kill(os.getpid(), signal.SIGINT)
        return dice(network)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, settings(), validate=asking)
    assert [row["epoch"] for row in rows(tmp_path)] == ["1"]


def test_a_broken_weight_is_never_saved_within_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY_S", -1.0)
    with pytest.raises(RunError, match="the loss became nan") as caught:
        run(tmp_path, settings(schedule="constant"), data=Blobs(steps=6, fault=(1, 3)))
    assert caught.value.code == "RUN-NAN"
    state = load_checkpoint(tmp_path / "checkpoints" / "last.pt")
    assert (state["epoch"], state["done"]) == (1, 3)
    assert all(bool(torch.isfinite(value).all()) for value in state["network"].values())


def test_a_kill_between_checkpoint_and_metrics_loses_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings()
    run(tmp_path / "whole", config)
    calls = []

    def failing(name: str, original: Any) -> Any:
        def call(*args: Any) -> None:
            calls.append(name)
            if calls.count(name) == EPOCHS and calls[-2:].count(name) == 1 and len(calls) == 2 * EPOCHS:
                raise Stop
            original(*args)

        return call

    monkeypatch.setattr(loop, "save_checkpoint", failing("checkpoint", loop.save_checkpoint))
    monkeypatch.setattr(loop, "write_history", failing("history", loop.write_history))
    with pytest.raises(Stop):  # before the second of the last epoch's two files is written
        run(tmp_path / "cut", config)
    monkeypatch.undo()
    run(tmp_path / "cut", config, resume=True)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    assert len(rows(tmp_path / "cut")) == EPOCHS


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    config = settings()
    first, _ = run(tmp_path, config)
    seen: list[str] = []
    again, _ = run(tmp_path, config, resume=True, watch=lambda stage, *rest: seen.append(stage))
    assert equal(again.weights, first.weights)
    assert not seen


def test_without_its_checkpoint_a_resumed_run_begins_anew_and_says_so(tmp_path: Path) -> None:
    config = settings()
    first, _ = run(tmp_path, config)
    (tmp_path / "checkpoints" / "last.pt").unlink()
    told: list[str] = []
    again, _ = run(tmp_path, config, resume=True, watch=lambda stage, done, total, note="": told.append(note))
    assert equal(again.weights, first.weights)
    assert "begins anew" in told[0]


def test_equal_seeds_give_equal_runs(tmp_path: Path) -> None:
    one, _ = run(tmp_path / "one", settings())
    other, _ = run(tmp_path / "other", settings())
    assert equal(one.weights, other.weights)


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    run(tmp_path, settings(epochs=2, schedule="constant"))
    kept = (tmp_path / "checkpoints" / "last.pt").read_bytes()
    with pytest.raises(RunError, match="the loss became nan") as caught:
        run(tmp_path, settings(schedule="constant"), resume=True, data=Blobs(fault=(2, 0)))
    assert caught.value.code == "RUN-NAN"
    assert (tmp_path / "checkpoints" / "last.pt").read_bytes() == kept
    assert len(rows(tmp_path)) == 2


def test_weights_broken_by_the_last_step_of_an_epoch_are_never_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = torch.optim.SGD.step

    def breaking(self: torch.optim.SGD, *args: Any) -> Any:
        step(self, *args)
        self.param_groups[0]["params"][0].data.fill_(math.nan)

    monkeypatch.setattr(torch.optim.SGD, "step", breaking)
    with pytest.raises(RunError, match="weights became NaN") as caught:
        run(tmp_path, settings(optimizer="sgd"), data=Blobs(steps=1))
    assert caught.value.code == "RUN-NAN"
    assert not (tmp_path / "checkpoints" / "last.pt").exists()


class Scores:
    """Validation scores known in advance."""

    def __init__(self, *scores: float) -> None:
        self.left = list(scores)

    def __call__(self, network: nn.Module) -> float:
        assert not network.training
        return self.left.pop(0)


def test_out_of_patience_stops(tmp_path: Path) -> None:
    fitted, _ = run(tmp_path, settings(epochs=20, patience=2), validate=Scores(0.1, 0.5, 0.4, 0.5, 0.9))
    # 0.5 in epoch 2 is the best; 0.4 and an equal 0.5 are two validations without a better one.
    assert [row.epoch for row in fitted.epochs] == [1, 2, 3, 4]
    assert (fitted.best_epoch, fitted.best_dice) == (2, 0.5)
    assert [row.best for row in fitted.epochs] == [True, True, False, False]


def test_patience_counts_validations_not_epochs(tmp_path: Path) -> None:
    fitted, _ = run(
        tmp_path, settings(epochs=9, patience=2, validate_every=2), validate=Scores(0.5, 0.4, 0.3, 0.2, 0.1)
    )
    assert len(fitted.epochs) == 6  # validated after 2, 4 and 6
    assert [math.isnan(row.dice) for row in fitted.epochs] == [True, False, True, False, True, False]


def test_the_last_epoch_is_always_validated(tmp_path: Path) -> None:
    fitted, _ = run(tmp_path, settings(epochs=3, validate_every=2), validate=Scores(0.5, 0.6))
    assert fitted.best_epoch == 3


def test_the_best_weights_are_kept_not_the_last(tmp_path: Path) -> None:
    best, _ = run(tmp_path / "one", settings(epochs=2, schedule="constant"), validate=Scores(0.1, 0.9))
    longer, network = run(
        tmp_path / "two", settings(epochs=4, schedule="constant"), validate=Scores(0.1, 0.9, 0.5, 0.4)
    )
    assert equal(longer.weights, best.weights)
    assert not equal(longer.weights, network.state_dict())


def test_without_validation_the_last_weights_are_kept(tmp_path: Path) -> None:
    fitted, network = run(tmp_path, settings(average=None), validate=None)
    assert equal(fitted.weights, network.state_dict())
    assert fitted.best_epoch == EPOCHS
    assert math.isnan(fitted.best_dice)
    assert {row["dice"] for row in rows(tmp_path)} == {""}


def test_the_averaged_network_is_the_one_that_is_validated_and_kept(tmp_path: Path) -> None:
    seen = []

    def remember(network: nn.Module) -> float:
        seen.append({name: value.clone() for name, value in network.state_dict().items()})
        return float(len(seen))

    fitted, network = run(tmp_path, settings(average=0.9), validate=remember)
    assert equal(fitted.weights, seen[-1])
    assert not equal(fitted.weights, network.state_dict())


def test_the_moving_average_by_hand() -> None:
    network = nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(0)
    average = Average(network, decay=0.5)  # type: ignore[arg-type]
    for step, value in ((1, 11.0), (2, 1.0), (100, 4.0)):
        network.weight.data.fill_(value)
        average.update(network, step)
    # Decays min(0.5, (1 + n) / (10 + n)): 2/11, 3/12, 0.5.
    # 0 + 9/11 * 11 = 9; 9 + 3/4 * (1 - 9) = 3; 3 + 0.5 * (4 - 3) = 3.5.
    assert average.network.weight.item() == pytest.approx(3.5)  # type: ignore[union-attr]


def test_schedules_by_hand() -> None:
    # 40 steps: the first 2 rise (a twentieth), then 38 fall. Half-way of the fall is step 21.
    cosine = settings(schedule="cosine", learning_rate=0.1)
    assert learning_rate(cosine, 0, 40) == pytest.approx(0.05)
    assert learning_rate(cosine, 1, 40) == pytest.approx(0.1)
    assert learning_rate(cosine, 2, 40) == pytest.approx(0.1)
    assert learning_rate(cosine, 21, 40) == pytest.approx(0.05)
    # 1 - 37/38 of the way is left at the last step: 0.05 * (1 - cos(pi / 38)).
    assert learning_rate(cosine, 39, 40) == pytest.approx(0.05 * (1 - math.cos(math.pi / 38)))
    polynomial = settings(schedule="polynomial", learning_rate=0.1)
    assert learning_rate(polynomial, 21, 40) == pytest.approx(0.1 * 0.5**0.9)
    constant = settings(schedule="constant", learning_rate=0.1)
    assert {learning_rate(constant, step, 40) for step in range(40)} == {0.1}


@pytest.mark.parametrize("schedule", ["cosine", "polynomial"])
@pytest.mark.parametrize("total", [1, 2, 19, 20, 21, 500])
def test_falling_schedules_stay_above_zero_and_below_the_top(schedule: Any, total: int) -> None:
    rates = [learning_rate(settings(schedule=schedule, learning_rate=0.1), step, total) for step in range(total)]
    assert all(0 < rate <= 0.1 for rate in rates)
    top = rates.index(max(rates))
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_the_last_rate_of_an_epoch_is_recorded(tmp_path: Path) -> None:
    config = settings(schedule="cosine")
    fitted, _ = run(tmp_path, config, data=Blobs(steps=3))
    wanted = [learning_rate(config, 3 * epoch + 2, 3 * EPOCHS) for epoch in range(EPOCHS)]
    assert [row.learning_rate for row in fitted.epochs] == pytest.approx(wanted)


def test_gradients_are_clipped(tmp_path: Path) -> None:
    free, _ = run(tmp_path / "free", settings(optimizer="sgd", clip_gradient=None, average=None), validate=None)
    held, _ = run(
        tmp_path / "held", settings(optimizer="sgd", clip_gradient=1e-9, average=None, weight_decay=0), validate=None
    )
    seed_everything(3, deterministic=True)
    start = build(UNetConfig(widths=(4, 8), norm="batch", dropout=0.2), 1, 2).state_dict()
    weights = [name for name in start if name.endswith("weight")]
    assert max(float((held.weights[name] - start[name]).abs().max()) for name in weights) < 1e-8
    assert max(float((free.weights[name] - start[name]).abs().max()) for name in weights) > 1e-3


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_running_out_of_memory_names_numbers_and_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def greedy(self: Network, x: Tensor) -> list[Tensor]:
        raise error

    monkeypatch.setattr(Network, "training_logits", greedy)
    with pytest.raises(RunError, match=r"2 slices of 1 x 12 x 12 .*batch_size=1") as caught:
        run(tmp_path, settings())
    assert caught.value.code == "RUN-MEMORY"


def test_a_cpu_that_cannot_allocate_is_explained_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Network, "training_logits", lambda self, x: [torch.empty(2**42)])  # 16 TB
    with pytest.raises(RunError) as caught:
        run(tmp_path, settings())
    assert caught.value.code == "RUN-MEMORY"


def test_a_fault_of_the_data_is_not_hidden(tmp_path: Path) -> None:
    class Broken(Blobs):
        def batch(self, epoch: int, step: int) -> tuple[Tensor, Tensor]:
            if step == 1:
                raise ZeroDivisionError
            return super().batch(epoch, step)

    with pytest.raises(ZeroDivisionError):
        run(tmp_path, settings(), data=Broken())


def test_it_learns(tmp_path: Path) -> None:
    fitted, _ = run(tmp_path, settings(epochs=12, average=None), data=Blobs(steps=6))
    assert fitted.best_dice > 0.95
    assert fitted.epochs[-1].loss < fitted.epochs[0].loss / 2


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    run(tmp_path, settings(epochs=1))
    other = build(UNetConfig(widths=(3, 6)), 1, 2)
    with pytest.raises(RunError, match="does not fit this run") as caught:
        fit(other, Blobs(), dice, settings(), LoopOptions(tmp_path, CPU, resume=True))
    assert caught.value.code == "RUN-RESUME"


def test_the_share_of_waiting_is_written_down(tmp_path: Path) -> None:
    class Slow(Blobs):
        def batch(self, epoch: int, step: int) -> tuple[Tensor, Tensor]:
            time.sleep(0.2)
            return super().batch(epoch, step)

    run(tmp_path / "slow", settings(epochs=1, average=None), data=Slow(steps=4), validate=None)
    with (tmp_path / "slow" / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert 0.5 < float(row["waiting"]) <= 1  # 0.8 s of sleep and four tiny steps
