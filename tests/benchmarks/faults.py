"""What a user sees, and what is left, when the world breaks under `medseg predict`.

python tests/benchmarks/faults.py --work /tmp/faults --full /mnt/small --read-only /mnt/frozen

`--full` is a folder on a file system that a run fills (`mount -t tmpfs -o size=1m tmpfs /mnt/small`), `--read-only` one
on a file system mounted so; without them their part is left out. The command runs as users run it; crash and hang are
planted into the class that reads a case (`tests/fragile.py`), by the names of the scans.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from medseg.config.networks import UNetConfig
from medseg.errors import MedsegError
from medseg.io.atomic import PARTIAL_PREFIX
from medseg.io.nifti import read_mask
from medseg.ledger import read_rows
from tests.benchmarks.many_scans import make_model, make_scans

PLAIN = "from medseg.cli import main; main()"
FRAGILE = f"import medseg.one_case; from tests.fragile import Fragile; medseg.one_case.CaseWork = Fragile; {PLAIN}"


def predict(scans: Path, model: Path, out: Path, *options: str, program: str = PLAIN) -> subprocess.Popen[str]:
    """Start the command."""
    words = ["predict", str(scans), "--model", str(model), "-o", str(out), *options]
    return subprocess.Popen(
        [sys.executable, "-c", program, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def tell(what: str, process: subprocess.Popen[str], out: Path) -> None:
    """Wait for the command, and print what it said and what it left."""
    said, _ = process.communicate()
    print(f"\n=== {what}: exit code {process.returncode}\n{said.rstrip()}")
    masks, unreadable = sorted(out.glob("*.nii.gz")), 0
    for path in masks:
        try:
            read_mask(path)
        except MedsegError:
            unreadable += 1
    left = sum(path.name.startswith(PARTIAL_PREFIX) for path in out.iterdir()) if out.is_dir() else 0
    print(f"--- {len(masks)} masks, {unreadable} unreadable, {left} left half-written")
    try:
        print("---", {row.case: f"{row.status} {row.code}".strip() for row in read_rows(out / "cases.csv")})
    except (MedsegError, OSError, ValueError) as error:
        print(f"--- no ledger: {type(error).__name__}")


def fresh(folder: Path) -> Path:
    """Return a folder that is not there yet."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def planted(work: Path) -> None:
    """A codec that crashes, one that crashes once, a scan that hangs, one too large for the memory."""
    scans = fresh(work / "planted")
    scans.mkdir()
    sound = sorted((work / "scans").glob("*.nii.gz"))
    for number, name in enumerate(["a", "die", "b-once", "c", "hang", "memory", "d"]):
        shutil.copy(sound[number % len(sound)], scans / f"{name}.nii.gz")
    out = fresh(work / "planted_masks")
    for what in ("planted faults", "the same again"):
        process = predict(scans, work / "model", out, "--workers", "2", "--timeout", "15", program=FRAGILE)
        tell(f"{what} (--timeout 15)", process, out)
    tell("mended, --retry-failed", predict(scans, work / "model", out, "--retry-failed"), out)


def scheduler_restarted(work: Path) -> None:
    """The scheduler of a Dask cluster is killed, and another one started."""
    out = fresh(work / "cluster_masks")
    for kill in (True, False):
        address = "tcp://127.0.0.1:18786"
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        words = ["distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "18786", "--no-dashboard"]
        scheduler = subprocess.Popen([sys.executable, "-m", *words], **quiet)  # type: ignore[call-overload]
        words = ["distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard", "--death-timeout", "60"]
        worker = subprocess.Popen([sys.executable, "-m", *words], **quiet)  # type: ignore[call-overload]
        process = predict(work / "scans", work / "model", out, "--cluster", address)
        if kill:
            while process.poll() is None and len(list(out.glob("*.nii.gz"))) < 2:
                time.sleep(0.05)
            scheduler.kill()
        tell("scheduler killed" if kill else "scheduler started again, the same command", process, out)
        for each in (worker, scheduler):
            each.terminate()
            each.wait()


def killed_process(work: Path) -> None:
    """One of the processes that read and write is killed while it works."""
    out = fresh(work / "killed_masks")
    process = predict(work / "scans", work / "model", out, "--workers", "2")
    while process.poll() is None and len(list(out.glob("*.nii.gz"))) < 2:
        time.sleep(0.02)
    tasks = Path(f"/proc/{process.pid}/task").iterdir()
    children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    os.kill(children[-1], signal.SIGKILL)
    tell("a process killed (-9) at work", process, out)


def main() -> None:
    """Break one thing after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder to work in; made, and left")
    parser.add_argument("--full", type=Path)
    parser.add_argument("--read-only", type=Path)
    given = parser.parse_args()
    work = given.work
    if not (work / "scans").exists():
        make_scans(work / "scans", 12, 0, (0, 0, 0))
        make_model(work / "model", UNetConfig(widths=(8, 16), norm="instance"), precision="fp32")
    if given.full:
        out = fresh(given.full / "masks")
        tell("full disk", predict(work / "scans", work / "model", out), out)
        tell("the same again", predict(work / "scans", work / "model", out), out)
    if given.read_only:
        out = given.read_only / "masks"
        tell("read-only folder", predict(work / "scans", work / "model", out), out)
    killed_process(work)
    planted(work)
    scheduler_restarted(work)


if __name__ == "__main__":
    main()
