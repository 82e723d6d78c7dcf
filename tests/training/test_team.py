"""Several processes learn what one would have learned, and leave one run folder behind."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from medseg.config import TrainConfig
from medseg.config.networks import UNetConfig
from medseg.errors import MedsegError, RunError
from medseg.models import build
from medseg.training import train
from medseg.training.loop import Fitted, LoopOptions, fit
from medseg.training.state import seed_everything
from medseg.training.team import ALONE, Place, Team, joined, place_of
from medseg.volume import UNANNOTATED
from tests.studies import nifti_study, settings
from tests.training.test_loop import CPU, Blobs, Stop, dice, equal, stop_after

FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")

LONGEST_S = 120.0


def together(work: Callable[[], Any], folder: Path, count: int = 2) -> list[Any]:
    """Call a function in processes that a launcher would have started; return what each gave, or raised."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
            os.environ.update({"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in names.items()}})
            torch.set_num_threads(1)  # the pool of threads stayed with the parent
            try:
                result: Any = work()
            except Exception as error:  # noqa: BLE001  it is the result
                result = error
            (folder / f"result-{rank}").write_bytes(pickle.dumps(result))
            os._exit(0)
        children.append(child)
    ends = time.monotonic() + LONGEST_S
    for child in children:
        while os.waitpid(child, os.WNOHANG)[0] == 0:
            if time.monotonic() > ends:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.02)
    return [pickle.loads((folder / f"result-{rank}").read_bytes()) for rank in range(count)]


class Part(Blobs):
    """A team's part of batches of five; of the last batch of an epoch there is one slice, so that one has none."""

    def __init__(self, team: Team) -> None:
        super().__init__(steps=3)
        self.team = team

    def batch(self, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        pairs = [super(Part, self).batch(epoch, 10 * step + n) for n in range(3)]
        images, labels = (torch.cat(tensors)[: 1 if step == 2 else 5] for tensors in zip(*pairs, strict=True))
        labels[0, 0] = UNANNOTATED  # parts differ in what counts, too
        own = list(self.team.part(len(images)))
        return (images[own], labels[own]) if own else (images[:1], torch.full_like(labels[:1], UNANNOTATED))


def learn(folder: Path, team: Team, **changes: Any) -> Fitted:
    options = {"resume": changes.pop("resume", False), "watch": changes.pop("watch", lambda *_: None)}
    dropout = changes.pop("dropout", 0.0)
    values = {"epochs": 3, "learning_rate": 0.05, "optimizer": "sgd", "average": 0.9, **changes}
    seed_everything(3, deterministic=True)
    network = build(UNetConfig(widths=(4, 8), norm="instance", deep_supervision=True, dropout=dropout), 1, 2)
    places = LoopOptions(folder, CPU, team=team, **options)  # type: ignore[arg-type]
    return fit(network, Part(team), dice, TrainConfig(**values), places)


@FORK
@pytest.mark.parametrize("loss", ["dice_cross_entropy", "cross_entropy"])
def test_two_learn_what_one_learns(tmp_path: Path, loss: str) -> None:
    alone = learn(tmp_path / "alone", ALONE, loss=loss)

    def work() -> Fitted:
        with joined(place_of(), CPU) as team:
            assert team.count == 2
            return learn(tmp_path / "two", team, loss=loss)

    first, second = together(work, tmp_path)
    assert equal(first.weights, second.weights)
    for name, value in alone.weights.items():
        torch.testing.assert_close(first.weights[name], value, rtol=1e-4, atol=1e-5)
    assert [row.loss for row in first.epochs] == pytest.approx([row.loss for row in alone.epochs], rel=1e-5)


@FORK
def test_two_that_were_stopped_go_on_as_if_they_had_not_been(tmp_path: Path) -> None:
    """With dropout: each process has random numbers of its own."""

    def work() -> tuple[Fitted, Fitted]:
        with joined(place_of(), CPU) as team:
            whole = learn(tmp_path / "whole", team, dropout=0.3, optimizer="adamw", learning_rate=0.01)
            with pytest.raises(Stop):
                learn(tmp_path / "cut", team, dropout=0.3, optimizer="adamw", learning_rate=0.01, watch=stop_after(2))
            torch.rand(7 + team.rank)
            team.gather(None)  # the first one has written its checkpoint
            options = {"dropout": 0.3, "optimizer": "adamw", "learning_rate": 0.01, "resume": True}
            return whole, learn(tmp_path / "cut", team, **options)

    results = together(work, tmp_path)
    for whole, resumed in results:
        assert equal(whole.weights, resumed.weights)
        assert [row.loss for row in whole.epochs] == [row.loss for row in resumed.epochs]
    (first, _), (second, _) = results
    assert equal(first.weights, second.weights)
    assert [row.loss for row in first.epochs] == [row.loss for row in second.epochs]


@FORK
def test_one_run_folder_whatever_the_number_of_processes(tmp_path: Path) -> None:
    study = nifti_study(tmp_path / "study")
    config = settings(study, epochs=2, optimizer="sgd", learning_rate=0.05)
    alone = train(config, tmp_path / "alone")

    def work() -> Any:
        told: list[str] = []
        first = train(config, tmp_path / "two", watch=lambda *args: told.append(args[0]))
        again = [_code(lambda: train(config, tmp_path / "two"))]  # not asked to resume
        return first, again, len(told)

    (first, again, told), (second, also, silence) = together(work, tmp_path)
    assert (again, also) == (["RUN-RESUME"], ["RUN-RESUME"])
    assert told > 0
    assert silence == 0
    assert first.report.mean_dice == second.report.mean_dice
    assert _files(tmp_path / "two") == _files(tmp_path / "alone")
    mine, theirs = (load_file(tmp_path / run / "model" / "weights.safetensors") for run in ("alone", "two"))
    for name, value in mine.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=1e-4)
    assert [row.dice for row in first.fitted.epochs] == pytest.approx(
        [row.dice for row in alone.fitted.epochs],  # type: ignore[union-attr]
        abs=0.02,
    )


def _files(run: Path) -> set[Path]:
    """What a run leaves; of prepared slices and measures it may have found some beside it."""
    return {path.relative_to(run) for path in run.rglob("*") if path.is_file() and "prepared" not in path.parts}


def _code(work: Callable[[], object]) -> str:
    try:
        work()
    except MedsegError as error:
        return error.code
    return "nothing"


# ---------------------------------------------------------------------------------------------------------- the parts


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("size", [0, 1, 5, 12])
def test_each_slice_has_one_process(count: int, size: int) -> None:
    places = [place for rank in range(count) for place in Team(rank, count).part(size)]
    assert sorted(places) == list(range(size))


def test_alone_nothing_is_added_up() -> None:
    tensor = torch.tensor([1.0, 2.0], requires_grad=True)
    assert ALONE.total(tensor) is tensor
    assert ALONE.gather("own") == ["own"]
    assert ALONE.share(lambda: 7) == 7
    assert ALONE.first


TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
SRUN = {
    "SLURM_PROCID": "3",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NODELIST": "gpu[07-09,12],login",
}


def test_who_is_who() -> None:
    assert place_of({}) == Place(0, 1)
    assert place_of(TORCHRUN) == Place(3, 8, 1)
    # 20000 + (16 * 1234 + 2) % 20000
    assert place_of(SRUN) == Place(3, 4, 1, "tcp://gpu07:39746")
    assert place_of({**SRUN, **TORCHRUN}) == Place(3, 8, 1)  # torchrun within srun
    assert place_of({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}) == Place(0, 1)
    batch_script = {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "1", "SLURM_LOCALID": "0"}
    assert place_of(batch_script) == Place(0, 1)  # it is one process, whatever the job has asked for


@pytest.mark.parametrize(
    ("machines", "first"),
    [("node1", "node1"), ("a,b", "a"), ("n[3-4]", "n3"), ("tux[01,03-05]-ib,x1", "tux01-ib"), ("a-b.c.d", "a-b.c.d")],
)
def test_the_first_machine_of_a_list(machines: str, first: str) -> None:
    assert place_of({**SRUN, "SLURM_STEP_NODELIST": machines}).address.startswith(f"tcp://{first}:")


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "x", "WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
        {name: value for name, value in SRUN.items() if name != "SLURM_PROCID"},
        {name: value for name, value in SRUN.items() if "NODELIST" not in name},
    ],
)
def test_a_launcher_that_contradicts_itself(environment: dict[str, str]) -> None:
    with pytest.raises(RunError) as caught:
        place_of(environment)
    assert caught.value.code == "RUN-LAUNCH"
