"""For pipelines in MONAI: a reader of exactly what `medseg.scan` verified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from monai.data.image_reader import ImageReader
from numpy.typing import NDArray

from medseg.errors import InputError
from medseg.reading import read_case
from medseg.scan import Scan, find_scans
from medseg.volume import Volume


class ScanReader(ImageReader):
    """A MONAI reader of exactly what `medseg.scan` verified: no other reader is fallen back to.

    Takes a `Scan`, or a path that holds one usable scan: `LoadImage(expanduser=False)(scan, reader=ScanReader())`.
    """

    def verify_suffix(self, filename: object) -> bool:
        """Say yes: the scan was verified by its content, not by its ending."""
        return True

    def read(self, data: object, **_: object) -> Volume:
        """Return the volume of a scan or path, or of a sequence of them as channels (as `read_case`).

        Raises:
            InputError: with the door's code, when a scan is unfit.
        """
        items = data if isinstance(data, (list, tuple)) else [data]
        return read_case([item if isinstance(item, Scan) else _only_scan(Path(str(item))) for item in items])

    def get_data(self, img: Volume) -> tuple[NDArray[np.generic], dict[str, Any]]:
        """Return voxels `(c, i, j, k)` and MONAI's metadata: the affine, index to world in mm, RAS+."""
        affine = np.array(img.grid.affine)
        meta = {"affine": affine, "original_affine": affine.copy(), "spatial_shape": np.array(img.grid.shape)}
        return img.voxels, {**meta, "space": "RAS", "original_channel_dim": 0}


def _only_scan(path: Path) -> Scan:
    found = find_scans(path)
    scans = [scan for scan in found if scan.usable] or found  # an unfit one is refused by `read`, with its reason
    if len(scans) != 1:
        problem = f"{len(scans)} scans, wanted one"
        raise InputError("MODEL-INPUT", path.name, problem, "Name the folder or file of one scan.")
    return scans[0]
