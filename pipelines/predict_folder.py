"""Segment a folder of scans with a trained model, scan by scan. Copy and edit.

python pipelines/predict_folder.py scans run masks

`medseg predict` does the same with re-use, several channels, DICOM outputs and a ledger; this shows the single steps.
"""

from __future__ import annotations

import sys
from pathlib import Path

from medseg import MedsegError, find_scans, load_model, predict, read, write


def main(arguments: list[str]) -> int:
    if len(arguments) != 3:
        print(__doc__)
        return 2
    scans, model_folder, output = map(Path, arguments)
    try:
        model = load_model(model_folder)
        found = find_scans(scans)
    except MedsegError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    failures = 0
    for scan in found:
        try:
            if not scan.usable:
                print(f"{scan.case_id}: {scan.reason}", file=sys.stderr)
                failures += 1
                continue
            mask = predict(model, read(scan))  # on the scan's own grid
            write(output / f"{scan.case_id}.nii.gz", mask)
        except MedsegError as error:
            print(f"{scan.case_id}: {error}", file=sys.stderr)
            failures += 1
            continue
        volumes = ", ".join(f"{name} {mask.volume_ml(number):.1f} ml" for number, name in model.labels)
        print(f"{scan.case_id}: {volumes}")
    if failures == len(found):
        return 1
    return 3 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
