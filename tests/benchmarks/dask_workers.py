"""Dask: two workers against one, one of them killed midway, and the masks beside those of a local run.

python tests/benchmarks/dask_workers.py --work /tmp/dask

Each worker computes with one thread; seconds are those of `run.json`, from the first case on, the start of the cluster
left out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import torch
from distributed import Client, LocalCluster

from medseg.batch import predict_folder
from medseg.config.settings import BatchConfig
from medseg.models.model_folder import load_model
from tests.benchmarks.many_scans import make_model, make_scans


def on_cluster(work: Path, out: Path, workers: int, kill_after: int | None = None) -> float:
    """Predict on so many workers; kill one when so many masks are there."""
    shutil.rmtree(out, ignore_errors=True)
    alone = {"threads_per_worker": 1, "dashboard_address": None, "env": {"OMP_NUM_THREADS": "1"}}
    with LocalCluster(n_workers=workers, **alone) as cluster, Client(cluster, set_as_default=False) as client:
        if kill_after is not None:
            pids = client.run(os.getpid)
            threading.Thread(target=_kill, args=(min(pids.values()), out, kill_after), daemon=True).start()
        batch = BatchConfig(cluster=cluster.scheduler_address)
        ledger = predict_folder([work / "scans"], load_model(work / "model"), out, batch=batch)
    print(f"  {ledger.counts()}")
    return float(json.loads((out / "run.json").read_text())["seconds"])


def _kill(pid: int, out: Path, after: int) -> None:
    while len(list(out.glob("*.nii.gz"))) < after:
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)


def masks(folder: Path) -> dict[str, bytes]:
    """Return the masks of a folder."""
    return {path.name: path.read_bytes() for path in folder.glob("*.nii.gz")}


def main() -> None:
    """Run locally, on one worker, on two, and on two of which one dies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=24)
    parser.add_argument("--work", type=Path, required=True, help="folder to work in; made, and left")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not (given.work / "scans").exists():
        make_scans(given.work / "scans", given.scans, 0, (0, 0, 0))
        make_model(given.work / "model", precision="fp32", steps=10)
    local = given.work / "local"
    shutil.rmtree(local, ignore_errors=True)
    predict_folder([given.work / "scans"], load_model(given.work / "model"), local, batch=BatchConfig(workers=1))
    print(f"local: {json.loads((local / 'run.json').read_text())['seconds']:.1f} s")
    wanted, seconds = masks(local), {}
    for workers, kill in ((1, None), (2, None), (2, given.scans // 3)):
        out = given.work / f"on_{workers}{'_killed' if kill else ''}"
        seconds[workers, kill] = on_cluster(given.work, out, workers, kill)
        told = f", one killed after {kill} masks" if kill else ""
        print(
            f"{workers} workers{told}: {seconds[workers, kill]:.1f} s; masks equal: {masks(out) == wanted}", flush=True
        )
    print(f"two against one: {seconds[1, None] / seconds[2, None]:.2f}")


if __name__ == "__main__":
    main()
