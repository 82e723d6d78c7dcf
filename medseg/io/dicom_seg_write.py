"""Writing a mask as a DICOM segmentation object (SEG) on the series that it lies on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from medseg.errors import MaskError
from medseg.grid import Grid
from medseg.io.atomic import atomic_path
from medseg.io.dicom_objects import (
    Source,
    carry_patient,
    check_labels,
    content_hash,
    decimals,
    derived_uid,
    functional_group,
    read_source,
)
from medseg.volume import Labels, Mask

if TYPE_CHECKING:
    from highdicom.seg import SegmentDescription
    from pydicom.sr.coding import Code


def write_dicom_seg(
    path: Path,
    mask: Mask,
    labels: Labels,
    source_files: Sequence[Path],
    *,
    algorithm: str = "medseg",
    model_hash: str = "",
) -> None:
    """Write a mask as a DICOM segmentation on the series it lies on (PS3.3 A.51).

    BINARY, one bit a voxel, empty frames left out: what every viewer that knows SEG reads. Segment numbers count from
    1 without gaps, as the standard wants, in the order of the labels; the labels' names are the segment labels. A
    mask without any voxel is a valid object whose frames are all empty. Patient and study are those of the source;
    the UIDs follow from source, mask and model.

    Args:
        path: final name.
        mask: on the grid of the series, its axes in any order.
        labels: number to name.
        source_files: the series' files: single frames, or one multi-frame file.
        algorithm: name of what made the mask.
        model_hash: identifies the model that made it; stands as the algorithm's version.

    Raises:
        InputError: MASK-GRID when the mask is not on the series, MASK-VALUES for a number without a name,
            MASK-READ when a source file cannot be read or the series cannot be referred to.
        RunError: RUN-WRITE.
    """
    import highdicom  # 0.4 s to import, and only this function needs it

    source = read_source(source_files)
    placed = mask.placed_on(source.grid)
    check_labels(placed, labels, path)
    uid = derived_uid("seg", *source.uids, content_hash(placed.labels), repr(labels), algorithm, model_hash)
    images, pixels = _images_and_pixels(source, _renumbered(placed, labels), path)
    with warnings.catch_warnings(), _constructing(path):
        warnings.simplefilter("ignore")  # highdicom's warnings quote the patient's name
        segmentation = highdicom.seg.Segmentation(
            source_images=images,
            pixel_array=pixels,
            segmentation_type="BINARY",
            segment_descriptions=_descriptions(labels, algorithm, model_hash),
            series_instance_uid=derived_uid("series", uid),
            series_number=_series_number(source),
            sop_instance_uid=uid,
            instance_number=1,
            manufacturer="medseg",
            manufacturer_model_name=algorithm,
            software_versions=model_hash[:64] or "unknown",
            device_serial_number="none",
            content_label="SEGMENTATION",
            omit_empty_frames=bool(pixels.any()),
            transfer_syntax_uid=ExplicitVRLittleEndian,
        )
    with atomic_path(path) as partial:
        segmentation.save_as(partial, enforce_file_format=True)


@contextmanager
def _constructing(path: Path) -> Iterator[None]:
    """Turn highdicom's refusal of a source header into one message.

    Raises:
        MaskError: MASK-READ.
    """
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        problem = f"the source series cannot carry a DICOM segmentation: {type(error).__name__}"
        raise MaskError("MASK-READ", str(path), problem, "Write NIfTI or RTSTRUCT for this series.") from error


def _renumbered(mask: Mask, labels: Labels) -> NDArray[np.uint16]:
    """Return segment numbers 1, 2, ... `(i, j, k)` in the order of the labels."""
    table = np.zeros(max(labels.names) + 1, dtype=np.uint16)
    for segment, (number, _) in enumerate(labels, start=1):
        table[number] = segment
    return table[mask.labels]


def _images_and_pixels(
    source: Source, segments: NDArray[np.uint16], path: Path
) -> tuple[list[Dataset], NDArray[np.uint16]]:
    """Return the source images and the mask's frames `(n, rows, columns)` in the same order."""
    frames = np.ascontiguousarray(segments.transpose(2, 1, 0))
    if source.frames[0].number is None:
        return [_complete(frame.header, source.grid) for frame in source.frames], frames
    if len(source.headers) > 1:
        problem = f"the series has {len(source.headers)} multi-frame files, wanted one"
        raise MaskError("MASK-READ", str(path), problem, "Write NIfTI or RTSTRUCT for this series.")
    in_file_order = np.argsort([frame.number or 0 for frame in source.frames])
    return [_complete(source.headers[0], source.grid)], frames[in_file_order]


def _complete(header: Dataset, grid: Grid) -> Dataset:
    """Return a copy of a source header in which what the SEG must carry is there, if empty."""
    copy = Dataset(header)
    copy.file_meta = header.file_meta
    carry_patient(copy, header)
    if "PerFrameFunctionalGroupsSequence" in header:  # highdicom wants what all frames share in the shared groups
        shared = Dataset((header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0])
        for macro in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
            setattr(shared, macro, [functional_group(header, 0, macro)])
        copy.SharedFunctionalGroupsSequence = [shared]
    elif header.get("SliceThickness") is None:  # type 2 in the source (PS3.3 C.7.6.2); highdicom wants a number
        copy.SliceThickness = decimals([grid.spacing[2]])[0]
    return copy


def _series_number(source: Source) -> int:
    """Return a number apart from the source's: PS3.3 C.7.3.1 wants one, and viewers sort by it."""
    return int(source.headers[0].get("SeriesNumber") or 0) + 1000


def _descriptions(labels: Labels, algorithm: str, model_hash: str) -> list[SegmentDescription]:
    import highdicom
    from pydicom.sr.codedict import codes

    identification = highdicom.AlgorithmIdentificationSequence(
        name=algorithm, family=codes.cid7162.ArtificialIntelligence, version=model_hash or "unknown"
    )
    descriptions = []
    for segment, (_, name) in enumerate(labels, start=1):
        category, kind = coded_name(name)
        descriptions.append(
            highdicom.seg.SegmentDescription(segment, name[:64], category, kind, "AUTOMATIC", identification)
        )
    return descriptions


TUMOUR_WORDS = ("tumour", "tumor", "neoplasm", "lesion", "gtv", "metasta", "cancer", "carcinoma", "sarcoma", "glioma")


def coded_name(name: str) -> tuple[Code, Code]:
    """Return the codes for what a label's name means: category and type (PS3.16 CID 7150 and 7151).

    Tumours are (108369006, SCT, "Neoplasm"), a morphologically altered structure. Every other name is tissue, which
    claims nothing; the name itself stands in Segment Label.
    """
    from pydicom.sr.coding import Code  # 0.2 s: all codes of the standard come with it

    if any(word in name.casefold() for word in TUMOUR_WORDS):
        altered = Code("49755003", "SCT", "Morphologically Altered Structure")
        return altered, Code("108369006", "SCT", "Neoplasm")
    tissue = Code("85756007", "SCT", "Tissue")
    return tissue, tissue
