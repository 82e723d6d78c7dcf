"""Training on volumes that were annotated in part: what nobody looked at teaches nothing and is scored nowhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from medseg.augment import fit_patch, random_state
from medseg.config import AugmentConfig, TrainConfig
from medseg.errors import RunError
from medseg.io.nifti import read_mask, write_mask
from medseg.models import Network
from medseg.store import Entry, SliceStore
from medseg.training import train
from medseg.training.data import TrainingSlices, VolumeDice
from medseg.volume import UNANNOTATED, Mask
from tests.studies import nifti_study, settings, stored_labels, voxels


def stored(folder: Path, masks: np.ndarray) -> SliceStore:
    """A store of one case whose images are its masks."""
    folder.mkdir()
    np.save(folder / "masks.npy", masks)
    np.save(folder / "images.npy", masks[:, None].astype(np.float16))
    blank = tuple(np.flatnonzero((masks == UNANNOTATED).all(axis=(1, 2))).tolist())
    slices = {1: tuple(np.flatnonzero((masks == 1).any(axis=(1, 2))).tolist())}
    n, h, w = masks.shape
    return SliceStore({"a": Entry("a", folder, (n, 1, h, w), slices, blank)}, {})


def partly() -> np.ndarray:
    """Six slices: 0 and 4 are not annotated, half of 2 is not, 1 to 3 hold the label."""
    masks = np.zeros((6, 8, 8), np.uint8)
    masks[1:4, 2:5, 3:6] = 1
    masks[0] = masks[4] = UNANNOTATED
    masks[2, :4] = UNANNOTATED
    return masks


@pytest.mark.parametrize("share", [None, 0.5])
def test_slices_without_annotation_are_never_drawn(tmp_path: Path, share: float | None) -> None:
    config = TrainConfig(batch_size=4, patch=(8, 8), foreground=share)
    data = TrainingSlices(stored(tmp_path / "a", partly()), config, AugmentConfig(), 0, 0)
    assert data.steps(0) == 1
    for epoch in range(6):
        for step in range(data.steps(epoch)):
            images, labels = data.batch(epoch, step)
            assert bool((labels != UNANNOTATED).flatten(1).any(1).all())
            assert set(labels.unique().tolist()) <= {0, 1, UNANNOTATED}  # moved as labels are, never mixed
            assert images.shape == (4, 1, 8, 8)


def test_a_patch_over_a_label_is_not_put_on_what_nobody_annotated() -> None:
    labels = torch.full((40, 40), UNANNOTATED, dtype=torch.uint8)
    labels[30:, :] = 0
    labels[33, 7] = 1
    for seed in range(20):
        _, cut = fit_patch(labels[None].float(), labels, (6, 6), random_state(seed), label=1)
        assert bool((cut == 1).any())


class Everything(Network):
    """Says foreground everywhere."""

    def __init__(self) -> None:
        super().__init__(1, 1, stride=1, normalised=False)

    def _logits(self, x: Tensor, auxiliary: bool) -> list[Tensor]:
        return [torch.ones_like(x)]


def test_validation_counts_annotated_voxels_only(tmp_path: Path) -> None:
    masks = partly()
    config = settings(tmp_path, patch=(8, 8))
    dice = VolumeDice(stored(tmp_path / "a", masks), config, 0, torch.device("cpu"), torch.float32)(Everything())
    wanted, known = int((masks == 1).sum()), int((masks != UNANNOTATED).sum())
    assert dice == pytest.approx(2 * wanted / (wanted + known))


def test_a_run_on_partly_annotated_scans(tmp_path: Path) -> None:
    """Slices 0 and 1 of every mask are marked with 9, and whatever was drawn in them is gone."""
    study = nifti_study(tmp_path / "study", 6)
    for path in sorted((study / "masks").iterdir()):
        drawn = read_mask(path)
        drawn.labels[..., :2] = 9
        write_mask(path, Mask(drawn.labels, drawn.grid))
    config = settings(study, epochs=12).model_copy(update={"unannotated": (9,)})
    result = train(config, tmp_path / "run")
    assert result.report is not None
    assert any("Annotated in part" in warning for warning in result.report.warnings)
    folder = result.folder / "validation"
    for case in result.report.cases:
        mask, reference = stored_labels(folder / "masks" / f"{case.case}.nii.gz"), voxels(int(case.case[1:]))[1]
        assert (stored_labels(folder / "references" / f"{case.case}.nii.gz")[..., :2] == UNANNOTATED).all()
        both, total = (mask & reference)[..., 2:].sum(), mask[..., 2:].sum() + reference[..., 2:].sum()
        assert case.labels[0].dice == (pytest.approx(2 * both / total) if total else None)
        assert case.unannotated_ml == pytest.approx(reference[..., :2].size * 0.003)
        # The network never saw these two slices called background: it finds the tumour there too.
        truth = reference[..., :2].sum()
        assert 2 * (mask & reference)[..., :2].sum() / max(1, mask[..., :2].sum() + truth) > 0.6 or not truth
    with pytest.raises(RunError, match="unannotated was"):
        train(config.model_copy(update={"unannotated": (9, 10)}), tmp_path / "run", resume=True)
