"""Cases side by side in processes: equal masks, and a process that dies, hangs or is stopped costs its case alone."""

from __future__ import annotations

import csv
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from medseg import lanes
from medseg.batch import predict_folder
from medseg.case_work import VOXEL_BYTES, Job
from medseg.config import PredictConfig
from medseg.config.settings import BatchConfig
from medseg.grid import Grid
from medseg.io.atomic import PARTIAL_PREFIX
from medseg.ledger import Ledger
from medseg.prediction import Outputs, Predictor
from medseg.scan import find_scans, read
from tests.fragile import Fragile
from tests.studies import AFFINE, nifti_case, random_model, threshold_model

TWO = BatchConfig(workers=2, timeout_s=300)


def masks(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.nii.gz"))}


def codes(ledger: Ledger) -> dict[str, str]:
    return {row.case: f"{row.status} {row.code}".strip() for row in ledger}


def leftovers(folder: Path) -> list[Path]:
    return list(folder.glob(f"{PARTIAL_PREFIX}*"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_masks_do_not_depend_on_processes_and_company(tmp_path: Path, precision: str) -> None:
    for number, slices in enumerate([1, 5, 9, 2, 1, 7]):  # with batches of 4: whole ones, shared ones, lone slices
        nifti_case(tmp_path, f"p{number}", number, Grid((20, 24, slices), AFFINE))
    nifti_case(tmp_path, "wide", 9, Grid((33, 17, 3), AFFINE))
    config = PredictConfig(precision=precision, device="cpu", batch_size=4)  # type: ignore[arg-type]
    found = {}
    for workers in (0, 1, 3):
        out = tmp_path / f"out{workers}"
        ledger = predict_folder(
            [tmp_path / "scans"], random_model(), out, config=config, batch=BatchConfig(workers=workers)
        )
        assert set(codes(ledger).values()) == {"done"}
        assert leftovers(out) == []
        found[workers] = masks(out)
    assert len(found[0]) == 7
    assert len(set(found[0].values())) == 7  # the network says something about each
    assert found[0] == found[1] == found[3]


def test_a_death_costs_its_case_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medseg.one_case.CaseWork", Fragile)
    for number, name in enumerate(["a", "die", "b-once", "c", "memory"]):
        nifti_case(tmp_path, name, number)
    ledger = predict_folder([tmp_path / "scans"], threshold_model(400), tmp_path / "out", batch=TWO)
    assert codes(ledger) == {
        "a": "done",
        "die": "failed RUN-DIED",
        "b-once": "done",
        "c": "done",
        "memory": "failed RUN-MEMORY",
    }
    assert sorted(masks(tmp_path / "out")) == ["a.nii.gz", "b-once.nii.gz", "c.nii.gz"]
    assert leftovers(tmp_path / "out") == []


def test_what_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medseg.one_case.CaseWork", Fragile)
    for number, name in enumerate(["hang", "a"]):
        nifti_case(tmp_path, name, number)
    hasty = BatchConfig(workers=1, timeout_s=20)
    ledger = predict_folder([tmp_path / "scans"], threshold_model(400), tmp_path / "out", batch=hasty)
    assert codes(ledger) == {"a": "done", "hang": "failed RUN-TIMEOUT"}


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_finishes_what_is_in_hand(tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medseg.one_case.CaseWork", Fragile)
    for number in range(6):
        nifti_case(tmp_path, f"slow{number}", number)
    run = stoppable(tmp_path, workers)
    with pytest.raises(KeyboardInterrupt):
        run(lambda: os.kill(os.getpid(), signal.SIGINT))
    finished = len(masks(tmp_path / "out"))
    assert 1 <= finished < 6  # the one that was told, and those in hand
    assert leftovers(tmp_path / "out") == []
    ledger = run(lambda: None)
    assert sorted(codes(ledger).values()) == ["done"] * (6 - finished) + ["reused"] * finished


def stoppable(folder: Path, workers: int) -> Callable[[Callable[..., object]], Ledger]:
    def run(after_first: Callable[..., object]) -> Ledger:
        told = []

        def watch(stage: str, done: int, total: int, note: str = "") -> None:
            told.extend([note] * bool(done))  # before the first case it is told what is ahead
            if len(told) == 1 and done:
                after_first()

        batch = BatchConfig(workers=workers)
        return predict_folder([folder / "scans"], threshold_model(400), folder / "out", batch=batch, watch=watch)

    return run


def test_sigterm_drops_what_is_in_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medseg.one_case.CaseWork", Fragile)
    for number, name in enumerate(["a", "hang", "later"]):
        nifti_case(tmp_path, name, number)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        stoppable(tmp_path, 2)(lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert time.monotonic() - start < 120
    assert "hang.nii.gz" not in masks(tmp_path / "out")
    assert leftovers(tmp_path / "out") == []
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # as it was


def test_the_expected_dice_is_that_of_the_volume_alone(tmp_path: Path) -> None:
    """Whatever was padded, shared a batch, or was done by a process: the review says what the predictor says."""
    plain = random_model()
    model = replace(plain, description=plain.description.model_copy(update={"patch": (64, 64)}))
    config = PredictConfig(engine="torch", precision="fp32", device="cpu", batch_size=4)
    sizes = {"p0": 5, "p1": 3, "p2": 6}
    for number, (name, slices) in enumerate(sizes.items()):
        nifti_case(tmp_path, name, number, Grid((20, 24, slices), AFFINE))
    predict_folder([tmp_path / "scans"], model, tmp_path / "out", config=config, batch=TWO)
    with (tmp_path / "out" / "review.csv").open(encoding="utf-8", newline="") as file:
        found = {row["case"]: float(row["expected_dice_tumour"]) for row in csv.DictReader(file)}
    predictor = Predictor(model, config)
    wanted = {
        scan.case_id: predictor.predict(read(scan)).agreement.expected[1] for scan in find_scans(tmp_path / "scans")
    }
    assert found == pytest.approx(wanted, abs=0.001)  # three digits
    assert len(set(found.values())) == 3


def test_without_an_interpreter_the_work_is_done_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    nifti_case(tmp_path, "p0", 0)
    ledger = predict_folder([tmp_path / "scans"], threshold_model(400), tmp_path / "out", batch=TWO)
    assert codes(ledger) == {"p0": "done"}


def test_blocks_that_wait_together_share_a_batch() -> None:
    sizes, gate = [], threading.Event()

    class Slow(Predictor):
        def outputs(self, images: torch.Tensor) -> Outputs:
            gate.wait(30)
            sizes.append(len(images))
            return Outputs(images[:, :1] * 2, images[:, :2].byte())

    network = lanes.SharedNetwork(Slow(threshold_model(400), PredictConfig(batch_size=6, device="cpu")))
    blocks = [
        torch.full((count, 3, 4, width), float(count)) for count, width in [(1, 4), (2, 4), (3, 5), (3, 4), (2, 4)]
    ]
    promises = [network(block) for block in blocks]
    gate.set()
    wait(promises, timeout=30)
    for block, promise in zip(blocks, promises, strict=True):
        outputs, _ = promise.result()
        assert torch.equal(outputs.logits, block[:, :1] * 2)
        assert torch.equal(outputs.votes, block[:, :2].byte())
    assert sum(sizes) == 11
    assert max(sizes) <= 6
    assert len(sizes) < 5
    network.close()
    with pytest.raises(Exception, match="closed"):
        network(blocks[0]).result(timeout=1)


def test_a_fault_of_the_network_reaches_those_who_wait() -> None:
    class Broken(Predictor):
        def outputs(self, images: torch.Tensor) -> Outputs:
            raise ZeroDivisionError

    network = lanes.SharedNetwork(Broken(threshold_model(400)))
    with pytest.raises(ZeroDivisionError):
        network(torch.zeros(1, 3, 4, 4)).result(timeout=30)
    network.close()


def test_cases_under_way_share_their_room() -> None:
    room, order = lanes.Room(10 * VOXEL_BYTES), []

    def case(size: int) -> Job:
        return cast(Job, SimpleNamespace(voxels=size))

    def take(size: int) -> None:
        room.take(case(size))
        order.append(size)

    room.take(case(4))
    room.take(case(6))
    large = threading.Thread(target=take, args=(25,))
    large.start()
    room.give(case(4))
    large.join(0.2)
    assert order == []  # larger than all the room: it waits until it is alone
    room.give(case(6))
    large.join(30)
    assert order == [25]
