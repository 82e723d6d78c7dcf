"""Train a model, from a configuration file to a run folder. Copy and edit.

python pipelines/train.py study.yaml run train.epochs=20
"""

from __future__ import annotations

import sys
from pathlib import Path

from medseg import MedsegError, load, train


def main(arguments: list[str]) -> int:
    if len(arguments) < 2:
        print(__doc__)
        return 2
    config_file, run_folder, *overrides = arguments
    try:
        config = load(Path(config_file), overrides)
        # A run that was stopped goes on where it was; a new one starts.
        result = train(config, Path(run_folder), resume=True, watch=tell)
    except MedsegError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(result.summary())
    return 3 if result.left_out else 0


def tell(stage: str, done: int, total: int, note: str = "") -> None:
    if note:
        print(note, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
