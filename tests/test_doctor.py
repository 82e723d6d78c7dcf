"""`medseg doctor`: what is there, what is missing, and what to do; nothing that is missing stops it."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
from typing import Any

import pytest

from medseg import doctor


def test_this_machine_runs_the_tests_so_its_packages_are_well() -> None:
    found = {checkup.what: checkup for checkup in doctor.examine()}
    assert found["packages"].good
    assert "torch" in found["packages"].found
    assert {"python", "processor", "gpu", "memory", "disk", "codec openjpeg"} <= set(found)


def test_missing_and_old_packages_have_a_line_each() -> None:
    well, missing, old = doctor._packages(
        ["numpy>=2.0", "nosuchpackage>=3", "pydantic>=9999.1", 'foo; extra == "test"']
    )
    assert well.found.startswith("numpy ")
    assert well.good
    assert str(missing) == "MISS  nosuchpackage: not installed. pip install 'nosuchpackage>=3'"
    assert (old.what, old.good) == ("pydantic", False)
    assert old.found.endswith(", wanted 9999.1")


@pytest.mark.parametrize(
    ("older", "newer"), [("2.9", "2.10"), ("2.13.0+cpu", "2.14"), ("3.0.1", "3.1rc1"), ("2.9.9", "3")]
)
def test_versions_compare_by_numbers(older: str, newer: str) -> None:
    assert doctor._numbers(older) < doctor._numbers(newer)


def test_equal_versions_are_equal() -> None:
    assert doctor._numbers("2.0") == doctor._numbers("2.0.0") == doctor._numbers("2")


def test_missing_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = doctor._codec("openjpeg", doctor.CODECS["openjpeg"])
    assert str(found).startswith(
        "MISS  codec openjpeg: not installed, JPEG 2000 and HTJ2K cannot be read. pip install "
    )


def test_torch_that_does_not_start_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # import torch: ImportError
    (found,) = doctor._torch()
    assert (found.what, found.good) == ("torch", False)


def test_gpu_that_torch_cannot_use_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    _, gpu = doctor._torch()
    assert not gpu.good
    assert "cannot use it" in gpu.found


def test_read_only_and_full_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, 2**30))
    assert doctor._disk().advice == "Work in a folder with 5 GiB or more."
    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    assert doctor._disk().found == "the current folder cannot be written (Read-only file system)"
