"""What one writes in an afternoon: MONAI's `LoadImage`, a network in bf16, nibabel. For `predict_many.py`.

python tests/benchmarks/plain_loop.py SCANS --model MODEL -o FOLDER

Writes a mask for each scan of a folder, and `seconds.json`: what the scans took, without the start.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.transforms import LoadImage
from torch.nn import functional as F

from medseg.models.model_folder import load_model


def main() -> None:
    """Predict every scan of a folder; the first that cannot be read ends it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    given.output.mkdir()
    network = load_model(given.model).networks[0].to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in the stub
    load = LoadImage(image_only=True, ensure_channel_first=True)
    start, cpu = time.perf_counter(), time.process_time()
    for path in sorted(given.scans.iterdir()):
        image = load(path)
        volume = image.as_tensor().float()[0]
        low, high = np.percentile(volume.numpy(), [0.5, 99.5])
        volume = volume.clamp(low, high)
        volume = (volume - volume.mean()) / volume.std()
        labels = torch.zeros(volume.shape, dtype=torch.uint8)
        padded = F.pad(volume, (1, 1), mode="replicate")
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            for first in range(0, volume.shape[2], 8):
                count = min(8, volume.shape[2] - first)
                slices = torch.stack([padded[:, :, k : k + 3].permute(2, 0, 1) for k in range(first, first + count)])
                logits = network(slices.to(memory_format=torch.channels_last))
                labels[:, :, first : first + count] = logits.float().argmax(1).permute(1, 2, 0).to(torch.uint8)
        mask = nib.Nifti1Image(labels.numpy(), np.asarray(image.affine))  # type: ignore[attr-defined,no-untyped-call]
        nib.save(mask, given.output / f"{path.name.split('.')[0]}.nii.gz")  # type: ignore[attr-defined]
    seconds = {"wall": time.perf_counter() - start, "processor": time.process_time() - cpu}
    (given.output / "seconds.json").write_text(json.dumps(seconds))


if __name__ == "__main__":
    main()
