"""Reading beside other readers: the headers of many files, and the voxels of a large CT series.

python tests/benchmarks/reading.py files --count 5000 [--folder FOLDER] [--dcm2niix PATH]
python tests/benchmarks/reading.py voxels [--slices 300] [--size 512]

Each reader runs in a process of its own; processor seconds include the processes that it starts. Runs alternate and the
least of each is kept, so that other work on the machine matters little.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.uid import JPEG2000Lossless

from tests.phantoms import compress, save, series, set_pixels

SERIES = 20
"""Slices of each small series."""


# ---- what is read ---------------------------------------------------------------------------------------------------


def write_files(folder: Path, count: int, protocol_elements: int = 40) -> None:
    """Write small CT series: one series' bytes again and again, with other UIDs of the same length.

    A scanner's header has about 70 elements; the phantom's 31 are filled up with private text.
    """
    datasets = series(slices=SERIES, size=(32, 32))
    for dataset in datasets:
        block = dataset.private_block(0x0009, "PHANTOM", create=True)
        for element in range(protocol_elements):
            block.add_new(element, "LO", f"protocol value {element}")
    first = datasets[0]
    uids = [first.StudyInstanceUID, first.SeriesInstanceUID, first.FrameOfReferenceUID]
    with tempfile.TemporaryDirectory() as seed:
        contents = [path.read_bytes() for path in save(datasets, Path(seed))]
    for number in range(count // SERIES):
        place = folder / f"patient{number // 4:05d}" / f"series{number % 4}"
        place.mkdir(parents=True)
        for dataset, content in zip(datasets, contents, strict=True):
            for uid in (*uids, dataset.SOPInstanceUID):
                content = content.replace(uid.encode(), f"{uid[:-8]}.{number:07d}".encode())
            (place / f"IM{dataset.InstanceNumber:04d}.dcm").write_bytes(content)


def write_series(folder: Path, slices: int, size: int, syntax: str | None) -> None:
    """Write a CT series with smooth anatomy and noise, as a codec meets them."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    for number, dataset in enumerate(series(slices=slices, size=(2, 2))):
        body = 1000 * ((x**2 + (1.3 * y) ** 2) < 0.8) + 60 * np.sin(9 * x) * np.cos(7 * y)
        dataset.Rows = dataset.Columns = size
        set_pixels(dataset, np.rint(np.clip(body + rng.normal(24, 12, body.shape), 0, 4095)), signed=False)
        if syntax:
            compress([dataset], syntax)
        save([dataset], folder, name=lambda _, number=number: f"IM{number:04d}.dcm")


# ---- readers of headers ---------------------------------------------------------------------------------------------


def plain_loop(folder: Path) -> object:
    """Read headers with pydicom, and nothing more."""
    found = set()
    for here, _, names in os.walk(folder):
        for name in names:
            found.add(dcmread(Path(here) / name, stop_before_pixels=True).SeriesInstanceUID)
    return len(found)


def medseg_scan(folder: Path) -> object:
    """What `medseg scan` does, printing aside."""
    from medseg.listing import table_rows, to_text
    from medseg.scan import take_inventory

    rows = table_rows(take_inventory([folder]))
    return len(rows), len(to_text(rows)) > 0, {row.verdict for row in rows} == {"usable"}


# ---- readers of voxels ----------------------------------------------------------------------------------------------


def medseg_voxels(folder: Path) -> object:
    """List the series, check it, read it."""
    from medseg.scan import find_scans, read

    (scan,) = find_scans(folder)
    return read(scan).voxels


def simpleitk(folder: Path) -> object:
    """Read by SimpleITK's ImageSeriesReader."""
    import SimpleITK as sitk  # noqa: N813  its own name for itself

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return sitk.GetArrayFromImage(reader.Execute())


def monai_pydicom(folder: Path) -> object:
    """Read by MONAI's LoadImage with its PydicomReader."""
    from monai.transforms import LoadImage

    return LoadImage(reader="PydicomReader", image_only=True)(folder).numpy()


def monai_itk(folder: Path) -> object:
    """Read by MONAI's LoadImage with its ITKReader, which wants the package itk."""
    from monai.transforms import LoadImage

    return LoadImage(reader="ITKReader", image_only=True)(folder).numpy()


# ---- measuring ------------------------------------------------------------------------------------------------------

READERS: dict[str, Callable[[Path], object]] = {
    "pydicom loop": plain_loop,
    "medseg scan": medseg_scan,
    "medseg": medseg_voxels,
    "SimpleITK": simpleitk,
    "MONAI PydicomReader": monai_pydicom,
    "MONAI ITKReader": monai_itk,
}


def child(name: str, folder: Path, warm: Path) -> None:
    """Read once, and print what it took; libraries are imported before, by reading a small folder."""
    from medseg.io import workers

    READERS[name](warm)
    workers._end_all()
    before, start = processor_seconds(), time.perf_counter()
    result = READERS[name](folder)
    wall = time.perf_counter() - start
    workers._end_all()  # processes count when they have ended
    took = {"wall": wall, "cpu": processor_seconds() - before}
    took |= {"MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000}
    took |= {"MB each": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000}
    told = float(np.asarray(result, np.float64).sum()) if isinstance(result, np.ndarray) else result
    print(json.dumps({**took, "result": told}))


def processor_seconds() -> float:
    """Of this process and of those that it started and that ended."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def measure(name: str, folder: Path, warm: Path, cache: Path) -> dict[str, object] | None:
    """Run a reader in a process of its own; None when it cannot run here."""
    arguments = [sys.executable, __file__, "child", name, str(folder), str(warm)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    done = subprocess.run(arguments, capture_output=True, env=environment, check=False)
    if done.returncode:
        print(f"{name}: {done.stderr.decode().strip().splitlines()[-1]}")
        return None
    found: dict[str, object] = json.loads(done.stdout.decode().strip().splitlines()[-1])
    return found


def dcm2niix(program: str, folder: Path) -> dict[str, object]:
    """Let dcm2niix list the series of a folder (`-n -1`), converting nothing."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        command = [program, "-n", "-1", "-d", "9", "-o", out, str(folder)]
        subprocess.run(command, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": time.perf_counter() - start, "cpu": cpu, "result": "listed"}


def table(rows: dict[str, list[dict[str, object]]], first: str) -> None:
    """Print the least of each figure, and its ratio to the first row's."""
    for name, runs in rows.items():
        least = {key: min(float(str(run.get(key, "nan"))) for run in runs) for key in ("wall", "cpu", "MB", "MB each")}
        base = {key: min(float(str(run[key])) for run in rows[first]) for key in ("wall", "cpu")}
        ratios = " ".join(f"{key} {least[key]:8.2f} s ({least[key] / base[key]:5.2f})" for key in base)
        print(f"{name:22s} {ratios}  {least['MB']:6.0f} MB, {least['MB each']:4.0f} MB each  {runs[0]['result']}")


def files(arguments: argparse.Namespace, place: Path) -> None:
    """Compare listings: pydicom's loop, medseg's first and second, dcm2niix's."""
    folder, warm = arguments.folder or place / "files", place / "warm"
    write_files(warm, SERIES)
    if not arguments.folder:
        write_files(folder, arguments.count)
    rows: dict[str, list[dict[str, object]]] = {}
    for number in range(arguments.repeat):
        cache = place / f"cache{number}"
        for label, name in (("pydicom loop",) * 2, ("medseg, first", "medseg scan"), ("medseg, again", "medseg scan")):
            found = measure(name, folder, warm, cache)
            if found:
                rows.setdefault(label, []).append(found)
        if arguments.dcm2niix:
            rows.setdefault("dcm2niix", []).append(dcm2niix(arguments.dcm2niix, folder))
    table(rows, "pydicom loop")


SYNTAXES = {"uncompressed": None, "JPEG 2000": JPEG2000Lossless}


def voxels(arguments: argparse.Namespace, place: Path) -> None:
    """Compare the reading of a CT series, uncompressed and JPEG 2000."""
    for label in arguments.pixels:
        syntax = SYNTAXES[label]
        folder, warm = place / label, place / f"warm {label}"
        write_series(warm, 4, 64, syntax)
        write_series(folder, arguments.slices, arguments.size, syntax)
        rows: dict[str, list[dict[str, object]]] = {}
        for _ in range(arguments.repeat):
            for name in ("medseg", "SimpleITK", "MONAI PydicomReader", "MONAI ITKReader"):
                found = measure(name, folder, warm, place / "cache")
                if found:
                    rows.setdefault(name, []).append(found)
        print(f"{label}, {arguments.slices} slices of {arguments.size} x {arguments.size}")
        table(rows, "medseg")
        shutil.rmtree(folder)


def main(given: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["files", "voxels"])
    parser.add_argument("--count", type=int, default=5000, help="files to list")
    parser.add_argument("--folder", type=Path, help="list this folder instead")
    parser.add_argument("--dcm2niix", default=shutil.which("dcm2niix"))
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--pixels", nargs="+", choices=SYNTAXES, default=list(SYNTAXES))
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args(given)
    with tempfile.TemporaryDirectory() as place:
        (files if arguments.what == "files" else voxels)(arguments, Path(place))


if __name__ == "__main__":
    main()
