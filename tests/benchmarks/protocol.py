"""Three methods on one data set in equal time on one core: medseg's default, the document's recipe, nnU-Net's 2-D.

The configuration says where the scans and references are and how they are divided: `data.split` for one division,
`folds` for a cross-validation. One division, ten minutes, two seeds; then five folds (nnU-Net trains each fold for as
long as its share of the budget is). Without `data.split` each seed also divides the cases anew:

    python tests/benchmarks/protocol.py hippocampus.yaml --budget 10m --seeds 0 1 -o OUT
    python tests/benchmarks/protocol.py hippocampus.yaml --budget 50m --folds 5 -o OUT5

nnU-Net has an environment of its own (tests/benchmarks/nnunet_2d.py): `--methods nnunet --nnunet nnunet/bin/python
--masks MASKS`, with the references as `<case>.nii.gz`. It starts from the division of a medseg run, so it comes after.

Everything is pinned to one core, where a second of an idle machine is a CPU second. For medseg and the document's
recipe the budget holds everything from reading the scans to the report; for nnU-Net its iterations alone. All masks are
scored by `medseg evaluate` against the same references. Finished runs are kept: the same command again adds what is
missing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from medseg.config.duration import seconds

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "configs" / "seed.yaml"


def run(command: list[str], log: Path) -> float:
    """Run a command; return the CPU seconds of all its processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with log.open("a") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT)
    if done.returncode not in (0, 3):  # 3: some cases could not be used, which the data sets here have
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}, see {log}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def configured(args: argparse.Namespace, method: str) -> Path:
    """Write the data set's configuration with the recipe of a method."""
    config: dict[str, Any] = yaml.safe_load(args.config.read_text())
    for key in ("scans", "references", "split"):
        if key in config["data"]:
            config["data"][key] = str((args.config.parent / config["data"][key]).resolve())
    if method == "document":
        recipe = yaml.safe_load(DOCUMENT.read_text())
        del recipe["train"]["epochs"]  # as many as fit
        config |= recipe
    path: Path = args.output / f"{method}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def train(args: argparse.Namespace, method: str, seed: int) -> tuple[Path, float]:
    """Train and predict by medseg; return the masks of the held-out cases and the CPU seconds used."""
    folder: Path = args.output / f"{method}-{seed}"
    masks, noted = folder / "validation" / "masks", folder / "cpu_seconds"
    if noted.is_file():
        return masks, float(noted.read_text())
    command = ["train", str(configured(args, method)), f"budget={args.budget}", f"seed={seed}", "train.device=cpu"]
    command += [f"folds={args.folds}"] if args.folds else []
    used = run([sys.executable, "-m", "medseg", *command, "-o", str(folder)], args.output / f"{method}.log")
    noted.write_text(str(used))
    return masks, used


def nnunet(args: argparse.Namespace) -> tuple[Path, float]:
    """Train and predict by nnU-Net on the division of the first medseg run; return masks and CPU seconds."""
    divided = args.output / f"medseg-{args.seeds[0]}"
    config = yaml.safe_load(configured(args, "nnunet").read_text())
    scans, masks = args.output / "scans", args.output / "nnunet-masks"
    used = run(
        [sys.executable, "-m", "medseg", "convert", config["data"]["scans"], "-o", str(scans)],
        args.output / "convert.log",
    )
    folds = [divided / f"fold-{number}" for number in range(1, args.folds + 1)] or [divided]
    masks.mkdir(exist_ok=True)
    for fold in folds:
        split = config["data"].get("split") if fold == divided else fold / "split.json"
        place = args.output / f"nnunet-{fold.name}"
        share = seconds(args.budget) / len(folds)
        command = [args.nnunet, str(HERE / "nnunet_2d.py"), "--scans", str(scans), "--masks", str(args.masks)]
        command += ["--split", str(split), "--cpu-seconds", str(share), "-o", str(place)]
        used += run(command, args.output / "nnunet.log")
        for mask in (place / "masks").glob("*.nii.gz"):
            (masks / mask.name).unlink(missing_ok=True)
            (masks / mask.name).hardlink_to(mask)
    return masks, used


def row(args: argparse.Namespace, name: str, masks: Path, used: float) -> str:
    """Score masks; return a line of the table."""
    references = next(args.output.glob("*-*/validation/references"))  # of whichever run was first: all hold the same
    labels = ",".join(yaml.safe_load(args.config.read_text())["labels"])
    place = args.output / f"scored-{name}"
    command = ["evaluate", "--masks", str(masks), "--references", str(references), "--labels", labels, "-o", str(place)]
    run([sys.executable, "-m", "medseg", *command], args.output / "scores.log")
    results = json.loads((place / "report.json").read_text())["results"]
    dice = [next(one for one in result["summaries"] if one["metric"] == "dice") for result in results]
    mean = sum(one["mean"] for one in dice) / len(dice)
    each = ", ".join(f"{one['label']} {one['mean']:.3f} (median {one['median']:.3f})" for one in dice)
    floor = sum(result["floor"]["mean_dice"] for result in results) / len(results)
    return f"| {name} | {used:.0f} | {mean:.3f} | {each} | {floor:.2f} |"


def main() -> None:
    """Run the methods and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--methods", nargs="+", default=["medseg", "document"], help="of: medseg document nnunet")
    parser.add_argument("--budget", default="10m")
    parser.add_argument("--folds", type=int, default=0)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--nnunet", default="python", help="of an environment that has nnunetv2")
    parser.add_argument("--masks", type=Path, help="references as NIfTI, for nnU-Net")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    if "nnunet" in args.methods and args.masks is None:
        parser.error("nnunet needs --masks: the references as <case>.nii.gz")
    args.output = args.output.resolve()
    args.output.mkdir(parents=True, exist_ok=True)
    os.sched_setaffinity(0, {args.core})
    os.environ["OMP_NUM_THREADS"] = "1"
    print("| method, seed | CPU seconds | mean Dice | labels | floor |\n|---|---|---|---|---|", flush=True)
    for method in args.methods:
        if method == "nnunet":
            print(row(args, method, *nnunet(args)), flush=True)
            continue
        for seed in args.seeds:
            print(row(args, f"{method}-{seed}", *train(args, method, seed)), flush=True)


if __name__ == "__main__":
    main()
