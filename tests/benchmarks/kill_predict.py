"""Kill a run of `medseg predict` at random moments, start it again each time, and look at what is left.

python tests/benchmarks/kill_predict.py --kills 20 --work /tmp/kill

A watcher opens every mask that appears under a final name. At the end all masks must equal those of an unbroken run, no
case may be computed again after it was recorded, and nothing half-written may be left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from medseg.config.networks import UNetConfig
from medseg.errors import MedsegError
from medseg.io.atomic import PARTIAL_PREFIX
from medseg.io.nifti import read_mask
from medseg.ledger import read_rows
from tests.benchmarks.many_scans import make_model, make_scans


def start(work: Path, out: Path) -> subprocess.Popen[bytes]:
    """Start the command as users do, with two processes that read and write."""
    words = ["predict", str(work / "scans"), "--model", str(work / "model"), "-o", str(out), "--workers", "2"]
    call = [sys.executable, "-c", "from medseg.cli import main; main()", *words]
    return subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def recorded(out: Path) -> list[str]:
    """Return the cases that the run remembers as finished."""
    path = out / "run.json"
    return list(json.loads(path.read_text())["finished"]) if path.exists() else []


def stamps(out: Path, cases: Iterable[str]) -> dict[str, int]:
    """Return when each case's mask was written: a mask that is computed again is written again."""
    return {case: (out / f"{case}.nii.gz").stat().st_mtime_ns for case in cases}


def masks(folder: Path) -> dict[str, bytes]:
    """Return the masks of a folder."""
    return {path.name: path.read_bytes() for path in folder.glob("*.nii.gz")}


def look(out: Path, seen: dict[str, int], broken: list[str]) -> None:
    """Open every mask that is new, and both records: whatever has its final name must be whole."""
    for path in out.glob("*.nii.gz"):
        stamp = path.stat().st_mtime_ns
        if seen.get(path.name) != stamp:
            seen[path.name] = stamp
            try:
                read_mask(path)
            except MedsegError as error:
                broken.append(str(error))
    for name in ("run.json", "cases.csv"):
        try:
            if (out / name).exists():
                json.loads((out / name).read_text()) if name == "run.json" else read_rows(out / name)
        except ValueError as error:
            broken.append(f"{name}: {error}")


def main() -> None:
    """Kill and start again, then compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--scans", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True, help="folder to work in; made, and left")
    given = parser.parse_args()
    whole, out, chance = given.work / "whole", given.work / "masks", random.Random(given.seed)
    if not (given.work / "scans").exists():
        make_scans(given.work / "scans", given.scans, 0, (0, 0, 0))
        make_model(given.work / "model", UNetConfig(widths=(8, 16), norm="instance"), precision="fp32")
    for folder in (whole, out):
        shutil.rmtree(folder, ignore_errors=True)
    begun = time.perf_counter()
    start(given.work, whole).wait()
    length = time.perf_counter() - begun
    first = min(path.stat().st_mtime for path in whole.glob("*.nii.gz"))
    last = max(path.stat().st_mtime for path in whole.glob("*.nii.gz"))
    lead = length - (last - first)
    seen: dict[str, int] = {}
    broken: list[str] = []
    killed = repeated = 0
    while killed < given.kills and len(recorded(out)) < given.scans:
        # From the start of the program to a little way into its cases: in all, the kills fall over the whole run.
        moment = chance.uniform(0.3 * lead, lead + 1.5 * (last - first) / given.kills)
        before = stamps(out, recorded(out))
        process, begun = start(given.work, out), time.perf_counter()
        while process.poll() is None and time.perf_counter() - begun < moment:
            look(out, seen, broken)
            time.sleep(0.02)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
        look(out, seen, broken)
        repeated += sum(stamps(out, before)[case] != stamp for case, stamp in before.items())
        print(f"after {moment:.1f} s: {len(recorded(out))} of {given.scans} recorded", flush=True)
    before = stamps(out, recorded(out))
    start(given.work, out).wait()
    repeated += sum(stamps(out, before)[case] != stamp for case, stamp in before.items())
    equal = masks(whole) == masks(out)
    left = [path.name for path in out.iterdir() if path.name.startswith(PARTIAL_PREFIX)]
    print(
        f"{killed} killed; all masks equal: {equal}; recorded and computed again: {repeated}; "
        f"unreadable under a final name: {len(broken)}; left half-written: {len(left)}"
    )
    sys.exit(0 if equal and not repeated and not broken and not left else 1)


if __name__ == "__main__":
    main()
