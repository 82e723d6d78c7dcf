"""Several processes learn what one would have learned, and leave one run folder behind."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from medseg.config import Config, TrainConfig
from medseg.config.networks import UNetConfig
from medseg.errors import MedsegError, RunError
from medseg.models import build
from medseg.training import train
from medseg.training.loop import Fitted, LoopOptions, fit
from medseg.training.run import TrainResult
from medseg.training.state import seed_everything
from medseg.training.team import ALONE, Place, Team, joined, place_of
from medseg.volume import UNANNOTATED
from tests.studies import nifti_study, settings
from tests.training.test_loop import CPU, Blobs, Stop, dice, equal, stop_after

TOGETHER = pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(), reason="the system cannot fork"
)

LONGEST_S = 120.0


def together(work: Callable[[], Any], folder: Path, count: int = 2) -> list[Any]:
    """Call a function in processes that a launcher would have started; return what each gave, or raised.

    They are forked from a process that has imported everything and run nothing: a fork of this one could stand still
    at a lock that one of its threads held.

    Args:
        work: can be pickled.
        folder: gets `result-<rank>`.
        count: of the processes.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    members = [
        context.Process(target=_member, args=(work, folder, {**names, "RANK": rank, "LOCAL_RANK": rank}), daemon=True)
        for rank in range(count)
    ]
    for member in members:
        member.start()
    ends = time.monotonic() + LONGEST_S
    for rank, member in enumerate(members):
        member.join(max(0.0, ends - time.monotonic()))
        assert member.exitcode == 0, f"process {rank}: exit code {member.exitcode} after at most {LONGEST_S:g} s"
    return [pickle.loads((folder / f"result-{rank}").read_bytes()) for rank in range(count)]


def _member(work: Callable[[], Any], folder: Path, environment: Mapping[str, object]) -> None:
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(1)
    try:
        result: Any = work()
    except Exception as error:  # noqa: BLE001  it is the result
        result = error
    (folder / f"result-{environment['RANK']}").write_bytes(pickle.dumps(result))


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


def _learn_together(folder: Path, changes: dict[str, Any]) -> Fitted:
    with joined(place_of(), CPU) as team:
        assert team.count == 2
        return learn(folder, team, **changes)


@TOGETHER
@pytest.mark.parametrize(
    "changes", [{"loss": "dice_cross_entropy", "optimizer": "muon", "learning_rate": 0.01}, {"loss": "cross_entropy"}]
)
def test_two_learn_what_one_learns(tmp_path: Path, changes: dict[str, Any]) -> None:
    alone = learn(tmp_path / "alone", ALONE, **changes)
    first, second = together(partial(_learn_together, tmp_path / "two", changes), tmp_path)
    assert equal(first.weights, second.weights)
    for name, value in alone.weights.items():
        torch.testing.assert_close(first.weights[name], value, rtol=1e-4, atol=1e-5)
    assert [row.loss for row in first.epochs] == pytest.approx([row.loss for row in alone.epochs], rel=1e-5)


def _learn_whole_and_cut(folder: Path) -> tuple[Fitted, Fitted]:
    changes: dict[str, Any] = {"dropout": 0.3, "optimizer": "adamw", "learning_rate": 0.01}
    with joined(place_of(), CPU) as team:
        whole = learn(folder / "whole", team, **changes)
        with pytest.raises(Stop):
            learn(folder / "cut", team, watch=stop_after(2), **changes)
        torch.rand(7 + team.rank)
        team.gather(None)  # the first one has written its checkpoint
        return whole, learn(folder / "cut", team, resume=True, **changes)


@TOGETHER
def test_two_that_were_stopped_go_on_as_if_they_had_not_been(tmp_path: Path) -> None:
    """With dropout: each process has random numbers of its own."""
    results = together(partial(_learn_whole_and_cut, tmp_path), tmp_path)
    for whole, resumed in results:
        assert equal(whole.weights, resumed.weights)
        assert [row.loss for row in whole.epochs] == [row.loss for row in resumed.epochs]
    (first, _), (second, _) = results
    assert equal(first.weights, second.weights)
    assert [row.loss for row in first.epochs] == [row.loss for row in second.epochs]


def _train_twice(config: Config, run: Path) -> tuple[TrainResult, str, int]:
    """Return the result, the code of training there again without asking to resume, and how often it was told."""
    told: list[str] = []
    first = train(config, run, watch=lambda *args: told.append(args[0]))
    assert isinstance(first, TrainResult)
    return first, _code(lambda: train(config, run)), len(told)


@TOGETHER
def test_one_run_folder_whatever_the_number_of_processes(tmp_path: Path) -> None:
    study = nifti_study(tmp_path / "study")
    config = settings(study, epochs=2, optimizer="sgd", learning_rate=0.05)
    alone = train(config, tmp_path / "alone")
    (first, again, told), (second, also, silence) = together(partial(_train_twice, config, tmp_path / "two"), tmp_path)
    assert (again, also) == ("RUN-RESUME", "RUN-RESUME")
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
