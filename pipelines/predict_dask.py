"""Segment a folder of scans on a Dask cluster that this script starts, here on one machine. Copy and edit.

python pipelines/predict_dask.py scans run masks 2

Another cluster takes the place of LocalCluster in one line: SLURMCluster of dask-jobqueue, SSHCluster, ... For one that
runs already, `medseg predict --cluster tcp://host:8786` is enough.
"""

from __future__ import annotations

import sys
from pathlib import Path

from distributed import LocalCluster

from medseg import BatchConfig, MedsegError, load_model, predict_folder


def main(arguments: list[str]) -> int:
    if len(arguments) != 4 or not arguments[3].isdigit():
        print(__doc__)
        return 2
    scans, model_folder, output = map(Path, arguments[:3])
    # A worker computes one case at a time; one for each GPU, or for every two or three cores.
    with LocalCluster(n_workers=int(arguments[3]), threads_per_worker=1, dashboard_address=None) as cluster:
        try:
            batch = BatchConfig(cluster=cluster.scheduler_address)
            ledger = predict_folder([scans], load_model(model_folder), output, batch=batch, watch=tell)
        except MedsegError as error:
            print(error, file=sys.stderr)
            return error.exit_code
    print(ledger.counts())
    return ledger.exit_code


def tell(stage: str, done: int, total: int, note: str = "") -> None:
    if note:
        print(note, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
