"""Engines beside eager torch in float32: processor time for a slice, and Dice to its masks on real scans.

python tests/benchmarks/engines.py --models run-default run-unet --scans held_out/ --threads 1

Random weights would measure ties of random logits: give trained models, and scans of the kind that they take; int8 is
left out for a model without recorded ranges. Times are
seconds of processor time of all threads, the least of several rounds in turn, so that other work on the machine does
little to them.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medseg.engines import FASTEST_FIRST, Compute, Engine, installed, start
from medseg.models.model_folder import Model, load_model
from medseg.prepare import labels_of, prepared_blocks
from medseg.scan import find_scans, read
from medseg.slices import pad_to
from medseg.volume import Volume

CPU = torch.device("cpu")
ROUNDS = 4
SLICES = 2


def main() -> None:
    """Print one row for each network: seconds and ratios, then Dice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="+", required=True)
    parser.add_argument("--scans", type=Path, nargs="*", default=[], help="for the Dice")
    parser.add_argument("--size", type=int, default=512, help="rows and columns of the slices that are timed")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    volumes = [read(scan) for scan in find_scans(*given.scans) if scan.usable] if given.scans else []
    for path in given.models:
        model = load_model(path)
        computes = ways(model)
        seconds = times(computes, torch.randn(SLICES, model.description.in_channels, given.size, given.size))
        print(f"{path.name}, {given.threads} threads, {given.size} x {given.size}")
        dice = {
            name: [dice_of(model, compute, computes["eager fp32"], v) for v in volumes]
            for name, compute in computes.items()
        }
        for name, each in seconds.items():
            told = f"; Dice {np.mean(dice[name]):.5f}, lowest {np.min(dice[name]):.5f}" if volumes else ""
            print(f"  {name}: {each:.3f} s a slice, {seconds['eager fp32'] / each:.2f}{told}", flush=True)


def ways(model: Model) -> dict[str, Compute]:
    """Return eager float32 as torch has it by itself, then every engine."""
    network = copy.deepcopy(model.networks[0])

    @torch.inference_mode()
    def eager(images: Tensor) -> Tensor:
        logits: Tensor = network(images)
        return logits

    found: dict[str, Compute] = {"eager fp32": eager}
    ranges = model.description.ranges
    for name, precision in reversed(FASTEST_FIRST):
        if installed(name) and (precision != "int8" or ranges):
            engine = Engine(name=name, precision=precision, version="")
            found[f"{name} {precision}"] = start(engine, model.networks[0], CPU, ranges[0] if ranges else None)
    return found


def times(computes: dict[str, Compute], images: Tensor) -> dict[str, float]:
    """Return the seconds of processor time for one slice."""
    rounds: dict[str, list[float]] = {name: [] for name in computes}
    for _ in range(ROUNDS):
        for name, compute in computes.items():
            begin = time.process_time()
            compute(images)
            rounds[name].append((time.process_time() - begin) / len(images))
    return {name: min(seconds) for name, seconds in rounds.items()}


def dice_of(model: Model, compute: Compute, eager: Compute, volume: Volume) -> float:
    """Return the lowest Dice of any label between the masks of a volume."""
    both, own = np.zeros(256), np.zeros(256)
    for block in prepared_blocks(volume, model.preparation, block=8):
        padded, (rows, columns) = pad_to(block.images, model.description.patch)
        masks = [labels_of(each(padded))[..., rows, columns].numpy() for each in (compute, eager)]
        both += np.bincount(masks[0][masks[0] == masks[1]], minlength=256)
        own += sum(np.bincount(mask.ravel(), minlength=256) for mask in masks)
    labels = [number for number, _ in model.labels if own[number]]
    return float(min(2 * both[labels] / own[labels], default=1.0))


if __name__ == "__main__":
    main()
