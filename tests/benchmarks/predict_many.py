"""Hundreds of scans by one command: is every case accounted for, how much memory, how much beside the network.

python tests/benchmarks/predict_many.py --scale 0.1 --work /tmp/many

At scale 1: 200 scans of about 20 slices, 10 of them broken, and one of 512 x 512 x 400. The command runs as users run
it, from code that is compiled already, as an installed package is. The network alone is timed on slices of the same
sizes, in batches of the same size; a plain loop (`plain_loop.py`) runs on a part, a program too, and so does nnU-Net's
predictor, when `--nnunet` names the python of an environment that has `nnunetv2` (in float32, which is
all that it does on a processor; medseg then too).
"""

from __future__ import annotations

import argparse
import compileall
import csv
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import torch

import medseg
from medseg.config.networks import UNetConfig
from medseg.models.model_folder import load_model
from medseg.prediction import Predictor
from medseg.scan import find_scans
from tests.benchmarks.many_scans import DEFAULT, make_model, make_scans

STEPS = 40
CASES, BROKEN, LARGE = 200, 10, (512, 512, 400)


class Peak(threading.Thread):
    """Watches a process and its children: proportional set size, which counts shared pages once."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.bytes = 0
        self.parts: dict[str, int] = {}

    def run(self) -> None:
        """Look until the process is gone."""
        while Path(f"/proc/{self.pid}").exists():
            found = {pid: _pss(pid) for pid in _family(self.pid)}
            if sum(found.values()) > self.bytes:
                self.bytes, self.parts = sum(found.values()), {str(pid): size for pid, size in found.items()}
            time.sleep(0.25)  # adding up the pages takes time itself


def _family(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []
    return [pid, *(member for child in children for member in _family(child))]


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0


def command(scans: Path, model: Path, out: Path, options: list[str]) -> tuple[float, float, int, Peak]:
    """Run `medseg predict`; returns as `timed`."""
    words = ["predict", str(scans), "--model", str(model), "-o", str(out), *options]
    return timed([sys.executable, "-c", "from medseg.cli import main; main()", *words])


def timed(words: list[str]) -> tuple[float, float, int, Peak]:
    """Run a program; return wall seconds, processor seconds, exit code and the peak of memory."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    compiled = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, env=compiled)
    peak = Peak(process.pid)
    peak.start()
    code = process.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, used, code, peak


def one_of(scans: Path, work: Path) -> Path:
    """Return a folder with one scan: what a run costs before it comes to its scans."""
    return _folder_of([min(scans.glob("scan_*.nii.gz"), default=scans / "large.nii.gz")], work / "one_scan")


def network_alone(predictor: Predictor, shapes: list[tuple[int, int, int]], most: int) -> tuple[float, float]:
    """Return wall and processor seconds that the network needs for all slices of some scans, by a part of them."""
    wall = used = 0.0
    batch = predictor.config.batch_size
    sizes: Counter[tuple[int, int]] = Counter()
    for rows, columns, slices in shapes:
        sizes[rows, columns] += slices
    for (rows, columns), slices in sizes.items():
        images = torch.randn(batch, 3, rows, columns)
        predictor.outputs(images)
        rounds = max(1, min(most, slices // batch))
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(rounds):
            predictor.outputs(images)
        share = slices / (rounds * batch)
        wall += (time.perf_counter() - start) * share
        used += (time.process_time() - cpu) * share
    return wall, used


def main() -> None:
    """Make the scans, predict them, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the scans, and of the large one's slices")
    parser.add_argument("--work", type=Path, required=True, help="folder to work in; made, and left")
    parser.add_argument("--large", type=int, default=None, help="slices of the large scan")
    parser.add_argument("--tiny", action="store_true", help="a network of two channels: memory beside the network")
    parser.add_argument("--part", type=int, default=10, help="scans of the plain loop and of nnU-Net")
    parser.add_argument("--nnunet", type=Path, help="python of an environment that has nnunetv2")
    parser.add_argument("options", nargs="*", help="more options of medseg predict, after --")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    compileall.compile_dir(medseg.__path__[0], quiet=2)
    scans, out = given.work / "scans", given.work / "masks"
    count, broken = round(CASES * given.scale) - round(BROKEN * given.scale), max(4, round(BROKEN * given.scale))
    if not scans.exists():
        slices = given.large if given.large is not None else round(LARGE[2] * given.scale)
        make_scans(scans, count, broken, (*LARGE[:2], slices))
        network = UNetConfig(widths=(2, 2)) if given.tiny else DEFAULT
        make_model(given.work / "model", network, precision="bf16", steps=0 if given.tiny else STEPS)
    _fresh(out)
    first = one_of(scans, given.work)
    start_wall, start_used, _, _ = command(first, given.work / "model", _fresh(given.work / "one"), [])
    wall, used, code, peak = command(scans, given.work / "model", out, given.options)
    with (out / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    run = json.loads((out / "run.json").read_text())
    print(f"exit code {code}; {dict(Counter(row['status'] for row in rows))}; {len(rows)} rows")
    print(
        f"memory at the peak: {peak.bytes / 1e6:.0f} MB in {len(peak.parts)} processes: "
        f"{[round(size / 1e6) for size in peak.parts.values()]}"
    )
    print(f"seconds by stage: {run['seconds_by_stage']}")
    done = {row["case"] for row in rows if row["status"] == "done"}
    usable = [scan for scan in find_scans(scans) if scan.case_id in done]
    shapes = [(scan.grid.shape[1], scan.grid.shape[0], scan.grid.shape[2]) for scan in usable if scan.grid]
    model = load_model(given.work / "model")
    alone, alone_cpu = network_alone(Predictor(model), shapes, 4)
    area = sum(r * c * n for r, c, n in shapes) / 512**2
    print(f"a run with one scan: wall {start_wall:.1f} s, processor {start_used:.1f} s")
    print(f"wall {wall:.1f} s, of the network alone {alone:.1f} s: {wall / alone:.2f}")
    beside = 1000 * (used - start_used - alone_cpu) / area
    print(f"processor {used:.1f} s, of the network alone {alone_cpu:.1f} s; the rest, without what a run with one scan")
    print(f"takes, for a slice of 512 x 512 ({area:.0f} of them): {beside:.1f} ms")
    small = [scan.path for scan in usable if scan.case_id != "large"]
    if not small or not given.part:
        return
    against_loop(small[:: max(1, len(small) // given.part)][: given.part], given.work, (start_wall, start_used))
    if given.nnunet:
        fit = {
            scan.path for scan in usable if scan.grid and scan.grid.shape[:2] == (256, 256)
        }  # one patch of nnU-Net's
        against_nnunet(
            [path for path in small if path in fit and path.is_file()][: given.part], given.nnunet, given.work
        )


def against_loop(part: list[Path], work: Path, start: tuple[float, float]) -> None:
    """Print what medseg and a plain loop take for some scans.

    Args:
        part: the scans.
        work: the folder to work in.
        start: wall and processor seconds of a run of medseg with one scan.
    """
    some, out = _folder_of(part, work / "part"), _fresh(work / "plain")
    mine = command(some, work / "model", _fresh(work / "part_masks"), [])
    program = Path(__file__).with_name("plain_loop.py")
    theirs = timed([sys.executable, str(program), str(some), "--model", str(work / "model"), "-o", str(out)])
    scans = json.loads((out / "seconds.json").read_text())
    print(f"{len(part)} scans: medseg {mine[0]:.1f} s, {mine[1]:.1f} s of processor; ", end="")
    print(f"a plain loop {theirs[0]:.1f} s, {theirs[1]:.1f} s of processor")
    print(f"  the loop to medseg, both with their start: {theirs[0] / mine[0]:.2f}, {theirs[1] / mine[1]:.2f};")
    print(f"  the loop without its start to medseg: {scans['wall'] / mine[0]:.2f}, {scans['processor'] / mine[1]:.2f};")
    # A run with one scan holds the start and the proof of the engine, and that scan.
    alone = [(whole - first) / (len(part) - 1) for whole, first in zip(mine[:2], start, strict=True)]
    each = [scans[kind] / len(part) for kind in ("wall", "processor")]
    print(f"  for each further scan: {each[0] / alone[0]:.2f}, {each[1] / alone[1]:.2f}")


def against_nnunet(part: list[Path], python: Path, work: Path) -> None:
    """Print what medseg and nnU-Net take for some scans, both in float32."""
    some = _folder_of(part, work / "part_256")
    program = Path(__file__).with_name("nnunet_predict.py")
    mine = command(some, work / "model", _fresh(work / "part_256_masks"), ["--precision", "fp32"])
    theirs = timed([str(python), str(program), str(some), "-o", str(_fresh(work / "nnunet"))])
    for name, (wall, used, code, peak) in {"medseg, fp32": mine, "nnU-Net": theirs}.items():
        print(f"{len(part)} scans of 256 x 256, {name}: {wall:.1f} s, {used:.1f} s of processor, code {code}, ", end="")
        print(f"{peak.bytes / 1e6:.0f} MB in {len(peak.parts)} processes")
    print(f"  ratio of wall time {theirs[0] / mine[0]:.2f}, of processor time {theirs[1] / mine[1]:.2f}")


def _folder_of(paths: list[Path], folder: Path) -> Path:
    _fresh(folder).mkdir()
    for path in paths:
        (folder / path.name).symlink_to(path.resolve())
    return folder


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder


if __name__ == "__main__":
    main()
