"""Cases on a real Dask scheduler and two workers, some of which die; skipped where Dask is not installed."""

# ruff: noqa: E402  what follows needs Dask

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

dask = pytest.importorskip("dask", reason="Dask (extra: dask) is not installed")
distributed = pytest.importorskip("distributed", reason="Dask (extra: dask) is not installed")

from medseg import one_case
from medseg.batch import predict_folder
from medseg.case import Case
from medseg.case_work import Failed, Job
from medseg.cluster import _Cluster
from medseg.cluster_worker import pinned
from medseg.config.settings import BatchConfig, PredictConfig
from medseg.errors import RunError
from medseg.ledger import Ledger
from medseg.one_case import Outcome
from medseg.prediction import Predictor
from medseg.scan import find_scans
from pipelines import predict_dask
from tests.fragile import Fragile
from tests.studies import nifti_case, threshold_model


class Plant(distributed.WorkerPlugin):  # type: ignore[misc]  # Dask has no types here
    """Fragile work in every worker, those that are started again included."""

    def setup(self, worker: object) -> None:
        one_case.CaseWork = Fragile  # type: ignore[misc]


@pytest.fixture
def cluster() -> Iterator[Any]:
    patient = {"distributed.comm.timeouts.connect": "60s"}
    alone = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "env": {"OMP_NUM_THREADS": "1"}}
    with dask.config.set(patient), distributed.LocalCluster(**alone) as started:
        yield started


def statuses(ledger: Ledger) -> dict[str, str]:
    return {row.case: f"{row.status} {row.code}".strip() for row in ledger}


def masks(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.nii.gz")}


def test_the_case_of_a_dead_worker_goes_to_another(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for number, name in enumerate(["a", "killer-once", "b"]):
        nifti_case(tmp_path, name, number)
    (tmp_path / "scans" / "empty.nii.gz").touch()
    with distributed.Client(cluster, set_as_default=False) as client:
        client.register_plugin(Plant(), name="plant")
        monkeypatch.chdir(tmp_path)  # paths that the workers see from elsewhere
        batch = BatchConfig(cluster=cluster.scheduler_address, timeout_s=300)
        ledger = predict_folder([Path("scans")], threshold_model(400), Path("out"), batch=batch)
    assert "case killer-once: its worker died; it goes to another" in caplog.messages
    assert statuses(ledger) == {"a": "done", "b": "done", "empty": "rejected NIFTI-READ", "killer-once": "done"}
    here = BatchConfig(workers=0)
    predict_folder([Path("scans")], threshold_model(400), Path("local"), batch=here)
    assert masks(tmp_path / "local") == masks(tmp_path / "out")
    again = predict_folder([Path("scans")], threshold_model(400), Path("out"), batch=here)
    assert again.counts() == {"reused": 3, "rejected": 1}  # where it was computed makes no difference


class FakeFuture:
    """What a case on a worker ends as: an outcome, an error, or nothing when the worker dies."""

    def __init__(self, end: object) -> None:
        self.end = end
        self.status = "error" if isinstance(end, Exception) else "finished" if end else "pending"

    def done(self) -> bool:
        return self.status != "pending"

    def result(self, timeout: float) -> object:
        return self.end, None

    def exception(self) -> object:
        return self.end

    def cancel(self) -> None:
        pass


class FakeClient:
    """A cluster on which cases end as `ends` says; with a nanny, a worker that dies comes back under another name."""

    def __init__(self, ends: Callable[[Job, str], object], workers: Sequence[str], nanny: bool) -> None:
        self.workers = dict.fromkeys(workers, 1)
        self.ends = ends
        self.nanny = nanny
        self.given: list[tuple[str, str]] = []

    def nthreads(self) -> dict[str, int]:
        return dict(self.workers)

    def submit(
        self, function: object, name: str, job: Job, *rest: object, workers: list[str], **_: object
    ) -> FakeFuture:
        self.given.append((job.case.id, workers[0]))
        end = self.ends(job, workers[0])
        if end is None:
            self.workers.pop(workers[0], None)
            self.workers |= {f"{workers[0]}+": 1} if self.nanny else {}
        return FakeFuture(end)

    def cancel(self, futures: object) -> None:
        pass


def hand_out(
    folder: Path,
    names: Sequence[str],
    ends: Callable[[Job, str], object],
    workers: Sequence[str] = ("w1", "w2", "w3"),
    nanny: bool = False,
) -> tuple[FakeClient, list[Outcome]]:
    scans = [find_scans(nifti_case(folder, name, number))[0] for number, name in enumerate(names)]
    exact = PredictConfig(engine="torch", precision="fp32", device="cpu")  # nothing to prove: all workers begin at once
    predictor, client = Predictor(threshold_model(400), exact), FakeClient(ends, workers, nanny)
    model = predictor.model
    jobs = [
        Job(
            Case(scan.case_id, "", (scan,)),
            model.preparation,
            model.labels,
            model.hash,
            rules={},
            seen=None,
            dice_offsets={},
            names={},
            output=folder,
            staging=folder,
        )
        for scan in scans
    ]
    return client, list(_Cluster(client, "name", jobs, predictor, 60).run(lambda: False))


def test_a_case_that_killed_two_workers_is_not_given_to_a_third(tmp_path: Path) -> None:
    client, outcomes = hand_out(
        tmp_path, ["a", "bad", "c", "d"], lambda job, _: None if job.case.id == "bad" else Outcome(job, "done")
    )
    assert {o.job.case.id: f"{o.status} {o.code}".strip() for o in outcomes} == {
        "a": "done",
        "bad": "failed RUN-DIED",
        "c": "done",
        "d": "done",
    }
    assert len(outcomes) == 4
    assert len(client.workers) == 1
    assert isinstance(next(o for o in outcomes if o.code).remember, Failed)


def test_what_a_dead_worker_had_in_hand_is_tried_alone(tmp_path: Path) -> None:
    dead = ""

    def ends(job: Job, worker: str) -> object:
        nonlocal dead
        dead = worker if job.case.id == "bad" else dead
        return None if worker == dead else Outcome(job, "done")  # what else it has in hand dies with it

    client, outcomes = hand_out(tmp_path, ["bad", "b", "c", "d"], ends, ["w"], nanny=True)
    assert {o.job.case.id: f"{o.status} {o.code}".strip() for o in outcomes} == {
        "bad": "failed RUN-DIED",
        "b": "done",
        "c": "done",
        "d": "done",
    }
    assert client.given[:2] == [("bad", "w"), ("b", "w")]
    assert client.given[-2:] == [("bad", "w+"), ("b", "w++")]


def test_a_worker_that_cannot_work_is_left_out(tmp_path: Path) -> None:
    def ends(job: Job, worker: str) -> object:
        return RunError("RUN-CLUSTER", "", "does not see the scans") if worker != "w2" else Outcome(job, "done")

    client, outcomes = hand_out(tmp_path, ["a", "b", "c"], ends)
    assert sorted(o.job.case.id for o in outcomes) == ["a", "b", "c"]
    assert [worker for _, worker in client.given].count("w1") == 1
    with pytest.raises(RunError, match="no worker can work: does not see the scans"):
        hand_out(tmp_path, ["a"], lambda job, worker: RunError("RUN-CLUSTER", "", "does not see the scans"))


def test_a_cluster_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nifti_case(tmp_path, "a", 0)
    monkeypatch.setattr("medseg.cluster.PATIENCE_S", 1)
    batch = BatchConfig(cluster="tcp://127.0.0.1:9")  # discard: nobody listens
    with pytest.raises(RunError) as caught:
        predict_folder([tmp_path / "scans"], threshold_model(400), tmp_path / "out", batch=batch)
    assert caught.value.code == "RUN-CLUSTER"


def test_each_worker_takes_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    stacks = []
    for _ in range(4):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)  # each stands for a process of its own
        stacks.append(pinned(3, tmp_path))
        taken.append(os.environ.get("CUDA_VISIBLE_DEVICES"))
    assert taken == ["0", "1", "2", None]  # more workers than GPUs: the fourth sees all
    stacks[1].close()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    pinned(3, tmp_path)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    pinned(3, tmp_path)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"  # chosen by whoever started it
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    pinned(1, tmp_path)
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    for stack in stacks:
        stack.close()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_memory_is_used_again_in_spite_of_dasks_environment() -> None:
    code = (
        "import resource, numpy as np; from medseg.cluster_worker import keep_freed_memory as keep\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(20): np.ones(1 << 20)\n"  # 8 MiB: 2048 pages
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "a = faults(); keep(); faults(); print(a, faults())"
    )
    theirs = {**os.environ, "MALLOC_TRIM_THRESHOLD_": str(1 << 16)}
    done = subprocess.run([sys.executable, "-c", code], env=theirs, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after < before / 2, (before, after)


def test_the_script_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert predict_dask.main([]) == 2
    assert "python pipelines/predict_dask.py " in capsys.readouterr().out
