"""What a NIfTI header says, judged: type, shape, scaling and above all geometry.

Source: the NIfTI-1 and NIfTI-2 headers, https://nifti.nimh.nih.gov (nifti1.h, nifti2.h); "method 1, 2, 3" are their
words for geometry from pixdim alone, from the quaternion (qform) and from the matrix (sform).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.quaternions import fillpositive, quat2mat

from medseg.errors import InputError, NiftiError
from medseg.grid import SAME_PLACE_MM, Float, Grid, Shape

Notes = tuple[tuple[str, str], ...]
"""Warnings about a file that is read all the same, as (code, message)."""

QUATERNION_EXCESS = 1e-4
"""b^2 + c^2 + d^2 may exceed 1 by this much, the rounding of short decimal strings, and is then taken as 1."""

QUATERNION_ROUNDING = 3e-7
"""Difference of stored components that is rounding: some units in the last place of a float32 below 1 (6e-8)."""

NEAR_HALF_TURN = 1e-6
"""a^2 below which a, the component that is not stored, is lost in the rounding of the others."""

STORED_TYPES: dict[int, str] = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
"""NIfTI datatype code -> numpy type, for scalar numbers."""

OTHER_TYPES: dict[int, str] = {
    0: "unknown", 1: "binary", 32: "complex64", 128: "RGB24", 1536: "float128", 1792: "complex128",
    2048: "complex256", 2304: "RGBA32",
}  # fmt: skip

UNIT_MM: dict[int, tuple[str, float]] = {
    0: ("unknown", 1.0),
    1: ("metre", 1e3),
    2: ("millimetre", 1.0),
    3: ("micron", 1e-3),
}
"""Spatial part of xyzt_units -> name and millimetres. Unknown is millimetres by universal custom."""

LABEL_INTENT = 1002
"""NIFTI_INTENT_LABEL (nifti1.h): the voxels are label numbers."""

SPACING_RANGE_MM = (0.01, 100.0)
"""What a spacing converted from metres or microns must come to; else the unit is wrong, not the scanner unusual. In
millimetres, or without a unit, it may be a microscope's: a note says so."""


@dataclass(frozen=True)
class Header:
    """What the header says, judged.

    Attributes:
        grid: from the form that counts, mm.
        notes: warnings.
        dtype: of the stored voxels, with their byte order.
        offset: bytes before the first voxel.
        slope, inter: true value = stored * slope + inter.
        paired: the voxels are in an `.img` file beside the header.
        holds_labels: the intent says that the voxels are label numbers.
    """

    grid: Grid
    notes: Notes
    dtype: np.dtype[np.generic]
    offset: int
    slope: float
    inter: float
    paired: bool
    holds_labels: bool = False

    @property
    def count(self) -> int:
        """Number of voxels."""
        return math.prod(self.grid.shape)

    @property
    def bytes(self) -> int:
        """Bytes up to and with the last voxel."""
        return self.offset + self.count * self.dtype.itemsize

    @property
    def slice_bytes(self) -> int:
        """Bytes of one slice (i, j)."""
        return self.grid.shape[0] * self.grid.shape[1] * self.dtype.itemsize


def parse(raw: bytes, zipped: bool, path: Path) -> Header:
    """Judge a header.

    Raises:
        NiftiError: NIFTI-READ, NIFTI-GEOMETRY, NIFTI-TYPE, NIFTI-DIMENSIONS.
    """
    header, paired = _decode(raw, path)
    notes = _name_notes(zipped, path)
    shape, shape_notes = _shape(header, path)
    dtype = _dtype(header, path)
    try:
        grid, grid_notes = _grid(header, shape, path)
    except InputError as error:
        if isinstance(error, NiftiError):
            raise
        raise NiftiError("NIFTI-GEOMETRY", str(path), error.problem, "Export the scan again.") from error
    slope, inter = _scaling(header, path)
    offset = _offset(header, paired, path)
    labels = int(header["intent_code"]) == LABEL_INTENT
    return Header(grid, notes + shape_notes + grid_notes, dtype, offset, slope, inter, paired, labels)


def _decode(raw: bytes, path: Path) -> tuple[Nifti1Header, bool]:
    """Find version, byte order and kind of the header by its own size field and magic; the rest is not judged here.

    Returns:
        The header, and whether it belongs to a pair (.hdr, .img).

    Raises:
        NiftiError: NIFTI-READ.
    """
    order: Literal["<", ">"]
    for order, name in (("<", "little"), (">", "big")):
        size = int.from_bytes(raw[:4], cast(Literal["little", "big"], name))
        if size in (348, 540) and len(raw) >= size:
            kind: type[Nifti1Header] = Nifti1Header if size == 348 else Nifti2Header
            header = kind(raw[:size], endianness=order, check=False)
            magic = bytes(header["magic"])[:3]
            if magic in (b"n+1", b"n+2", b"ni1", b"ni2"):
                return header, magic.startswith(b"ni")
            problem = "is ANALYZE 7.5 or damaged: the NIfTI magic is missing, and with it the orientation"
            raise NiftiError("NIFTI-READ", str(path), problem, "Export the scan again as NIfTI or DICOM.")
    problem = f"is not NIfTI: no header of 348 or 540 bytes at its start ({len(raw)} bytes seen)"
    raise NiftiError("NIFTI-READ", str(path), problem, "Check what the file is.")


def _name_notes(zipped: bool, path: Path) -> Notes:
    name = path.name.lower()
    if not name.endswith((".nii", ".nii.gz", ".hdr", ".hdr.gz")):
        message = "the content is NIfTI although the name does not end in .nii or .nii.gz; it was read by its content"
        return (("NIFTI-NAME", message),)
    named = name.endswith(".gz")
    if zipped == named:
        return ()
    found, ending = ("gzip", path.suffix) if zipped else ("not compressed", ".gz")
    return (("NIFTI-NAME", f"the content is {found} although the name ends in {ending}; it was read by its content"),)


def _shape(header: Nifti1Header, path: Path) -> tuple[Shape, Notes]:
    """Return the shape `(i, j, k)`: trailing axes of length 1 are dropped, a single slice gets one, each with a note.

    Raises:
        NiftiError: NIFTI-DIMENSIONS.
    """
    dims = [int(n) for n in header["dim"]]
    if not 1 <= dims[0] <= 7:
        raise _dimensions(path, f"dim[0] is {dims[0]}, wanted the number of axes, 1 to 7")
    shape = dims[1 : dims[0] + 1]
    if min(shape) < 1:
        raise _dimensions(path, f"the shape is {tuple(shape)}, wanted at least one voxel along each axis")
    if len(shape) < 2 or any(n > 1 for n in shape[3:]):
        raise _dimensions(path, f"the shape is {tuple(shape)}, wanted one volume (i, j, k)")
    i, j, k = [*shape, 1][:3]
    if len(shape) == 3:
        return (i, j, k), ()
    return (i, j, k), (("NIFTI-DIMENSIONS", f"stored as {len(shape)}-D {tuple(shape)}, read as {(i, j, k)}"),)


def _dimensions(path: Path, problem: str) -> NiftiError:
    return NiftiError("NIFTI-DIMENSIONS", str(path), problem, "Write one file for each volume.")


def _dtype(header: Nifti1Header, path: Path) -> np.dtype[np.generic]:
    code = int(header["datatype"])
    if code not in STORED_TYPES:
        kind = OTHER_TYPES.get(code, "not in the standard")
        problem = f"voxels of datatype {code} ({kind}), wanted one real number for each"
        raise NiftiError("NIFTI-TYPE", str(path), problem, "Take the original scan, not a picture or raw data of it.")
    dtype: np.dtype[np.generic] = np.dtype(header.endianness + STORED_TYPES[code])
    return dtype


def _scaling(header: Nifti1Header, path: Path) -> tuple[float, float]:
    """Return slope and intercept; a slope of 0 (the standard's word) or NaN (nibabel's) means no scaling at all.

    Raises:
        NiftiError: NIFTI-VALUES when they would make every voxel infinite or NaN.
    """
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or math.isnan(slope):
        return 1.0, 0.0
    if not (math.isfinite(slope) and math.isfinite(inter)):
        problem = f"scl_slope {slope} and scl_inter {inter} make every voxel infinite or NaN"
        raise NiftiError("NIFTI-VALUES", str(path), problem, "Export the scan again.")
    return slope, inter


def _offset(header: Nifti1Header, paired: bool, path: Path) -> int:
    """Return the bytes before the first voxel; 0 in a single file means right after the header and its 4 flag bytes.

    Raises:
        NiftiError: NIFTI-READ.
    """
    offset = float(header["vox_offset"])
    least = 0 if paired else int(header["sizeof_hdr"]) + 4
    if offset == 0:
        return least
    if not offset.is_integer() or offset < least:
        raise NiftiError(
            "NIFTI-READ", str(path), f"vox_offset is {offset}, wanted at least {least}", "Export it again."
        )
    return int(offset)


# Geometry ---------------------------------------------------------------------------------------------------------


def _grid(header: Nifti1Header, shape: Shape, path: Path) -> tuple[Grid, Notes]:
    """Return the grid that sform and qform agree on, or that the only one set describes.

    Raises:
        NiftiError: NIFTI-GEOMETRY when neither is set, one is unusable, or they contradict each other.
        InputError: GRID-AFFINE when a matrix does not span space.
    """
    factor, notes = _unit(header, path)
    with np.errstate(all="ignore"):  # what is no number is refused as such by `Grid`, without a warning before it
        sform = _scaled_grid(header.get_sform(), shape, factor) if header["sform_code"] > 0 else None
        qform = _scaled_grid(_qform(header, path), shape, factor) if header["qform_code"] > 0 else None
    grid = sform or qform
    if grid is None:
        problem = "sform_code and qform_code are 0: the orientation is unknown"
        raise _geometry(
            path, problem, "Set the sform with the tool that wrote the file; left and right must be certain."
        )
    low, high = SPACING_RANGE_MM
    if not low <= min(grid.spacing) <= max(grid.spacing) <= high:
        spacing = " x ".join(f"{s:g}" for s in grid.spacing)
        if factor != 1:
            problem = f"the spacing would be {spacing} mm in the unit that xyzt_units names"
            raise _geometry(path, problem, "Correct the unit.")
        notes += (("NIFTI-UNITS", f"the spacing of {spacing} mm is no scanner's; it may be in another unit"),)
    if sform and qform:
        notes += _compare(sform, qform, header, path)
    if grid.is_sheared:
        message = f"the axes are not at right angles: the corners lie {grid.shear_mm:.2f} mm off a rectangular grid"
        notes += (("NIFTI-SHEAR", message),)
    return grid, notes


def _scaled_grid(affine: Float, shape: Shape, factor: float) -> Grid:
    return Grid(shape, np.diag([factor, factor, factor, 1.0]) @ affine)


def _unit(header: Nifti1Header, path: Path) -> tuple[float, Notes]:
    """Return millimetres in the header's unit of length, with a note when that is another one.

    Raises:
        NiftiError: NIFTI-GEOMETRY for a unit that is not in the standard.
    """
    code = int(header["xyzt_units"]) & 7  # the three lowest bits are the spatial part
    if code not in UNIT_MM:
        raise _geometry(path, f"xyzt_units names no unit of length ({code})", "Correct the unit.")
    name, factor = UNIT_MM[code]
    if factor == 1:
        return 1.0, ()
    return factor, (("NIFTI-UNITS", f"lengths are in {name}s (xyzt_units); they were converted to millimetres"),)


def _qform(header: Nifti1Header, path: Path) -> Float:
    """Return the affine `(4, 4)` of the quaternion, in the header's unit (nifti1.h, method 2).

    Raises:
        NiftiError: NIFTI-GEOMETRY.
    """
    zooms = np.array(header["pixdim"][1:4], dtype=np.float64)
    if not (np.isfinite(zooms).all() and (zooms > 0).all()):
        raise _geometry(path, f"pixdim is {zooms.tolist()}, wanted spacings above 0", "Export the scan again.")
    bcd = _quaternion(header)
    excess = float(bcd @ bcd) - 1
    if not excess <= QUATERNION_EXCESS:  # NaN as well
        raise _geometry(path, f"the quaternion {bcd.tolist()} is no rotation", "Export the scan again.")
    if excess > 0:
        bcd /= math.sqrt(1 + excess)
    zooms[2] *= -1 if header["pixdim"][0] < 0 else 1  # qfac; 0 counts as 1
    affine = np.eye(4)
    affine[:3, :3] = quat2mat(fillpositive(bcd, w2_thresh=np.finfo(np.float32).eps)) * zooms
    affine[:3, 3] = [header["qoffset_x"], header["qoffset_y"], header["qoffset_z"]]
    return affine


def _compare(sform: Grid, qform: Grid, header: Nifti1Header, path: Path) -> Notes:
    """Hold the two forms against each other; the sform counts, for tools read one or the other.

    A qform cannot hold shear, so a sheared sform is compared by its nearest right-angled grid.

    Raises:
        NiftiError: NIFTI-GEOMETRY when a voxel lies half a voxel or more elsewhere.
    """
    square = _without_shear(sform) if sform.is_sheared else sform
    distance = square.distance_mm(qform)
    if distance <= SAME_PLACE_MM or _alike_as_stored(square, qform, header):
        return ()
    sides = "" if sform.orientation == qform.orientation else f" ({sform.orientation} against {qform.orientation})"
    problem = f"sform and qform lie up to {distance:.2f} mm apart{sides}"
    if distance < min(sform.spacing) / 2:
        return (("NIFTI-GEOMETRY", f"{problem}, less than half a voxel; the sform was taken"),)
    raise _geometry(path, problem, "Find out which is right, and set both to it.")


def _alike_as_stored(sform: Grid, qform: Grid, header: Nifti1Header) -> bool:
    """Whether the qform is the sform's as well as a header can say it, near a half turn.

    The first component of the quaternion is not stored but follows from the others, a^2 = 1 - b^2 - c^2 - d^2. Near a
    half turn, where every axial scan in DICOM's axis order is, a is nearly 0, and float32 leaves it uncertain by 3e-4
    or more: 0.6 mm at the corners of a scan turned by 0.07 degrees. So the stored components are compared instead.
    """
    stored, wanted = _quaternion(header), _quaternion(header_for(sform))
    if 1 - stored @ stored > NEAR_HALF_TURN:
        return False
    turn = min(np.abs(stored - wanted).max(), np.abs(stored + wanted).max())  # without a, both signs are one rotation
    stretch = np.abs(np.subtract(sform.spacing, qform.spacing)) * sform.shape
    shift = np.linalg.norm(sform.affine[:3, 3] - qform.affine[:3, 3])
    same_hand = np.linalg.det(sform.affine) * np.linalg.det(qform.affine) > 0
    return bool(turn <= QUATERNION_ROUNDING and max(stretch.max(), shift) <= SAME_PLACE_MM and same_hand)


def _quaternion(header: Nifti1Header) -> Float:
    """Return the stored components b, c, d."""
    return np.array([header["quatern_b"], header["quatern_c"], header["quatern_d"]], dtype=np.float64)


def _without_shear(grid: Grid) -> Grid:
    return Grid(grid.shape, header_for(grid).get_qform())


def _geometry(path: Path, problem: str, advice: str) -> NiftiError:
    return NiftiError("NIFTI-GEOMETRY", str(path), problem, advice)


def header_for(grid: Grid, dtype: np.dtype[Any] | None = None) -> Nifti1Header:
    """Return a little-endian NIfTI-1 header with the grid in sform and qform; no text in it."""
    header = Nifti1Header(endianness="<")
    header.set_data_shape(grid.shape)
    if dtype is not None:
        header.set_data_dtype(dtype)
    header.set_xyzt_units("mm")
    header.set_sform(grid.affine, code=1)
    header.set_qform(grid.affine, code=1, strip_shears=True)
    header["vox_offset"] = 352  # the header and its four extension flags
    header["scl_slope"], header["scl_inter"] = 1, 0
    if not grid.is_sheared and not Grid(grid.shape, header.get_qform()).same_place(grid, SAME_PLACE_MM / 2):
        header["qform_code"] = 0
    return header
