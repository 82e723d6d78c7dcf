"""`medseg demo`: the whole job on phantom patients, in minutes on a processor."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg.batch import predict_folder
from medseg.config import Config, parse
from medseg.errors import UsageError
from medseg.io.nifti import read_mask
from medseg.ledger import Ledger
from medseg.metrics import score_case
from medseg.models.model_folder import load_model
from medseg.phantom import PhantomStudy, location_baseline, make_study
from medseg.progress import Watch, silent
from medseg.report import Report, evaluate
from medseg.training import train
from medseg.volume import Labels

RECIPE = """
labels:
  tumour: [1, "GTV*", tumour]  # the number in NIfTI masks, the structure in RTSTRUCT, the segment in DICOM SEG
data:
  validation: 0.17
model:
  name: unet
  widths: [16, 32, 64, 128]
  norm: instance
  activation: leaky_relu
augment: {mirror_rows: 0, affine: 0.3, rotation_deg: 20, scaling: 0.2, elastic: 0}  # light: few epochs
train:
  epochs: 12
  batch_size: 8
"""
"""A small network and few epochs: the demo shows the way, in minutes on two processor cores."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo made and earned.

    Attributes:
        folder: everything is below it.
        report: of the held-out patients.
        baseline_dice: mean Dice, on the same patients, of the training tumours' mean ellipsoid, which looks at no scan.
        ledger: of the prediction, the broken scan among its rows.
        seconds: it all took.
    """

    folder: Path
    report: Report
    baseline_dice: float
    ledger: Ledger
    seconds: float

    def summary(self) -> str:
        """What to read, and where to look."""
        dice = self.report.mean_dice
        rejected = [row for row in self.ledger if row.status == "rejected"]
        return "\n".join(
            [
                "",
                f"held-out mean Dice {0.0 if dice is None else dice:.3f} on {len(self.report.cases)} patients; "
                f"a mask that never looks at the scan scores {self.baseline_dice:.3f}",
                *(f"rejected as it should be: {row.case}: {row.message}" for row in rejected),
                f"done in {self.seconds:.0f} s. Where to look:",
                f"  {self.folder / 'report' / 'report.html'}   the Dice report, in a browser",
                f"  {self.folder / 'masks'}   predicted masks and cases.csv; open one with its scan in 3D Slicer",
                f"  {self.folder / 'run'}   the training run: config.yaml, metrics.csv, model/, validation/",
                f"  {self.folder / 'study'}   the phantom scans",
            ]
        )


def run_demo(
    folder: Path,
    *,
    seed: int = 0,
    patients: int = 24,
    held_out: int = 6,
    overrides: Sequence[str] = (),
    watch: Watch = silent,
) -> DemoResult:
    """Make a study, train, predict the held-out patients, score.

    Args:
        folder: must be absent or empty.
        seed: of the phantoms and the training.
        patients: to train on.
        held_out: to predict; a broken scan is added to them.
        overrides: of the recipe's settings, such as `train.epochs=2`.
        watch: is told of each step.

    Raises:
        UsageError: USAGE-PATH when `folder` holds something.
        RunError: RUN-WRITE.
    """
    start = time.perf_counter()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError("USAGE-PATH", str(folder), "is not an empty folder", "Name a new one with -o.")
    watch("demo", 0, 4, f"1/4 making {patients + held_out} phantom patients in {folder / 'study'}")
    study = make_study(folder / "study", patients=patients, held_out=held_out, seed=seed)
    watch("demo", 1, 4, f"2/4 training on {study.training}")
    trained = train(demo_config(study, seed, overrides), folder / "run", watch=watch)
    watch("demo", 2, 4, f"3/4 predicting {study.new}")
    model = load_model(trained.folder)
    ledger = predict_folder([study.new], model, folder / "masks", watch=watch)
    watch("demo", 3, 4, f"4/4 scoring against {study.new_references}")
    report = evaluate(folder / "masks", study.new_references, folder / "report", labels=model.labels)
    baseline = _baseline(study, model.labels)
    return DemoResult(folder, report, baseline, ledger, time.perf_counter() - start)


def demo_config(study: PhantomStudy, seed: int, overrides: Sequence[str] = ()) -> Config:
    """Return the demo's configuration."""
    places = [f"data.scans={study.training.resolve()}", f"data.references={study.training_references.resolve()}"]
    return parse(RECIPE, "the demo's recipe", [*places, f"seed={seed}", *overrides])


def _baseline(study: PhantomStudy, labels: Labels) -> float:
    known = [read_mask(path) for path in sorted(study.training_references.glob("*.nii.gz"))]
    scores = []
    for name in study.new_ids:
        reference = read_mask(study.new_references / f"{name}.nii.gz")
        scores.append(score_case(location_baseline(known, reference.grid), reference, labels, name).labels[0].dice)
    return float(np.mean([score for score in scores if score is not None]))
