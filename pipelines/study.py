"""A whole study: train, predict new scans, score them against their references. Copy and edit.

python pipelines/study.py study.yaml new_scans new_references output train.epochs=20
"""

from __future__ import annotations

import sys
from pathlib import Path

from medseg import MedsegError, evaluate, load, load_model, predict_folder, train


def main(arguments: list[str]) -> int:
    if len(arguments) < 4:
        print(__doc__)
        return 2
    config_file, scans, references, output = map(Path, arguments[:4])
    try:
        # 1. Train. A run that was stopped goes on; a finished one is only read.
        trained = train(load(config_file, arguments[4:]), output / "run", resume=True, watch=tell)

        # 2. Predict. Cases that are done already, with this model, are not done again.
        model = load_model(trained.folder)
        ledger = predict_folder([scans], model, output / "masks", watch=tell)

        # 3. Score. References pair with masks by their names, and are compared by geometry first.
        report = evaluate(output / "masks", references, output / "report", labels=model.labels)
    except MedsegError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(report.summary())
    print(f"report: {output / 'report' / 'report.html'}")
    return ledger.exit_code if ledger.exit_code or report.complete else 3


def tell(stage: str, done: int, total: int, note: str = "") -> None:
    if note:
        print(note, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
