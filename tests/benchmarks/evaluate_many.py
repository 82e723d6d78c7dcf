"""`evaluate` on many cases: processor time, memory, and the size of what it writes.

    python tests/benchmarks/evaluate_many.py --cases 1000 --shape 160 160 64

Each reference is an ellipsoid of random size and place with a few specks, each mask the same moved by a voxel or two;
one case in fifty has no mask, one in fifty an empty reference.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from medseg.grid import Grid
from medseg.io.nifti import write_mask
from medseg.volume import Mask

AFFINE = np.diag([-0.9, -0.9, 3.0, 1.0])

WORK = "import sys; from pathlib import Path; from medseg.report import evaluate; evaluate(*map(Path, sys.argv[1:4]))"


def make(folder: Path, cases: int, shape: tuple[int, int, int]) -> None:
    """Write masks and references."""
    rng, grid = np.random.default_rng(0), Grid(shape, AFFINE)
    axes = np.ogrid[tuple(slice(-1, 1, 1j * n) for n in shape)]
    for n in range(cases):
        place, size = rng.uniform(-0.4, 0.4, 3), rng.uniform(0.06, 0.35) * rng.uniform(0.6, 1.4, 3)
        wanted = sum(((x - p) / s) ** 2 for x, p, s in zip(axes, place, size, strict=True)) < 1
        wanted |= rng.random(shape) < 2e-6
        found = np.roll(wanted, rng.integers(-2, 3, 3), (0, 1, 2))
        if n % 50 == 1:
            wanted = np.zeros(shape, bool)
        write_mask(folder / "references" / f"case-{n:04}.nii.gz", Mask(wanted.astype(np.uint8), grid))
        if n % 50 != 0:
            write_mask(folder / "masks" / f"case-{n:04}.nii.gz", Mask(found.astype(np.uint8), grid))


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--shape", type=int, nargs=3, default=[160, 160, 64])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        i, j, k = given.shape
        make(folder, given.cases, (i, j, k))
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", WORK, folder / "masks", folder / "references", folder / "out"], check=True
        )
        wall, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        sizes = ", ".join(
            f"{file.name} {file.stat().st_size / 1e6:.1f} MB" for file in sorted((folder / "out").iterdir())
        )
        print(
            f"{given.cases} cases of {i} x {j} x {k}: {used.ru_utime + used.ru_stime:.0f} s of processor time, "
            f"{wall:.0f} s in all, at most {used.ru_maxrss / 1024:.0f} MB; {sizes}"
        )


if __name__ == "__main__":
    main()
