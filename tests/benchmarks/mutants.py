"""Break the geometry on purpose, one sign or transpose at a time, and see whether a test notices.

python tests/benchmarks/mutants.py            all of them: some 10 minutes of one core
python tests/benchmarks/mutants.py dicom_seg  those whose file is named so

Works on a copy in a temporary folder. Prints one line for each: caught, with the first test that failed, or SURVIVED.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SERIES = "tests/io/test_dicom.py -k normal_or_simpleitk_or_shear_or_doors_or_orientation"
PIXELS = "tests/io/test_dicom.py -k simpleitk"
GRID = "tests/test_grid.py"
NIFTI = "tests/io/test_nifti.py -k agrees_or_baseline_or_byte_or_comes_back_or_forms_or_qform_or_pair"
SEG = "tests/io/test_dicom_seg.py"
STRUCTURES = "tests/io/test_rtstruct.py"
WRITTEN = "tests/io/test_dicom_write.py"
MOSAIC = "tests/io/test_dicom_gauntlet.py -k mosaic"
GAUNTLET = "tests/io/test_dicom_gauntlet.py -k axial_or_oblique_or_enhanced_or_own_or_words"

MUTANTS: list[tuple[str, str, str, str]] = [
    # file below medseg/, what stands there, what stands there instead, the tests
    ("io/dicom_geometry.py", "np.diag([-1.0, -1.0, 1.0, 1.0])", "np.diag([1.0, -1.0, 1.0, 1.0])", SERIES),
    ("io/dicom_geometry.py", "np.diag([-1.0, -1.0, 1.0, 1.0])", "np.diag([-1.0, 1.0, 1.0, 1.0])", SERIES),
    ("io/dicom_geometry.py", "np.diag([-1.0, -1.0, 1.0, 1.0])", "np.diag([-1.0, -1.0, -1.0, 1.0])", SERIES),
    ("io/dicom_geometry.py", "np.diag([-1.0, -1.0, 1.0, 1.0])", "np.diag([1.0, 1.0, 1.0, 1.0])", SERIES),
    ("io/dicom_geometry.py", "LPS_TO_RAS @ affine", "affine @ LPS_TO_RAS", SERIES),
    ("io/dicom_geometry.py", "np.cross(row, column)", "np.cross(column, row)", SERIES),
    ("io/dicom_geometry.py", "np.argsort(along", "np.argsort(-along", SERIES),
    (
        "io/dicom_geometry.py",
        "[frame[0] * between_columns, frame[1] * between_rows, step]",
        "[frame[0] * between_rows, frame[1] * between_columns, step]",
        SERIES,
    ),
    (
        "io/dicom_geometry.py",
        "[frame[0] * between_columns, frame[1] * between_rows, step]",
        "[frame[1] * between_rows, frame[0] * between_columns, step]",
        SERIES,
    ),
    (
        "io/dicom_geometry.py",
        "[frame[0] * between_columns, frame[1] * between_rows, step], axis=1",
        "[frame[0] * between_columns, frame[1] * between_rows, step], axis=0",
        SERIES,
    ),
    ("io/dicom_geometry.py", "frame[1] * between_rows, step]", "frame[1] * between_rows, -step]", SERIES),
    ("io/dicom_geometry.py", "frame[1] * between_rows, step]", "-frame[1] * between_rows, step]", SERIES),
    ("io/dicom_geometry.py", "affine[:3, 3] = first", "affine[:3, 3] = positions[-1]", SERIES),
    ("io/dicom_geometry.py", "Grid((columns, rows, len(frames))", "Grid((rows, columns, len(frames))", SERIES),
    ("io/dicom_geometry.py", "mean(axis=0) + n[0] * step", "mean(axis=0) - n[0] * step", SERIES),
    ("io/dicom.py", "np.transpose(stack)[None]", "np.transpose(stack)[None, ::-1]", PIXELS),
    ("io/dicom.py", "np.transpose(stack)[None]", "np.transpose(stack)[None, :, ::-1]", PIXELS),
    ("io/dicom.py", "np.transpose(stack)[None]", "np.transpose(stack)[None, :, :, ::-1]", PIXELS),
    ("io/dicom.py", "np.transpose(stack)[None]", "np.transpose(stack, (1, 2, 0))[None]", PIXELS),
    ("io/dicom_pixels.py", 'order = "<" if pixels.little_endian else ">"', 'order = ">"', PIXELS),
    (
        "io/dicom_pixels.py",
        "np.add(values, holder(plus), out=values)",
        "np.subtract(values, holder(plus), out=values)",
        PIXELS,
    ),
    ("io/dicom_pixels.py", '(words, ">u2").astype("<u2")', '(words, "<u2").astype("<u2")', GAUNTLET),
    ("io/dicom_pixels.py", "divmod(number, pixels.tiles)", "divmod(number, pixels.tiles)[::-1]", MOSAIC),
    ("io/dicom_mosaic.py", "right * (wide / 2)", "right * (high / 2)", MOSAIC),
    ("io/dicom_mosaic.py", "centres - right", "centres + right", MOSAIC),
    ("io/dicom_mosaic.py", "+ right * (columns - wide)", "- right * (columns - wide)", MOSAIC),
    (
        "io/dicom_mosaic.py",
        "whole.spacing[1], column * whole.spacing[0]",
        "whole.spacing[0], column * whole.spacing[1]",
        MOSAIC,
    ),
    ("io/dicom_frames.py", "spacing=(spacing[0], spacing[1])", "spacing=(spacing[1], spacing[0])", SERIES),
    ("grid.py", "self.affine[:3, :3].T + self.affine[:3, 3]", "self.affine[:3, :3] + self.affine[:3, 3]", GRID),
    ("grid.py", "self.affine[:3, :3].T + self.affine[:3, 3]", "self.affine[:3, :3].T - self.affine[:3, 3]", GRID),
    ("grid.py", "inverse[:3, :3].T + inverse[:3, 3]", "inverse[:3, :3] + inverse[:3, 3]", GRID),
    ("grid.py", "matrix[axis, out] = -1 if flip else 1", "matrix[axis, out] = 1 if flip else -1", GRID),
    ("grid.py", "matrix[axis, out]", "matrix[out, axis]", GRID),
    ("grid.py", "self.shape[axis] - 1 if flip", "self.shape[axis] if flip", GRID),
    ("grid.py", "self.affine @ matrix", "matrix @ self.affine", GRID),
    (
        "grid.py",
        "io_orientation(np.linalg.inv(other.affine) @ self.affine)",
        "io_orientation(self.affine @ other.affine)",
        GRID,
    ),
    ("grid.py", "(step - 1) / 2", "(1 - step) / 2", GRID),
    ("grid.py", "bool(move[axis, 1] < 0)", "bool(move[axis, 1] > 0)", GRID),
    (
        "grid.py",
        "slice(None, None, -1) if flip else slice(None)",
        "slice(None) if flip else slice(None, None, -1)",
        GRID,
    ),
    ("grid.py", "self.axes.index(a) for a in range(3)", "self.axes[a] for a in range(3)", GRID),
    ("io/nifti.py", 'reshape(header.grid.shape, order="F")', 'reshape(header.grid.shape, order="C")', NIFTI),
    ("io/nifti.py", 'tobytes(order="F")', 'tobytes(order="C")', NIFTI),
    ("io/nifti.py", "raw.byteswap(inplace=True)", "raw", NIFTI),
    ("io/nifti_header.py", '*= -1 if header["pixdim"][0] < 0 else 1', '*= 1 if header["pixdim"][0] < 0 else -1', NIFTI),
    ("io/nifti_header.py", '*= -1 if header["pixdim"][0] < 0 else 1', "*= 1", NIFTI),
    (
        "io/nifti_header.py",
        "w2_thresh=np.finfo(np.float32).eps)) * zooms",
        "w2_thresh=np.finfo(np.float32).eps)).T * zooms",
        NIFTI,
    ),
    ("io/nifti_header.py", "header.set_sform(grid.affine, code=1)", "header.set_sform(-grid.affine, code=1)", NIFTI),
    (
        "io/nifti_header.py",
        'header["qoffset_x"], header["qoffset_y"]',
        'header["qoffset_y"], header["qoffset_x"]',
        NIFTI,
    ),
    ("io/dicom_objects.py", "* (-1.0, -1.0, 1.0)", "* (1.0, -1.0, 1.0)", SEG),
    ("io/dicom_objects.py", "* (-1.0, -1.0, 1.0)", "* (-1.0, 1.0, 1.0)", STRUCTURES),
    ("io/dicom_objects.py", "* (-1.0, -1.0, 1.0)", "* (-1.0, -1.0, -1.0)", STRUCTURES),
    (
        "io/dicom_objects.py",
        "cosines[0] * spacing[1]), ras(cosines[1] * spacing[0])",
        "cosines[0] * spacing[0]), ras(cosines[1] * spacing[1])",
        SEG,
    ),
    (
        "io/dicom_objects.py",
        "cosines[0] * spacing[1]), ras(cosines[1] * spacing[0])",
        "cosines[1] * spacing[0]), ras(cosines[0] * spacing[1])",
        SEG,
    ),
    ("io/dicom_seg.py", 'bitorder="little"', 'bitorder="big"', SEG),
    ("io/dicom_seg.py", "for step in (row_step, column_step)", "for step in (column_step, row_step)", SEG),
    (
        "io/dicom_seg.py",
        "np.arange(rows) * int(whole[0, row_axis])",
        "np.arange(rows) * abs(int(whole[0, row_axis]))",
        SEG,
    ),
    (
        "io/dicom_seg.py",
        "np.arange(columns) * int(whole[1, column_axis])",
        "np.arange(columns) * abs(int(whole[1, column_axis]))",
        SEG,
    ),
    ("io/dicom_seg.py", "(across, row_axis, column_axis),", "(across, column_axis, row_axis),", SEG),
    ("io/rtstruct.py", "points[member][:, in_plane]", "points[member][:, in_plane[::-1]]", STRUCTURES),
    ("io/rtstruct.py", "order.inverse.apply(voxels)", "order.apply(voxels)", STRUCTURES),
    ("io/rtstruct.py", "np.moveaxis(voxels, axis, 0)", "np.moveaxis(voxels, 0, axis)", STRUCTURES),
    ("io/polygons.py", "(row - low[edge, 0]) * slope", "(row + low[edge, 0]) * slope", STRUCTURES),
    ("io/polygons.py", "np.add.at(toggles, (row, column), 1)", "np.add.at(toggles, (column, row), 1)", STRUCTURES),
    (
        "io/dicom_write.py",
        "decimals([grid.spacing[1], grid.spacing[0]])",
        "decimals([grid.spacing[0], grid.spacing[1]])",
        WRITTEN,
    ),
    ("io/dicom_write.py", "decimals(lps(directions.T))", "decimals(lps(directions))", WRITTEN),
    ("io/dicom_write.py", "decimals(lps(directions.T))", "decimals(directions.T)", WRITTEN),
    ("io/dicom_write.py", "lps(grid.to_world([0, 0, k]))", "grid.to_world([0, 0, k])", WRITTEN),
]


NO_SHRINKING = """
from hypothesis import Phase, settings
settings.register_profile("mutants", phases=[Phase.explicit, Phase.generate])
settings.load_profile("mutants")
"""
"""A failure is enough; its smallest example is not needed."""


def outcome(folder: Path, tests: str) -> str:
    """Run some tests in a folder, until one fails."""
    path, _, words = tests.partition(" -k ")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-o", "addopts=", path]
    command += ["-k", words.replace("_or_", " or ")] if words else []
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    failed = re.search(r"^(?:FAILED|ERROR) \S*?::(.*?)(?: - .*)?$", done.stdout, re.MULTILINE)
    return f"caught by {failed[1]}" if failed else "SURVIVED" if done.returncode == 0 else "not run"


def main() -> None:
    """Try each mutant on a copy of the code."""
    survived = 0
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    with tempfile.TemporaryDirectory(prefix="medseg-mutants-") as place:
        folder = Path(place)
        for name in ("medseg", "tests"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        with (folder / "tests" / "conftest.py").open("a", encoding="utf-8") as conftest:
            conftest.write(NO_SHRINKING)
        for file, before, after, tests in MUTANTS:
            if wanted not in file:
                continue
            path = folder / "medseg" / file
            whole = path.read_text(encoding="utf-8")
            if whole.count(before) != 1:
                raise SystemExit(f"{file}: {before!r} stands there {whole.count(before)} times, wanted once")
            path.write_text(whole.replace(before, after), encoding="utf-8")
            told = outcome(folder, tests)
            path.write_text(whole, encoding="utf-8")
            survived += told == "SURVIVED"
            print(f"{file}: {before}  ->  {after}: {told}", flush=True)
    print(f"{survived} of {sum(wanted in mutant[0] for mutant in MUTANTS)} survived")


if __name__ == "__main__":
    main()
