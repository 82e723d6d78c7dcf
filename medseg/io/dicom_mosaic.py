"""Siemens mosaics: the slices of a volume tiled into one image, placed where two accounts in the header agree."""

from __future__ import annotations

import math
import re
import struct
from dataclasses import replace

import numpy as np

from medseg.grid import SAME_PLACE_MM, Float
from medseg.io.dicom_frames import Frame, is_foreign
from medseg.io.dicom_values import Source, bytes_of, image_type, integer

IMAGE_HEADER, SERIES_HEADER, IMAGES = 0x00291010, 0x00291020, 0x0019100A
"""Private tags of Siemens: the CSA headers of image and series, and the number of slices in a mosaic."""

_POSITION = re.compile(rb"sSliceArray\.asSlice\[(\d{1,4})\]\.sPosition\.d(Sag|Cor|Tra)\s*=\s*([-+.\deE]+)")
_COUNT = re.compile(rb"sSliceArray\.lSize\s*=\s*(\d{1,4})\b")


def is_mosaic(source: Source) -> bool:
    """Whether a header says that its image is a mosaic."""
    return bool("MOSAIC" in image_type(source) or counted_slices(source))


def counted_slices(source: Source) -> int:
    """How many slices a mosaic holds by Siemens' private elements; 0 when they do not say so."""
    return csa_slices(source) or (0 if is_foreign([source], IMAGES) else integer(source, IMAGES) or 0)


def csa_slices(source: Source) -> int:
    """How many slices a mosaic holds by Siemens' CSA image header; 0 when it is none, or unreadable.

    Source: nibabel's description of the format (nibabel/doc/source/dicom/siemens_csa.rst): a tag is its name in 64
        bytes, then multiplicity, VR, type, number of items and a check value in 4 bytes each; an item has four numbers
        of 4 bytes, the first of type 1 and the second of type 2 being its length, then its text.
    """
    header = bytes_of(source, IMAGE_HEADER)
    at = header.find(b"NumberOfImagesInMosaic\0")
    if at < 0 or len(header) < at + 100:
        return 0
    for length in struct.unpack_from("<2l", header, at + 84):
        value = header[at + 100 : at + 100 + max(0, min(length, 16))].strip(b" \0")
        if value.isdigit():
            return int(value)
    return 0


def tiles_across(slices: int) -> int:
    """How many tiles stand beside each other: a mosaic is as many tiles wide as high (dicom_mosaic.rst of nibabel)."""
    return math.ceil(math.sqrt(slices))


def place_tiles(whole: Frame, rows: int, columns: int, slices: int, series_header: bytes) -> tuple[Frame, ...]:
    """The slices of a mosaic in the order of its tiles; none when the header does not prove where they lie.

    The position of a mosaic is that of an image of its size around the centre of the first slice: its corner lies
    half the difference of both sizes away from the slice's. The protocol in the series header states the centre of
    each slice, the voxel at half its rows and columns. Slices that were stored in reverse order, or moved, fail.

    Args:
        whole: the mosaic as one image.
        rows: of the mosaic.
        columns: of the mosaic.
        slices: in it.
        series_header: the CSA series header.

    Source: nibabel/doc/source/dicom/dicom_mosaic.rst; the two accounts agree within 2e-6 mm on a scanner's file.
    """
    centres = _centres(series_header)
    across = tiles_across(slices)
    if whole.position is None or whole.orientation is None or whole.spacing is None or not len(centres) == slices > 0:
        return ()
    if rows % across or columns % across:
        return ()
    row, column = np.array(whole.orientation).reshape(2, 3)
    right, down = row * whole.spacing[1], column * whole.spacing[0]
    high, wide = rows // across, columns // across
    corners = centres - right * (wide / 2) - down * (high / 2)
    first = np.array(whole.position) + right * (columns - wide) / 2 + down * (rows - high) / 2
    if np.linalg.norm(corners[0] - first) > SAME_PLACE_MM:
        return ()
    places = enumerate(corners.tolist())
    return tuple(replace(whole, number=number, position=(x, y, z)) for number, (x, y, z) in places)


def _centres(series_header: bytes) -> Float:
    """Centres `(n, 3)` of the slices, LPS mm; a coordinate of zero is not written."""
    count = _COUNT.search(series_header)
    centres = np.zeros((int(count[1]) if count else 0, 3))
    for number, axis, value in _POSITION.findall(series_header):
        if int(number) < len(centres):
            centres[int(number), (b"Sag", b"Cor", b"Tra").index(axis)] = float(value)
    return centres
