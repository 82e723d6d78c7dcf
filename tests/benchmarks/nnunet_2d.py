# ruff: noqa: SIM112  nnU-Net spells its variables so
"""nnU-Net's 2-D configuration within a number of CPU seconds: the same cases, the same split, masks as NIfTI.

Runs in an environment of its own that has `nnunetv2` (the planning is nnU-Net's, untouched):

    python -m venv nnunet && nnunet/bin/pip install nnunetv2
    nnunet/bin/python tests/benchmarks/nnunet_2d.py --scans SCANS --masks MASKS --split SPLIT --cpu-seconds 1200 -o OUT

`SCANS` and `MASKS` hold one `<case>.nii.gz` each (`medseg convert` and the references), `SPLIT` is a JSON file with the
lists `train` and `validation`. A full training is 250,000 iterations; here the iterations that fit are measured on the
first two and the polynomial schedule is laid over them, so that the learning rate ends at zero. Without mirroring at
prediction.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np


def lay_out(args: argparse.Namespace, name: str) -> list[str]:
    """Write the data set as nnU-Net wants it; return the validation cases."""
    import nibabel as nib

    split = json.loads(args.split.read_text())
    raw, prepared = args.output / "raw" / name, args.output / "preprocessed" / name
    for folder in (raw / "imagesTr", raw / "labelsTr", raw / "imagesTs", prepared):
        folder.mkdir(parents=True, exist_ok=True)
    numbers: set[int] = set()
    for case in split["train"] + split["validation"]:
        image = nib.load(args.scans / f"{case}.nii.gz")
        mask = np.rint(nib.load(args.masks / f"{case}.nii.gz").get_fdata()).astype(np.uint8)
        numbers |= set(np.unique(mask).tolist())
        nib.save(image, raw / "imagesTr" / f"{case}_0000.nii.gz")
        nib.save(nib.Nifti1Image(mask, image.affine), raw / "labelsTr" / f"{case}.nii.gz")
        if case in split["validation"]:
            nib.save(image, raw / "imagesTs" / f"{case}_0000.nii.gz")
    labels = {"background": 0} | {f"label{number}": number for number in sorted(numbers - {0})}
    count = len(split["train"] + split["validation"])
    described = {
        "channel_names": {"0": args.modality},
        "labels": labels,
        "numTraining": count,
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(described))
    (prepared / "splits_final.json").write_text(json.dumps([{"train": split["train"], "val": split["validation"]}]))
    return list(split["validation"])


def train(args: argparse.Namespace, name: str) -> tuple[Path, int, float]:
    """Train for the CPU seconds there are; return the model folder, the iterations and the CPU seconds used."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    prepared = args.output / "preprocessed" / name
    plans = json.loads((prepared / "nnUNetPlans.json").read_text()) | {"continue_training": False}
    described = json.loads((prepared / "dataset.json").read_text())
    trainer = nnUNetTrainer(plans, "2d", 0, described, device=torch.device("cpu"))
    start = time.process_time()
    trainer.initialize()
    trainer.on_train_start()
    measured = time.process_time()
    for _ in range(2):
        trainer.train_step(next(trainer.dataloader_train))
    each = (time.process_time() - measured) / 2
    iterations = max(1, int((args.cpu_seconds - (time.process_time() - start)) / each))
    trainer.num_epochs = iterations
    trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
    for iteration in range(iterations):
        trainer.lr_scheduler.step(iteration)
        loss = trainer.train_step(next(trainer.dataloader_train))["loss"]
        if time.process_time() - start > args.cpu_seconds:
            break
        if iteration % 5 == 0:
            print(f"iteration {iteration + 1}/{iterations}  loss {float(loss):.4f}", flush=True)
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    used = time.process_time() - start
    return Path(trainer.output_folder).parent, iteration + 3, used


def predict(args: argparse.Namespace, name: str, folder: Path, cases: list[str]) -> None:
    """Predict the validation cases."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), perform_everything_on_device=False)
    predictor.initialize_from_trained_model_folder(str(folder), (0,), "checkpoint_final.pth")
    masks = args.output / "masks"
    masks.mkdir(exist_ok=True)
    scans = [[str(args.output / "raw" / name / "imagesTs" / f"{case}_0000.nii.gz")] for case in cases]
    predictor.predict_from_files_sequential(scans, [str(masks / f"{case}.nii.gz") for case in cases])


def main() -> None:
    """Lay out, plan, train, predict, say how far it came."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=Path, required=True)
    parser.add_argument("--masks", type=Path, required=True)
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--modality", default="MRI")
    parser.add_argument("--cpu-seconds", type=float, default=1200)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    args.output = args.output.resolve()
    os.environ |= {f"nnUNet_{key}": str(args.output / key) for key in ("raw", "preprocessed", "results")}
    os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_compile": "f"}
    name = "Dataset777_Benchmark"
    cases = lay_out(args, name)
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess

    extract_fingerprints([777], num_processes=1)
    plan_experiments([777])
    preprocess([777], configurations=("2d",), num_processes=(1,))
    os.environ["nnUNet_n_proc_DA"] = "0"  # all training in this process, whose CPU seconds count
    folder, iterations, used = train(args, name)
    predict(args, name, folder, cases)
    print(f"nnU-Net 2d: {iterations} iterations in {used:.0f} CPU seconds; masks in {args.output / 'masks'}")


if __name__ == "__main__":
    main()
