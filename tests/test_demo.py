"""`medseg demo`, small: the whole job on phantom patients, and what it earned."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.demo import DemoResult, run_demo
from medseg.errors import UsageError

FEW_STEPS = (
    "train.epochs=6",
    "train.steps_per_epoch=20",
    "data.validation=0.15",
    "model.widths=[12, 24, 48]",
    "augment.affine=0",
)
"""120 steps of a tiny network: a quarter of a minute on one core, and already far better than not looking."""


@pytest.fixture(scope="module")
def told() -> list[str]:
    return []


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, told: list[str]) -> DemoResult:
    def watch(stage: str, done: int, total: int, note: str = "") -> None:
        told.append(note)

    folder = tmp_path_factory.mktemp("demo") / "out"
    return run_demo(folder, patients=7, held_out=2, overrides=FEW_STEPS, watch=watch)


def test_the_broken_scan_is_rejected_and_the_others_done(result: DemoResult) -> None:
    rows = {row.case: (row.status, row.code) for row in result.ledger}
    assert rows == {
        "patient-08": ("done", ""),
        "patient-09": ("done", ""),
        "patient-10": ("rejected", "DICOM-GAP"),
    }


def test_dice_is_well_above_not_looking(result: DemoResult) -> None:
    assert result.report.mean_dice is not None
    assert result.report.mean_dice > result.baseline_dice + 0.1
    assert 0 < result.baseline_dice < 0.4


def test_masks_lie_on_their_references(result: DemoResult) -> None:
    for name in ("patient-08", "patient-09"):
        mask = nib.load(result.folder / "masks" / f"{name}.nii.gz")
        reference = nib.load(result.folder / "study" / "new_references" / f"{name}.nii.gz")
        assert mask.shape == reference.shape
        assert np.allclose(mask.affine, reference.affine, atol=1e-4)


def test_everything_that_the_summary_points_to_is_there(result: DemoResult) -> None:
    summary = result.summary()
    pointed = [Path(line.split()[0]) for line in summary.splitlines() if line.startswith("  ")]
    assert len(pointed) == 4
    assert all(path.exists() for path in pointed)
    assert f"{result.report.mean_dice:.3f}" in summary
    assert f"{result.baseline_dice:.3f}" in summary
    assert "patient-10" in summary
    for name in ("report.json", "scores.csv", "report.html"):
        assert (result.folder / "report" / name).stat().st_size > 0


def test_news_counts_the_stages(result: DemoResult, told: list[str]) -> None:
    assert [note[:3] for note in told if note[1:3] == "/4"] == ["1/4", "2/4", "3/4", "4/4"]


def test_never_into_a_folder_that_holds_something(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_text("years of work")
    with pytest.raises(UsageError) as caught:
        run_demo(tmp_path)
    assert caught.value.code == "USAGE-PATH"
