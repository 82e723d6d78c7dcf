"""What each part of the recipe is worth: the default beside the same with one thing changed, on several data sets.

    python tests/benchmarks/ablation.py hippocampus.yaml sarcoma.yaml --steps 600 --seeds 0 1 --cores 0 1 -o OUT

Each run takes the same number of slices (in steps of 12, or of what its configuration sets), validates once, at the
end (so that no epoch is chosen on the cases that it is scored on), and has one thread on a core of its own. Its score
is the mean Dice of the held-out cases on their own grids.
Without `data.split` each seed also divides the cases anew.
Finished runs are kept: the same command again adds what is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

CHANGES: dict[str, tuple[str, ...]] = {
    "as it comes": (),
    "AdamW": ("train.optimizer=adamw",),
    "batch of 6, twice the steps": ("train.batch_size=6",),
    "cross-entropy alone": ("train.loss=cross_entropy",),
    "slices as they come": ("train.foreground=null",),
    "no average of the weights": ("train.average=null",),
    "no clipping of gradients": ("train.clip_gradient=null",),
    "twice the learning rate": ("train.learning_rate=0.002",),
    "SGD as nnU-Net's": (
        "train.optimizer=sgd",
        "train.schedule=polynomial",
        "train.learning_rate=0.01",
        "train.weight_decay=0.00003",
        "train.clip_gradient=12",
    ),
    "constant learning rate": ("train.schedule=constant",),
    "no changes of intensity": ("augment.intensity=0", "augment.blur=0", "augment.low_resolution=0"),
    "no spatial changes": (
        "augment.affine=0",
        "augment.elastic=0",
        "augment.mirror=0",
        "augment.mirror_rows=0",
    ),
    "no neighbouring slices": ("prepare.context=0",),
    "batch normalisation": ("model.norm=batch",),
    "residual blocks": ("model.residual=true",),
    "deep supervision": ("model.deep_supervision=true",),
    "Dice alone": ("train.loss=dice",),
}
"""What is changed, by name."""

USUAL_BATCH = 12
"""Slices in a step that `--steps` counts; with fewer of them there are more steps, so that every run sees as many."""

DEFAULT_MODEL = ("model.norm=instance", "model.activation=leaky_relu", "model.widths=null")
"""A configuration with a `model` section has the plain network otherwise."""


@dataclass(frozen=True)
class Run:
    """One training run."""

    config: Path
    name: str
    seed: int

    def folder(self, output: Path) -> Path:
        """Return the run folder; runs on one data set lie beside each other and share prepared slices."""
        return output / self.config.stem / f"{self.name.replace(' ', '-')}-{self.seed}"


def train(run: Run, core: int, args: argparse.Namespace) -> None:
    """Train on one core, unless that is done."""
    folder = run.folder(args.output)
    if (folder / "validation" / "report.json").is_file():
        return
    settings = yaml.safe_load(run.config.read_text())
    batch = (settings.get("train") or {}).get("batch_size") or USUAL_BATCH
    changes = [f"train.batch_size={batch}", *CHANGES[run.name]]
    batch = next(int(one.split("=")[1]) for one in reversed(changes) if one.startswith("train.batch_size="))
    model = [*DEFAULT_MODEL, *changes] if any(one.startswith("model.") for one in changes) else changes
    steps = args.steps * USUAL_BATCH // batch // args.epochs
    fixed = [f"train.epochs={args.epochs}", f"train.steps_per_epoch={steps}", f"train.validate_every={args.epochs}"]
    command = [sys.executable, "-m", "medseg", "train", str(run.config), *fixed, "train.overlays=0", f"seed={run.seed}"]
    resume = ["--resume"] if (folder / "config.yaml").is_file() else []
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("a") as log:
        done = subprocess.run(
            [*command, *model, "-o", str(folder), *resume],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
    if done.returncode not in (0, 3):  # 3: some cases could not be used
        print(f"{folder}: exit code {done.returncode}", file=sys.stderr)


def mean_dice(folder: Path) -> float | None:
    """Return the mean over labels and held-out cases; None when the run is not finished."""
    report = folder / "validation" / "report.json"
    if not report.is_file():
        return None
    results = json.loads(report.read_text())["results"]
    means = [one["mean"] for result in results for one in result["summaries"] if one["metric"] == "dice"]
    return float(sum(means) / len(means))


def cell(scores: Sequence[float | None]) -> str:
    """Show the scores of all seeds."""
    return ", ".join(f"{score:.3f}" for score in scores if score is not None)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", type=Path, nargs="+")
    parser.add_argument("--changes", nargs="+", default=list(CHANGES), choices=list(CHANGES))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--epochs", type=int, default=4, help="in which the steps are told")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--cores", type=int, nargs="+", default=[0], help="a run at a time on each")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    args.output = args.output.resolve()
    waiting: queue.SimpleQueue[Run] = queue.SimpleQueue()
    for name in args.changes:
        for seed in args.seeds:
            for config in args.configs:
                waiting.put(Run(config.resolve(), name, seed))

    def work(core: int) -> None:
        while True:
            try:
                run = waiting.get_nowait()
            except queue.Empty:
                return
            train(run, core, args)

    workers = [threading.Thread(target=work, args=(core,)) for core in args.cores]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print(f"| | {' | '.join(config.stem for config in args.configs)} |\n|---|{'---|' * len(args.configs)}")
    for name in args.changes:
        cells = [
            cell([mean_dice(Run(config, name, seed).folder(args.output)) for seed in args.seeds])
            for config in args.configs
        ]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
