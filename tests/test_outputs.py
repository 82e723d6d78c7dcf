"""An output folder: what is ours is known, what is not ours is left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medseg.convert import convert
from medseg.errors import UsageError
from medseg.grid import Grid
from medseg.io.nifti import write_volume
from medseg.outputs import claim, outside
from medseg.scan import take_inventory
from medseg.volume import Volume


def scan_file(path: Path) -> Path:
    voxels = np.arange(24, dtype=np.int16).reshape(1, 2, 3, 4)
    write_volume(path, Volume(voxels, Grid((2, 3, 4), np.eye(4))))
    return path


def test_results_are_no_scans_but_scans_are_never_dropped(tmp_path: Path) -> None:
    scan_file(tmp_path / "in" / "a.nii.gz")
    out = tmp_path / "in" / "out"
    for _ in range(2):
        assert [row.case for row in convert([tmp_path / "in"], out)] == ["a"]
    scan_file(out / "mine.nii.gz")
    with pytest.raises(UsageError, match="holds the scans") as caught:
        outside(take_inventory([tmp_path / "in"]), [tmp_path / "in"], out)
    assert caught.value.code == "USAGE-PATH"


def test_a_foreign_file_is_not_overwritten(tmp_path: Path) -> None:
    scan_file(tmp_path / "in" / "a.nii.gz")
    mine = tmp_path / "out" / "a.nii.gz"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    with pytest.raises(UsageError, match="would be overwritten"):
        convert([tmp_path / "in"], mine.parent)
    assert mine.read_bytes() == b"mine"


def test_two_commands_do_not_share_a_folder(tmp_path: Path) -> None:
    claim(tmp_path, "convert", ["a.nii.gz"])
    claim(tmp_path, "convert", ["b.nii.gz"])
    with pytest.raises(UsageError, match="results of medseg convert"):
        claim(tmp_path, "predict", ["a.nii.gz"])
