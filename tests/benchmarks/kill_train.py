"""Kill `medseg train` by SIGKILL at random moments and in the middle of its writing, resume, and compare the ends.

OMP_NUM_THREADS=2 python tests/benchmarks/kill_train.py --kills 10 --work /tmp/kill

Each time a new run on phantom patients is started as users do, killed once, looked at and resumed. Whatever has its
final name must be whole; in the end weights, metrics and masks must equal those of an unbroken run bit for bit, and
nothing half-written may be left.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from medseg.errors import MedsegError
from medseg.io.atomic import PARTIAL_PREFIX
from medseg.models.model_folder import load_model
from medseg.phantom import make_study
from medseg.training.checkpoint import load_checkpoint

SETTINGS = (
    "data.validation=0.34",
    "model.widths=[8,16,32]",
    "train.epochs=6",
    "train.steps_per_epoch=4",
    "train.batch_size=4",
    "train.precision=fp32",
    "train.overlays=2",
)

WRITING = {
    "slices are prepared": ("prepared/*/", 3),
    "a checkpoint is written": ("checkpoints/", 2),
    "references to score are written": ("validation/references/", 1),
    "masks to score are written": ("validation/masks/", 0),
}
"""Moment -> where something half-written is then to be seen, and how many of it to pass over."""


def start(study: Path, run: Path) -> subprocess.Popen[bytes]:
    """Start or resume a run as users do."""
    places = [f"data.scans={study / 'training'}", f"data.references={study / 'training_references'}"]
    recipe = Path(__file__).parents[2] / "configs" / "default.yaml"
    words = ["train", str(recipe), *places, *SETTINGS, "-o", str(run), "--resume"]
    call = [sys.executable, "-c", "from medseg.cli import main; main()", *words]
    return subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill_after(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Kill after some time; return whether it was still at work."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def kill_while_writing(process: subprocess.Popen[bytes], run: Path, place: str, skip: int) -> bool:
    """Kill when a half-written file is seen in a place, passing over the first ones; return whether it came to that."""
    seen: set[Path] = set()
    while process.poll() is None:
        seen.update(run.glob(f"{place}{PARTIAL_PREFIX}*"))
        if len(seen) > skip:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.001)
    return False


def look(run: Path) -> tuple[str, list[str]]:
    """Return how far a run has come, and what is broken under a final name."""
    where, broken = "before the run began", []
    try:
        if (run / "config.yaml").exists():
            where = "before the first checkpoint"
        if (run / "checkpoints" / "last.pt").exists():
            state = load_checkpoint(run / "checkpoints" / "last.pt")
            where = f"after epoch {state['epoch']}"
        if (run / "model" / "model.yaml").exists():
            load_model(run)
            where = "with the model written"
    except MedsegError as error:
        broken.append(str(error))
    return where, broken


def halves(run: Path) -> list[Path]:
    """Return what is half-written."""
    return list(run.rglob(f"{PARTIAL_PREFIX}*"))


def differing(run: Path, whole: Path) -> list[str]:
    """Name what is not the same in two finished runs."""
    names = ["model/weights.safetensors"]
    names += [str(path.relative_to(whole)) for path in whole.glob("validation/masks/*.nii.gz")]
    found = [name for name in names if (run / name).read_bytes() != (whole / name).read_bytes()]
    return found + (["metrics.csv"] if metrics(run) != metrics(whole) else [])


def metrics(run: Path) -> list[dict[str, str]]:
    """Return the rows of `metrics.csv` without what was measured by the clock."""
    with (run / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in ("seconds", "waiting")} for row in csv.DictReader(file)]


def main() -> None:
    """Kill, resume, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="at random moments, before those in the midst of writing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True, help="folder to work in; made, and left")
    given = parser.parse_args()
    chance, study = random.Random(given.seed), given.work / "study"
    if not study.exists():
        make_study(study, patients=6, held_out=1)
    runs = given.work / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    whole = runs / "whole" / "run"  # each in a folder of its own: runs beside each other share their slices
    began = time.perf_counter()
    start(study, whole).wait()
    length = time.perf_counter() - began
    print(f"unbroken: {length:.0f} s", flush=True)
    faults = killed = 0
    for name in [*(f"random {number}" for number in range(1, given.kills + 1)), *WRITING]:
        run = runs / name.replace(" ", "-") / "run"
        process = start(study, run)
        if name in WRITING:
            done = kill_while_writing(process, run, *WRITING[name])
        else:
            done = kill_after(process, chance.uniform(0.2, 1.0) * length)
        left = len(halves(run))
        where, broken = look(run)
        start(study, run).wait()
        different = differing(run, whole)
        remaining = halves(run)
        print(
            f"{name}: {'killed' if done else 'was finished'} {where}, {left} half-written; resumed: "
            f"{'equal' if not different else f'differs in {different}'}, {len(remaining)} half-written",
            flush=True,
        )
        killed += done
        faults += bool(broken or different or remaining)
    print(f"{killed} killed; {faults} ended otherwise than the unbroken run, or left something broken")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
