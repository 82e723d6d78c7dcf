"""A small study that several files train on, each its own copy."""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg.check import Examination, examine
from tests.studies import nifti_study, settings


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nifti_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def found(study: Path) -> Examination:
    return examine(settings(study))
