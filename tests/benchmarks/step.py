"""A training step beside the loop that the document writes: same network, same batches, by turns in one run.

OMP_NUM_THREADS=1 python tests/benchmarks/step.py --work /tmp/step
OMP_NUM_THREADS=1 python tests/benchmarks/step.py --work /tmp/step --config hippocampus.yaml

The document's loop is plain torch in fp32, with a DataLoader in front. Times are by the clock, and of processor time,
which others on the machine change less. Each loop runs once more in a process of its own for its peak memory. Then two
runs start beside each other, up to their first step: the second finds what the first one measured and prepared. Last,
the default network: how much of its step is convolution.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, IterableDataset

from medseg.config import Config, load
from medseg.models import build
from medseg.phantom import make_study
from medseg.progress import silent
from medseg.training import train
from medseg.training.cases import Prepared, prepare_cases
from medseg.training.data import TrainingSlices
from medseg.training.loop import LoopOptions, fit

CPU = torch.device("cpu")
WARM_UP = 3
KINDS = ("document", "medseg fp32", "medseg bf16")
BEGAN = time.perf_counter()

Tick = tuple[float, float]
"""Seconds by the clock and of processor time."""


def now() -> Tick:
    """Look at both clocks."""
    return time.perf_counter(), time.process_time()


class Batches(IterableDataset[tuple[Tensor, Tensor]]):
    """The batches of medseg's own loop, for a DataLoader."""

    def __init__(self, data: TrainingSlices, steps: int) -> None:
        self.data, self.count = data, steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Make them one after the other."""
        return (self.data.batch(0, step) for step in range(self.count))


def document(cases: Prepared, data: TrainingSlices, steps: int) -> list[Tick]:
    """Train as the document does; return the time of each step."""
    plan = cases.plan
    model = build(plan.config.model, plan.preparation.in_channels, plan.out_channels)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    ticks = []
    for images, masks in DataLoader(Batches(data, steps), batch_size=None):
        loss = criterion(model(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ticks.append(now())
    return ticks


def ours(cases: Prepared, data: TrainingSlices, precision: torch.dtype, folder: Path) -> tuple[list[Tick], float]:
    """Train as medseg does, for one epoch; return the time of each step, and the share of waiting for data."""
    plan, ticks = cases.plan, []
    network = build(plan.config.model, plan.preparation.in_channels, plan.out_channels)

    def watch(stage: str, done: int, total: int, note: str = "") -> None:
        if stage.startswith("epoch"):
            ticks.append(now())

    config = plan.config.train.model_copy(update={"epochs": 1})
    fitted = fit(network, data, None, config, LoopOptions(folder, CPU, precision, watch=watch))
    return ticks, fitted.epochs[0].waiting


def one(kind: str, cases: Prepared, steps: int, folder: Path) -> tuple[Tick, float]:
    """Run one loop; return the time of a step, and the share of waiting (NaN for the document's)."""
    plan, waiting = cases.plan, float("nan")
    config = plan.config.train.model_copy(update={"steps_per_epoch": steps})
    data = TrainingSlices(cases.store, config, plan.config.augment, plan.preparation.context, 0)
    if kind == "document":
        ticks = document(cases, data, steps)
    else:
        precision = torch.bfloat16 if kind.endswith("bf16") else torch.float32
        ticks, waiting = ours(cases, data, precision, folder)
    (wall, cpu), (last_wall, last_cpu) = ticks[WARM_UP - 1], ticks[-1]
    timed = len(ticks) - WARM_UP
    return ((last_wall - wall) / timed, (last_cpu - cpu) / timed), waiting


def seed_recipe(work: Path, given: Path | None) -> Config:
    """Return the document's recipe on the phantoms, or on the scans of a configuration."""
    recipe = Path(__file__).parents[2] / "configs" / "seed.yaml"
    if given is None:
        study = work / "study"
        if not study.exists():
            make_study(study, patients=10, held_out=1)
        return load(recipe, [f"data.scans={study / 'training'}", f"data.references={study / 'training_references'}"])
    own = load(given)
    own_data = {"data": own.data, "labels": own.labels, "ignore": own.ignore}
    return load(recipe).model_copy(update=own_data)


def compare(cases: Prepared, given: argparse.Namespace) -> None:
    """Run the three loops by turns and say what a step takes."""
    size, batch = cases.plan.config.train.patch, cases.plan.config.train.batch_size
    assert batch is not None
    print(f"document's network, {batch} slices of {size} in a step, {torch.get_num_threads()} thread(s)")
    times: dict[str, list[Tick]] = {kind: [] for kind in KINDS}
    waits: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(given.rounds):
        for kind in KINDS:
            took, waiting = one(kind, cases, given.steps, given.work / "loop")
            times[kind].append(took)
            waits[kind].append(waiting)
    for kind in KINDS:
        ratios = [sorted(a[n] / b[n] for a, b in zip(times["document"], times[kind], strict=True)) for n in (0, 1)]
        wall, cpu = (ratio[len(ratio) // 2] for ratio in ratios)
        least = min(took[1] for took in times[kind])
        print(
            f"{kind:12} {batch / least:6.2f} slices a processor second; as fast as the document's: {wall:.2f} by the "
            f"clock ({ratios[0][0]:.2f} to {ratios[0][-1]:.2f}), {cpu:.2f} in processor time "
            f"({ratios[1][0]:.2f} to {ratios[1][-1]:.2f}); waiting {100 * max(waits[kind]):.2f} % at most",
            flush=True,
        )


def peak_mb() -> float:
    """Return the most memory that this process held: Linux's own count, since `getrusage` counts the parent's too."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def again(given: argparse.Namespace, *words: str) -> str:
    """Run this script in a process of its own; return its last line."""
    call = [
        sys.executable,
        "-m",
        "tests.benchmarks.step",
        "--work",
        str(given.work),
        "--steps",
        str(given.steps),
        *words,
    ]
    call += ["--config", str(given.config)] if given.config else []
    return subprocess.run(call, check=True, capture_output=True, text=True).stdout.splitlines()[-1]


class Begun(Exception):  # noqa: N818  not an error
    """The first step was made."""


def begin(config: Config, folder: Path) -> None:
    """Start a run, stop after its first step, and say when it came."""
    stages: dict[str, float] = {}

    def watch(stage: str, done: int, total: int, note: str = "") -> None:
        stages[stage] = time.perf_counter() - BEGAN
        if stage.startswith("epoch"):
            raise Begun

    try:
        train(config, folder, watch=watch)
    except Begun:
        print("; ".join(f"{stage} until {seconds:.1f} s" for stage, seconds in stages.items()))


def profiled(cases: Prepared, given: argparse.Namespace) -> None:
    """Say what the default network's step is made of."""
    run: Callable[[], object] = lambda: one("medseg bf16", cases, WARM_UP + 3, given.work / "loop")  # noqa: E731
    run()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        run()
    rows = sorted(seen.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    print("default network, bf16: " + ", ".join(f"{r.key} {r.self_cpu_time_total / total:.0%}" for r in rows[:8]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder to work in; made, and left")
    parser.add_argument("--config", type=Path, help="data and labels to train on; phantoms when absent")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=KINDS, help="run one loop and tell its peak memory")
    parser.add_argument("--begin", type=Path, help="start a run into this folder up to its first step")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    config = seed_recipe(given.work, given.config)
    if given.begin:
        begin(config, given.begin)
        return
    cases = prepare_cases(config, given.work / "run", CPU, silent)
    if given.only:
        one(given.only, cases, given.steps, given.work / "loop")
        print(f"{peak_mb():.0f} MB")
        return
    compare(cases, given)
    for kind in KINDS:
        print(f"{kind:12} peak memory {again(given, '--only', kind)}", flush=True)
    runs = given.work / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    for name in ("first", "second"):
        print(f"{name} run, from its start: {again(given, '--begin', str(runs / name))}", flush=True)
    plain = Config(data=config.data, labels=config.labels, ignore=config.ignore)
    profiled(prepare_cases(plain, given.work / "default", CPU, silent), given)


if __name__ == "__main__":
    main()
