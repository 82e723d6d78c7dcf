"""How real DICOM input goes wrong, one row for each: made by the tests' own writer, judged voxel by voxel.

Each row says what must come of it: `ok`, a warning's code, or the code of the refusal. What is accepted is compared
with the analytic object at the world position of every voxel: wrong voxels, a flip, a shift or a lost slice cannot
pass.
"""

from __future__ import annotations

import copy
import gzip
import os
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    MediaStorageDirectoryStorage,
    NuclearMedicineImageStorage,
    RLELossless,
    RTDoseStorage,
    SecondaryCaptureImageStorage,
    UltrasoundMultiFrameImageStorage,
    generate_uid,
)

from medseg.codes import CODES
from medseg.errors import InputError
from medseg.io import dicom_pixels
from medseg.io.workers import call_all
from medseg.scan import Inventory, Scan, find_scans, read, take_inventory
from tests.phantoms import (
    CORONAL,
    ORIGIN,
    SAGITTAL,
    SLICES,
    compress,
    enhanced,
    misfit,
    oblique,
    save,
    series,
    set_pixels,
    stored_pixels,
)

Make = Callable[[Path], object]
ROUNDING = 0.53
"""Stored values are rounded to whole numbers, for PET once more to a step of 0.053; the smallest shift of one voxel
changes the object by 0.7 mm * (7 - 0.03 * 30) = 4.3."""

ROUNDED = 1.0
"""Where the place itself was rounded: 0.03 mm at the object's steepest, 16 for each mm, on top of the rounding."""


# ---- making ---------------------------------------------------------------------------------------------------------


def edited(edit: Callable[[list[Dataset]], object], **options: object) -> Make:
    """A plain CT series, edited before it is saved."""

    def make(folder: Path) -> None:
        datasets = series(**options)  # type: ignore[arg-type]
        edit(datasets)
        save(datasets, folder)

    return make


def each(edit: Callable[[Dataset, int], object], **options: object) -> Make:
    """A plain series with every slice edited; the edit gets the slice and its number."""
    return edited(lambda datasets: [edit(dataset, n) for n, dataset in enumerate(datasets)], **options)


def without(*numbers: int) -> Make:
    return edited(lambda datasets: [datasets.pop(n) for n in sorted(numbers, reverse=True)])


def put(**values: object) -> Callable[[Dataset, int], None]:
    def edit(dataset: Dataset, _n: int) -> None:
        for keyword, value in values.items():
            setattr(dataset, keyword, value)

    return edit


def drop(*keywords: str) -> Callable[[Dataset, int], None]:
    def edit(dataset: Dataset, _n: int) -> None:
        for keyword in keywords:
            delattr(dataset, keyword)

    return edit


def shuffled(folder: Path) -> None:
    rng = np.random.default_rng(4)
    datasets = [series()[n] for n in range(SLICES)]
    one = datasets[0]
    for dataset, number in zip(datasets, rng.permutation(SLICES), strict=True):
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID = one.SeriesInstanceUID, one.StudyInstanceUID
        dataset.FrameOfReferenceUID, dataset.InstanceNumber = one.FrameOfReferenceUID, int(number) + 1
    order = rng.permutation(SLICES)
    save(datasets, folder, name=lambda n: f"IM{order[n]:04d}.dcm")


def two_series(folder: Path, *others: list[Dataset]) -> list[Path]:
    every = [*series(), *(dataset for other in others for dataset in other)]
    return save(every, folder)


def joined(**changes: object) -> Make:
    """Two volumes of the same series UID at the same positions; `changes` set on the second."""

    def make(folder: Path) -> None:
        first, second = series(), series()
        for dataset in second:
            dataset.SeriesInstanceUID, dataset.StudyInstanceUID = first[0].SeriesInstanceUID, first[0].StudyInstanceUID
            dataset.FrameOfReferenceUID = first[0].FrameOfReferenceUID
            put(**changes)(dataset, 0)
        save([*first, *second], folder)

    return make


def encoded(syntax: str, **options: object) -> Make:
    return lambda folder: save(compress(series(**options), syntax), folder)  # type: ignore[arg-type]


def written(syntax: str) -> Make:
    return lambda folder: save(series(), folder, syntax)


def big_endian(folder: Path) -> None:
    datasets = series()
    for dataset in datasets:
        dataset.PixelData = stored_pixels(dataset).astype(">i2" if dataset.PixelRepresentation else ">u2").tobytes()
    save(datasets, folder, ExplicitVRBigEndian)


def spoiled(change: Callable[[bytes], bytes], number: int = 8, syntax: str = "") -> Make:
    """A plain series with the bytes of one file changed."""

    def make(folder: Path) -> None:
        datasets = compress(series(), syntax) if syntax else series()
        path = save(datasets, folder)[number]
        path.write_bytes(change(path.read_bytes()))

    return make


def overlay_bits(dataset: Dataset, number: int) -> None:
    words = stored_pixels(dataset).astype(np.uint16)
    assert words.max() < 4096
    dataset.BitsStored, dataset.HighBit = 12, 11
    set_pixels(dataset, words | (0x3000 if number % 2 else 0x8000))


def short_sign(dataset: Dataset, _n: int) -> None:
    stored = stored_pixels(dataset).astype(np.int64) - 1024
    dataset.RescaleIntercept = "0"
    set_pixels(dataset, stored & 0x0FFF)
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, 1


def own_intercept(datasets: list[Dataset]) -> None:
    set_pixels(datasets[5], stored_pixels(datasets[5]).astype(np.int64) - 1024)
    datasets[5].RescaleIntercept = "0"


def wide(dataset: Dataset, _n: int) -> None:
    dataset.PixelData = stored_pixels(dataset).astype("<u4").tobytes()
    dataset.BitsAllocated = dataset.BitsStored = 32
    dataset.HighBit = 31


def half_pixels(datasets: list[Dataset]) -> None:
    datasets[8].PixelData = datasets[8].PixelData[: len(datasets[8].PixelData) // 2]


def truncated_jpeg2000(folder: Path, end: bytes = b"") -> None:
    datasets = compress(series(), JPEG2000Lossless)
    stream = next(generate_frames(datasets[8].PixelData, number_of_frames=1))
    datasets[8].PixelData = encapsulate([stream[: len(stream) * 2 // 5] + end])
    datasets[8]["PixelData"].VR = "OB"
    save(datasets, folder)


def fragment_beyond_end(folder: Path) -> None:
    datasets = compress(series(), JPEG2000Lossless)
    stream = next(generate_frames(datasets[8].PixelData, number_of_frames=1))
    path = save(datasets, folder)[8]
    data = path.read_bytes()
    at = data.rindex(stream) - 4
    path.write_bytes(data[:at] + struct.pack("<L", 0x7FFFFFF0) + data[at + 4 :])


def unknown_syntax(folder: Path) -> None:
    datasets = compress(series(), RLELossless)
    for path in save(datasets, folder):
        path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.5\0", b"1.2.840.113619.5.99\0"))


def deflate_bomb(folder: Path) -> None:
    datasets = series()
    for number, path in enumerate(save(datasets, folder, DeflatedExplicitVRLittleEndian)):
        if number == 8:
            data = path.read_bytes()
            start = 144 + struct.unpack("<L", data[140:144])[0]
            inner = zlib.decompress(data[start:], -15)
            at = inner.index(b"\x28\x00\x02\x00US")
            squeeze = zlib.compressobj(9, wbits=-15)
            private = struct.pack("<HH2sHL", 0x0027, 0x1001, b"OB", 0, 200 * 2**20)
            parts = [squeeze.compress(inner[:at] + private)]
            parts += [squeeze.compress(bytes(2**20)) for _ in range(200)]
            parts += [squeeze.compress(inner[at:]), squeeze.flush()]
            path.write_bytes(data[:start] + b"".join(parts))


def nested(folder: Path) -> None:
    path = save(series(), folder)[8]
    data = path.read_bytes()
    at = data.index(b"\x28\x00\x02\x00US")
    opening = struct.pack("<HH2sHL", 0x0027, 0x1010, b"SQ", 0, 2**32 - 1) + struct.pack(
        "<HHL", 0xFFFE, 0xE000, 2**32 - 1
    )
    closing = struct.pack("<HHL", 0xFFFE, 0xE00D, 0) + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    path.write_bytes(data[:at] + opening * 20000 + closing * 20000 + data[at:])


def bare(folder: Path) -> None:
    folder.mkdir()
    for number, dataset in enumerate(series()):
        buffer = DicomBytesIO()
        buffer.is_little_endian, buffer.is_implicit_VR = True, True
        dataset.is_little_endian, dataset.is_implicit_VR = True, True
        write_dataset(buffer, dataset)
        (folder / f"IM{number}").write_bytes(buffer.getvalue())


def as_unknown(folder: Path) -> None:
    """Geometry under VR UN in explicit VR, as an archive without a dictionary converts it."""
    for path in save(series(), folder):
        data = path.read_bytes()
        for tag in (b"\x20\x00\x32\x00", b"\x20\x00\x37\x00", b"\x28\x00\x30\x00"):
            at = data.index(tag + b"DS")
            length = struct.unpack("<H", data[at + 6 : at + 8])[0]
            data = data[:at] + tag + b"UN\0\0" + struct.pack("<L", length) + data[at + 8 :]
        path.write_bytes(data)


def colour_series(datasets: list[Dataset]) -> list[Dataset]:
    for dataset in datasets:
        dataset.SOPClassUID, dataset.SamplesPerPixel = SecondaryCaptureImageStorage, 3
        dataset.PhotometricInterpretation, dataset.PlanarConfiguration = "RGB", 0
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
        dataset.PixelRepresentation = 0
        dataset.PixelData = bytes(dataset.Rows * dataset.Columns * 3)
        dataset["PixelData"].VR = "OB"
    return datasets


def ultrasound(datasets: list[Dataset]) -> None:
    del datasets[1:]
    dataset = datasets[0]
    dataset.SOPClassUID, dataset.Modality, dataset.NumberOfFrames = UltrasoundMultiFrameImageStorage, "US", 12
    dataset.PixelData = dataset.PixelData * 12
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(dataset, keyword)


def planes(*others: tuple[tuple[float, ...], int], first: int = SLICES, localizer: bool = True) -> Make:
    """An axial stack and a few slices of other planes, in one series."""

    def make(folder: Path) -> None:
        datasets = series(slices=first)
        for orientation, count in others:
            more = series(orientation=orientation, slices=count)
            for dataset in more:
                dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = datasets[0].SeriesInstanceUID, ""
                dataset.FrameOfReferenceUID = datasets[0].FrameOfReferenceUID
                dataset.StudyInstanceUID = datasets[0].StudyInstanceUID
                dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER" if localizer else "AXIAL"]
            datasets += more
        save(datasets, folder)

    return make


def decimal_commas(folder: Path) -> None:
    for path in save(series(), folder):
        path.write_bytes(path.read_bytes().replace(b"0.9\\0.7 ", b"0,9\\0,7 "))


def smaller(count: int) -> Callable[[list[Dataset]], None]:
    def edit(datasets: list[Dataset]) -> None:
        for dataset in datasets[-count:]:
            set_pixels(dataset, stored_pixels(dataset)[::2, ::2])
            dataset.Rows, dataset.Columns = dataset.Rows // 2, dataset.Columns // 2
            dataset.PixelSpacing = [2 * float(s) for s in dataset.PixelSpacing]

    return edit


def change_some(numbers: range, **values: object) -> Make:
    return edited(lambda datasets: [put(**values)(datasets[n], n) for n in numbers])


def duplicates(folder: Path) -> None:
    paths = save(series(), folder)
    for number in (3, 4, 11):
        (folder / f"IM{number:04d} (1).dcm").write_bytes(paths[number].read_bytes())


def conflicting(datasets: list[Dataset]) -> None:
    twin = series()[6]
    twin.SeriesInstanceUID, twin.FrameOfReferenceUID = datasets[0].SeriesInstanceUID, datasets[0].FrameOfReferenceUID
    twin.StudyInstanceUID = datasets[0].StudyInstanceUID
    set_pixels(twin, stored_pixels(twin).astype(np.int64) + 40)
    datasets.append(twin)


def conflicting_later(datasets: list[Dataset]) -> None:
    conflicting(datasets)
    datasets[-1].ImageType, datasets[-1].AcquisitionNumber = ["DERIVED", "SECONDARY", "AXIAL"], 2


def thick_part(folder: Path) -> None:
    thin, thick = series(slices=12), series(origin=(*ORIGIN[:2], ORIGIN[2] + 11 * 2.5 + 5), step=5, slices=8)
    for dataset in thick:
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID = thin[0].SeriesInstanceUID, thin[0].StudyInstanceUID
        dataset.FrameOfReferenceUID = thin[0].FrameOfReferenceUID
    save([*thin, *thick], folder)


def two_stacks(folder: Path) -> None:
    first, second = series(), series(orientation=oblique((10, 0, 0)), origin=(-11, -14, 60))
    for dataset in second:
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID = first[0].SeriesInstanceUID, first[0].StudyInstanceUID
        dataset.FrameOfReferenceUID = first[0].FrameOfReferenceUID
    save([*first, *second], folder)


def second_time_point(stop: int = SLICES, **marks: str) -> Make:
    def make(folder: Path) -> None:
        first, second = series(), series()[:stop]
        for number, dataset in enumerate([*first, *second]):
            dataset.SeriesInstanceUID, dataset.StudyInstanceUID = first[0].SeriesInstanceUID, first[0].StudyInstanceUID
            dataset.FrameOfReferenceUID = first[0].FrameOfReferenceUID
            dataset.TemporalPositionIdentifier = 1 + (number >= SLICES)
            dataset.InstanceNumber = 2 * (number % SLICES) + 1 + (number >= SLICES)
        save([*first, *second], folder)

    return make


def with_junk(folder: Path) -> None:
    paths = save(series(), folder)
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1" + bytes(100))
    (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0" + bytes(600))
    (folder / "README.txt").write_text("read me")
    (folder / "report.pdf").write_bytes(b"%PDF-1.4 ...")
    (folder / "data.zip").write_bytes(b"PK\x03\x04" + bytes(50))
    (folder / "index.json").write_text("{}")
    (folder / "._IM0001.dcm").write_bytes(b"\0\x05\x16\x07" + bytes(4092))
    (folder / "DICOMDIR").write_bytes(paths[0].read_bytes())
    (folder / "VERSION").write_text("")
    (folder / "IM9.dcm.part").write_bytes(paths[0].read_bytes()[:500])


def with_pipe(folder: Path) -> None:
    save(series(), folder)
    os.mkfifo(folder / "IM9999.dcm")


def claim(number: int = 8, **values: int) -> Callable[[list[Dataset]], None]:
    return lambda datasets: put(**values)(datasets[number], number)


def with_screenshot(datasets: list[Dataset]) -> None:
    picture = series(slices=1)
    colour_series(picture)
    drop("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")(picture[0], 0)
    picture[0].SeriesInstanceUID = datasets[0].SeriesInstanceUID
    datasets += picture


def colour_last(datasets: list[Dataset]) -> None:
    colour_series(datasets[-1:])


def huge_length(data: bytes) -> bytes:
    at = data.rindex(b"\xe0\x7f\x10\x00OW") + 8
    return data[:at] + struct.pack("<L", 0xFFFFFFF0) + data[at + 4 :]


def slope_half(folder: Path) -> None:
    datasets = series(slope=0.5, intercept=-1024.5)
    save(datasets, folder)


def pet(datasets: list[Dataset]) -> None:
    for number, dataset in enumerate(datasets):
        values = stored_pixels(dataset).astype(np.float64) * float(dataset.RescaleSlope) - 1024
        slope = 1.0 if number == 0 else 0.05 + 0.00013 * number
        set_pixels(dataset, np.rint((values + 1024) / slope).clip(0, 65535))
        dataset.RescaleSlope, dataset.RescaleIntercept = f"{slope:.9g}", "-1024"


def polyglot(data: bytes) -> bytes:
    return b"MZ\x90\0" + bytes(124) + data[128:]


def shift(number: int, by: tuple[float, float, float]) -> Callable[[list[Dataset]], None]:
    def edit(datasets: list[Dataset]) -> None:
        place = np.array([float(v) for v in datasets[number].ImagePositionPatient]) + by
        datasets[number].ImagePositionPatient = [f"{v:.6g}" for v in place]

    return edit


def enhanced_times(folder: Path) -> None:
    first, second = series(), series()
    for dataset in second:
        dataset.TemporalPositionIdentifier = 2
    mixed = [first[n // 2] if n % 2 == 0 else second[n // 2] for n in range(2 * SLICES)]
    save([enhanced(mixed)], folder)


def enhanced_compressed(syntax: str) -> Make:
    def make(folder: Path) -> None:
        whole = enhanced(series(), np.random.default_rng(1).permutation(SLICES).tolist())
        save(compress([whole], syntax), folder)

    return make


def enhanced_gap(folder: Path) -> None:
    datasets = series()
    save([enhanced(datasets, [n for n in range(SLICES) if n != 8])], folder)


def enhanced_mr(folder: Path, syntax: str = ExplicitVRLittleEndian, each_alone: bool = False, **shared: object) -> None:
    """Enhanced MR without a rescale macro; in one file, or as one file for each frame."""
    datasets = series("MR", orientation=SAGITTAL, origin=(25, -20, 20))
    for dataset in datasets:
        dataset.RescaleSlope, dataset.RescaleIntercept = "1", "0"
    wholes = [enhanced([d]) for d in datasets] if each_alone else [enhanced(datasets)]
    for whole in wholes:
        whole.SOPClassUID = EnhancedMRImageStorage
        for group in whole.PerFrameFunctionalGroupsSequence:
            del group.PixelValueTransformationSequence
    save(wholes, folder, syntax)


def philips(folder: Path) -> None:
    """Enhanced MR with the modality rescale, Philips' private scale slope (2005,100E) and a real-world value map.

    The modality rescale counts (PS3.3 C.11.1.1): what scanner, console and every other reader show.
    """
    datasets = series(slope=0.5, intercept=-2000.0)
    whole = enhanced(datasets)
    whole.SOPClassUID, whole.Modality = EnhancedMRImageStorage, "MR"
    for group in whole.PerFrameFunctionalGroupsSequence:
        private = Dataset()
        private.add_new(0x20050010, "LO", "Philips MR Imaging DD 005")
        private.add_new(0x2005100E, "FL", 0.0123)
        group.add_new(0x2005140F, "SQ", Items([private]))
        real = Dataset()
        real.RealWorldValueSlope, real.RealWorldValueIntercept = 81.3, 5.0
        real.RealWorldValueFirstValueMapped, real.RealWorldValueLastValueMapped = 0, 4095
        group.RealWorldValueMappingSequence = Items([real])
    save([whole], folder)


def own_planes(folder: Path) -> None:
    """Orientation and spacing for each frame, rescale for all."""
    datasets = series(orientation=oblique((12, -17, 23)))
    whole = enhanced(datasets, np.random.default_rng(3).permutation(SLICES).tolist())
    shared = whole.SharedFunctionalGroupsSequence[0]
    for group in whole.PerFrameFunctionalGroupsSequence:
        group.PlaneOrientationSequence = shared.PlaneOrientationSequence
        group.PixelMeasuresSequence = shared.PixelMeasuresSequence
        shared.PixelValueTransformationSequence = group.PixelValueTransformationSequence
        del group.PixelValueTransformationSequence
    del shared.PlaneOrientationSequence, shared.PixelMeasuresSequence
    save([whole], folder)


def enhanced_stacks(folder: Path) -> None:
    """Siemens XA: two stacks of slices, 10 degrees apart, in one object."""
    below, above = (
        series(intercept=-3000),
        series(orientation=oblique((10, 0, 0)), origin=(-11, -14, 60), intercept=-3000),
    )
    both = [*below, *above]
    whole = enhanced(both)
    for number, (group, dataset) in enumerate(zip(whole.PerFrameFunctionalGroupsSequence, both, strict=True)):
        plane = Dataset()
        plane.ImageOrientationPatient = dataset.ImageOrientationPatient
        group.PlaneOrientationSequence = Items([plane])
        group.FrameContentSequence[0].StackID = str(1 + number // SLICES)
        group.FrameContentSequence[0].InStackPositionNumber = 1 + number % SLICES
    del whole.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
    save([whole], folder)


def enhanced_echoes(folder: Path) -> None:
    both = [dataset for pair in zip(series(), series(), strict=True) for dataset in pair]
    whole = enhanced(both)
    whole.SOPClassUID, whole.Modality = EnhancedMRImageStorage, "MR"
    for number, group in enumerate(whole.PerFrameFunctionalGroupsSequence):
        echo = Dataset()
        echo.EffectiveEchoTime = 2.3 if number % 2 else 4.6
        group.MREchoSequence = Items([echo])
    save([whole], folder)


def csa_header(slices: int) -> bytes:
    """Siemens' CSA2 header with the number of slices in a mosaic, which ordinary images have too, without items."""
    return csa2({b"EchoLinePosition": b"32", b"NumberOfImagesInMosaic": str(slices).encode() if slices else b""})


def csa2(values: dict[bytes, bytes]) -> bytes:
    tags = b""
    for name, text in values.items():
        length = len(text) + 1 if text else 0
        tags += name.ljust(64, b"\0") + struct.pack("<l4slll", 1, b"US\0\0", 9, 6, 77)
        tags += struct.pack("<4l", length, length, 77, length) + text.ljust((length + 3) // 4 * 4, b"\0")
        tags += struct.pack("<4l", 0, 0, 77, 0) * 5
    return b"SV10\4\3\2\1" + struct.pack("<LL", len(values), 77) + tags


def csa(slices: int) -> Callable[[Dataset, int], None]:
    def edit(dataset: Dataset, _n: int) -> None:
        dataset.add_new(0x00290010, "LO", "SIEMENS CSA HEADER")
        dataset.add_new(0x00291010, "OB", csa_header(slices))

    return edit


def mosaic(
    orientation: tuple[float, ...] = oblique((12, -17, 23)),
    numbers: range = range(SLICES),
    moved_mm: float = 0,
    counted: int = SLICES,
    syntax: str = ExplicitVRLittleEndian,
    times: int = 1,
) -> Make:
    """Mosaics of 5 x 5 tiles as a Siemens scanner makes them, of which the last five are empty.

    Args:
        orientation: of the slices.
        numbers: which slice stands in each tile; the protocol lists them in the order of the scan.
        moved_mm: how far the protocol's slices lie from where they are.
        counted: slices by the protocol.
        syntax: transfer syntax.
        times: how many, one for each time point.
    """

    def make(folder: Path) -> None:
        slices = series("MR", orientation=orientation, origin=(-11, -14, -22))
        rows, columns = slices[0].Rows, slices[0].Columns
        right, down = np.array(orientation[:3]) * 0.7, np.array(orientation[3:]) * 0.9
        corners = np.array([[float(v) for v in d.ImagePositionPatient] for d in slices])
        centres = corners + right * columns / 2 + down * rows / 2 + (0, 0, moved_mm)
        whole = np.zeros((5 * rows, 5 * columns), np.int64)
        for tile, number in enumerate(numbers):
            y, x = divmod(tile, 5)
            whole[y * rows : (y + 1) * rows, x * columns : (x + 1) * columns] = stored_pixels(slices[number])
        image = slices[0]
        image.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
        image.ImagePositionPatient = [f"{v:.9g}" for v in corners[numbers[0]] - right * 2 * columns - down * 2 * rows]
        image.Rows, image.Columns = whole.shape
        set_pixels(image, whole)
        lines = [f"sSliceArray.lSize = {counted}"]
        for number, centre in enumerate(centres):
            for axis, value in zip(("Sag", "Cor", "Tra"), centre, strict=True):
                lines.append(f"sSliceArray.asSlice[{number}].sPosition.d{axis}\t = \t{value:.9g}")
        csa(len(numbers))(image, 0)
        image.add_new(0x00291020, "OB", csa2({b"MrPhoenixProtocol": "\n".join(lines).encode()}))
        images = [copy.deepcopy(image) for _ in range(times)]
        for number, one in enumerate(images):
            one.AcquisitionNumber = one.InstanceNumber = number + 1
            one.SOPInstanceUID = generate_uid()
        save(compress(images, syntax) if syntax == RLELossless else images, folder, syntax)

    return make


def eight_bits(dataset: Dataset, _n: int) -> None:
    values = stored_pixels(dataset).astype(np.int64)
    low = int(values.min())
    assert values.max() - low < 256
    dataset.PixelData = (values - low).astype(np.uint8).tobytes()
    dataset["PixelData"].VR = "OB"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.RescaleSlope, dataset.RescaleIntercept = "1", str(low)


def noisy_places(dataset: Dataset, number: int) -> None:
    noise = np.random.default_rng(number).uniform(-1e-7, 1e-7, 3)
    place = np.array([float(v) for v in dataset.ImagePositionPatient]) + noise
    dataset.ImagePositionPatient = [f"{v:.9f}"[:16] for v in place]


def without_mark(data: bytes) -> bytes:
    """No preamble and no `DICM`, but the file meta group, as some old GE consoles wrote."""
    return data[132:]


def all_without_mark(folder: Path) -> None:
    for path in save(series(), folder):
        path.write_bytes(without_mark(path.read_bytes()))


def with_directory(folder: Path) -> None:
    """A DICOMDIR that lists the files, under its own name and as a copy under another."""
    paths = save(series(), folder)
    directory, record = Dataset(), Dataset()
    directory.SOPClassUID, directory.SOPInstanceUID = MediaStorageDirectoryStorage, generate_uid()
    record.ReferencedFileID = ["..", "..", "etc", "passwd"]
    record.DirectoryRecordType = "IMAGE"
    directory.DirectoryRecordSequence = Items([record])
    for name in ("DICOMDIR", "INDEX.dcm"):
        directory.file_meta = FileMetaDataset()
        directory.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        save([directory], folder, name=lambda _n, name=name: name)
    assert len(paths) == SLICES


def nuclear(datasets: list[Dataset]) -> None:
    """NM tomography: many frames, spacing and start in the detector's sequence, which is no position of frames."""
    first = datasets[0]
    detector = Dataset()
    detector.ImagePositionPatient, detector.ImageOrientationPatient = (
        first.ImagePositionPatient,
        first.ImageOrientationPatient,
    )
    first.SOPClassUID, first.Modality, first.NumberOfFrames = NuclearMedicineImageStorage, "NM", SLICES
    first.DetectorInformationSequence = Items([detector])
    first.SpacingBetweenSlices = "2.5"
    first.PixelData = b"".join(dataset.PixelData for dataset in datasets)
    del first.ImagePositionPatient, first.ImageOrientationPatient
    del datasets[1:]


def dynamic_pet(folder: Path) -> None:
    frames = [series("PT"), series("PT")]
    for number, datasets in enumerate(frames):
        for dataset in datasets:
            for keyword in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
                setattr(dataset, keyword, getattr(frames[0][0], keyword))
            dataset.FrameReferenceTime = str(30000 + 60000 * number)
            dataset.AcquisitionTime = f"1200{number:02d}"
    save([*frames[0], *frames[1]], folder)


def left_justified(dataset: Dataset, _n: int) -> None:
    words = stored_pixels(dataset).astype(np.uint16)
    assert words.max() < 4096
    set_pixels(dataset, words << 4)
    dataset.BitsStored, dataset.HighBit = 12, 15


def with_dose(folder: Path) -> None:
    save(series(), folder)
    dose = series(slices=1)[0]
    dose.SOPClassUID, dose.Modality = RTDoseStorage, "RTDOSE"
    save([dose], folder, name=lambda _n: "RD.dcm")


def patient_lies(position: str, orientation: tuple[float, ...], **options: object) -> Make:
    return each(put(PatientPosition=position), orientation=orientation, **options)


def lifted(by: int, numbers: slice, **marks: object) -> Make:
    """Some slices with other marks, and values that are higher by `by`: another image of the same patient."""

    def edit(datasets: list[Dataset]) -> None:
        for dataset in datasets[numbers]:
            set_pixels(dataset, stored_pixels(dataset).astype(np.int64) + by)
            put(**marks)(dataset, 0)

    return edited(edit)


def private_b_values(datasets: list[Dataset]) -> None:
    for number, dataset in enumerate(datasets):
        dataset.add_new(0x00190010, "LO", "SIEMENS MR HEADER")
        dataset.add_new(0x0019100C, "IS", "0" if number < 10 else "800")


def signed_twin(datasets: list[Dataset]) -> None:
    """The bytes of one slice once more, with another meaning."""
    twin = copy.deepcopy(datasets[5])
    twin.PixelRepresentation = 1
    datasets.append(twin)


def eight_bits_as_words(folder: Path) -> None:
    """8-bit pixels of explicit VR big endian as 16-bit words, an odd number in a frame (PS3.5 8.1.1)."""
    datasets = series("MR", size=(7, 9), slices=2, step=1.0)
    for number, dataset in enumerate(datasets):
        eight_bits(dataset, number)
        plain = dataset.PixelData + b"\0"
        dataset.PixelData = np.frombuffer(plain, "<u2").astype(">u2").tobytes()
        dataset["PixelData"].VR = "OW"
    save(datasets, folder, ExplicitVRBigEndian)


def both_phases_cut(folder: Path) -> None:
    """Two phases of 17 slices each; 20 were acquired of each, and the geometry is regular."""
    first, second = series()[:17], series()[:17]
    for dataset in second:
        for keyword in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
            setattr(dataset, keyword, getattr(first[0], keyword))
        dataset.AcquisitionNumber = 2
    for dataset in (*first, *second):
        dataset.ImagesInAcquisition = SLICES
    save([*first, *second], folder)


def by_number(in_turns: bool) -> Make:
    """Three volumes that nothing but the numbers of their images tells apart."""

    def make(folder: Path) -> None:
        volumes = [series("MR") for _ in range(3)]
        for number, datasets in enumerate(volumes):
            for place, dataset in enumerate(datasets):
                for keyword in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
                    setattr(dataset, keyword, getattr(volumes[0][0], keyword))
                dataset.InstanceNumber = 3 * place + number + 1 if in_turns else SLICES * number + place + 1
                dataset.AcquisitionTime = f"12{place:02d}{number:02d}"  # its own for each slice
        save([dataset for datasets in volumes for dataset in datasets], folder)

    return make


def ge_component(datasets: list[Dataset]) -> None:
    """GE: magnitude and phase, told by a private number alone, in turns along the stack."""
    for number, dataset in enumerate(datasets):
        dataset.add_new(0x00430010, "LO", "GEMS_PARM_01")
        dataset.add_new(0x0043102F, "SS", number % 2)


def other_maker(dataset: Dataset, number: int) -> None:
    """Another maker's private elements with the numbers of Siemens' mosaics and b-values."""
    dataset.add_new(0x00190010, "LO", "ACME MEDICAL 1.0")
    dataset.add_new(0x0019100A, "US", 7)
    dataset.add_new(0x0019100C, "IS", str(100 * (number % 2)))


def enhanced_pair(macro: str, *items: dict[str, object]) -> Make:
    """Two volumes in one enhanced object, told apart by a functional group."""

    def make(folder: Path) -> None:
        both = [dataset for pair in zip(series(), series(), strict=True) for dataset in pair]
        whole = enhanced(both)
        for number, group in enumerate(whole.PerFrameFunctionalGroupsSequence):
            _set_macro(group, macro, items[number % 2])
        save([whole], folder)

    return make


def _set_macro(group: Dataset, macro: str, values: dict[str, object]) -> None:
    item = Dataset()
    put(**values)(item, 0)
    setattr(group, macro, Items([item]))


def enhanced_in_turns(folder: Path) -> None:
    """A regular stack whose every second frame has another flip angle."""
    whole = enhanced(series())
    for number, group in enumerate(whole.PerFrameFunctionalGroupsSequence):
        _set_macro(group, "MRTimingAndRelatedParametersSequence", {"FlipAngle": 5.0 if number % 2 else 25.0})
    save([whole], folder)


def one_file_each(folder: Path) -> None:
    """Siemens XA: a time series as one enhanced file for each volume, which only their numbers tell apart."""
    wholes = [enhanced(series(intercept=-1024 - 10 * number)) for number in range(3)]
    for number, whole in enumerate(wholes):
        for keyword in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
            setattr(whole, keyword, getattr(wholes[0], keyword))
        whole.InstanceNumber = number + 1
    save(wholes, folder)


def divided(*parts: int) -> Make:
    """An enhanced object divided into two files (PS3.3 C.7.6.16.2.2.4), of which some are here."""

    def make(folder: Path) -> None:
        for part in parts:
            whole = enhanced(DIVIDED[10 * part : 10 * part + 10])
            whole.ConcatenationUID, whole.InConcatenationNumber, whole.InConcatenationTotalNumber = "1.2.9", part + 1, 2
            save([whole], folder, name=lambda _n, part=part: f"part{part}.dcm")

    return make


DIVIDED = series()


def with_plain_picture(datasets: list[Dataset]) -> None:
    """A grey screenshot in the series, without a place in the patient."""
    picture = series(slices=1)[0]
    drop("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")(picture, 0)
    picture.SOPClassUID, picture.SeriesInstanceUID = SecondaryCaptureImageStorage, datasets[0].SeriesInstanceUID
    datasets.append(picture)


def name_in_two_charsets(dataset: Dataset, number: int) -> None:
    dataset.SpecificCharacterSet = "ISO_IR 100" if number % 2 else "ISO_IR 192"
    dataset.PatientName = "Mu\u0308ller^Jo\u0308rg" if number == 4 else "Müller^Jörg"  # one of them in two characters
    if number == 4:
        dataset.SpecificCharacterSet = "ISO_IR 192"


def packed_last(folder: Path) -> None:
    path = save(series(), folder)[-1]
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


def mark_overwritten(data: bytes) -> bytes:
    return data[:128] + bytes(4) + data[132:]


def preamble_lost(data: bytes) -> bytes:
    return data[128:]


def changed_all(change: Callable[[bytes], bytes]) -> Make:
    def make(folder: Path) -> None:
        for path in save(series(), folder):
            path.write_bytes(change(path.read_bytes()))

    return make


def with_changed_copy(folder: Path) -> None:
    data = save(series(), folder)[5].read_bytes()
    (folder / "copy.dcm").write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])


def two_units(dataset: Dataset, number: int) -> None:
    dataset.Units = "BQML" if number < 10 else "GML"


def own_uid(keyword: str) -> Callable[[Dataset, int], None]:
    return lambda dataset, _n: setattr(dataset, keyword, generate_uid())


def two_coordinates(data: bytes) -> bytes:
    at = data.index(b"\x20\0\x32\0DS")
    length = struct.unpack("<H", data[at + 6 : at + 8])[0]
    return data[: at + 8] + b"-11\\-14".ljust(length) + data[at + 8 + length :]


def nested_place(dataset: Dataset, _n: int) -> None:
    other = Dataset()
    other.ImagePositionPatient, other.PixelSpacing, other.Rows = ["1", "2", "3"], ["9", "9"], 3
    dataset.SourceImageSequence = Items([other])


def icon(dataset: Dataset, _n: int) -> None:
    small = Dataset()
    small.Rows = small.Columns = 4
    small.BitsAllocated = small.BitsStored = 8
    small.PixelData = bytes(16)
    small["PixelData"].VR = "OB"
    dataset.IconImageSequence = Items([small])


def fragmented(streams: list[bytes], size: int) -> bytes:
    """Encapsulated pixels without an offset table, each frame in pieces of some bytes."""
    pieces = [stream[at : at + size] for stream in streams for at in range(0, len(stream), size)]
    items = [struct.pack("<HHL", 0xFFFE, 0xE000, len(piece)) + piece for piece in (b"", *pieces)]
    return b"".join(items) + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)


def many_fragments(folder: Path) -> None:
    datasets = compress(series(), JPEG2000Lossless)
    for dataset in datasets:
        dataset.PixelData = fragmented(list(generate_frames(dataset.PixelData, number_of_frames=1)), 500)
    save(datasets, folder)


def enhanced_fragments(folder: Path) -> None:
    (whole,) = compress([enhanced(series())], JPEG2000Lossless)
    whole.PixelData = fragmented(list(generate_frames(whole.PixelData, number_of_frames=SLICES)), 1000)
    save([whole], folder)


def move_far(datasets: list[Dataset]) -> None:
    for dataset in datasets[10:]:
        dataset.FrameOfReferenceUID = "1.2.3.4"


# ---- the rows -------------------------------------------------------------------------------------------------------

ROWS: list[tuple[str, Make, str]] = [
    ("axial, anisotropic pixels", edited(list), "ok"),
    ("signed 16 bit, slope 1, intercept 0", edited(list, intercept=0), "ok"),
    ("compound oblique", edited(list, orientation=oblique((12, -17, 23))), "ok"),
    ("sagittal MR without rescale", edited(list, modality="MR", orientation=SAGITTAL, origin=(25, -20, 20)), "ok"),
    ("coronal MR", edited(list, modality="MR", orientation=CORONAL, origin=(-20, -25, 20)), "ok"),
    ("instance numbers and names run head to foot", edited(list, step=(0, 0, -2.5), origin=(-11, -14, 30)), "ok"),
    ("names and instance numbers shuffled", shuffled, "ok"),
    ("no InstanceNumber", each(drop("InstanceNumber")), "ok"),
    ("InstanceNumber 1 everywhere", each(put(InstanceNumber=1)), "ok"),
    ("one SOPInstanceUID for all", each(put(SOPInstanceUID="1.2.3")), "DICOM-IDENTITY"),
    ("implicit VR", written(ImplicitVRLittleEndian), "ok"),
    ("explicit VR big endian", big_endian, "ok"),
    ("deflated", written(DeflatedExplicitVRLittleEndian), "ok"),
    ("RLE", encoded(RLELossless), "ok"),
    ("RLE, signed", encoded(RLELossless, intercept=0), "ok"),
    ("JPEG 2000 lossless", encoded(JPEG2000Lossless), "ok"),
    ("JPEG 2000 lossless, signed", encoded(JPEG2000Lossless, intercept=0), "ok"),
    ("JPEG-LS", encoded(JPEGLSLossless), "ok"),
    ("JPEG lossless SV1", encoded(JPEGLosslessSV1), "ok"),
    ("JPEG lossless SV1, signed", encoded(JPEGLosslessSV1, intercept=0), "ok"),
    ("private transfer syntax", unknown_syntax, "!DICOM-SYNTAX"),
    ("JPEG 2000 stream ends early", truncated_jpeg2000, "!DICOM-PIXELS"),
    ("JPEG 2000 stream ends early, marker added", lambda f: truncated_jpeg2000(f, b"\xff\xd9"), "?DICOM-PIXELS"),
    ("one slice cut at 60 %", spoiled(lambda data: data[: len(data) * 6 // 10]), "!DICOM-READ"),
    ("one slice cut inside its header", spoiled(lambda data: data[:700]), "!DICOM-"),
    ("one slice cut before its series is named", spoiled(lambda data: data[:400], 19), "!DICOM-READ"),
    ("one compressed slice cut at 60 %", spoiled(lambda d: d[: len(d) * 6 // 10], 8, RLELossless), "!DICOM-READ"),
    ("half the pixels, consistent length", edited(half_pixels), "!DICOM-PIXELS"),
    (
        "512 surplus bytes of pixel data",
        each(lambda d, n: put(PixelData=d.PixelData + bytes(512))(d, n)),
        "DICOM-PADDING",
    ),
    ("one slice without pixel data", edited(lambda datasets: drop("PixelData")(datasets[8], 8)), "!DICOM-PIXELS"),
    ("no slice has pixel data", each(drop("PixelData")), "!DICOM-PIXELS"),
    ("overlay bits above 12 stored", each(overlay_bits), "ok"),
    ("12 stored bits, sign not extended", each(short_sign), "ok"),
    ("one slice with its own intercept", edited(own_intercept), "ok"),
    ("slope 0.5, intercept -1024.5", slope_half, "ok"),
    ("PET, fractional slope for each slice but the first", edited(pet, modality="PT"), "ok"),
    ("slope 0", each(put(RescaleSlope="0")), "!DICOM-RESCALE"),
    (
        "slope unreadable",
        each(lambda d, n: put(RescaleSlope=None)(d, n) or d.add_new(0x00281053, "LO", "a")),
        "!DICOM-RESCALE",
    ),
    (
        "one slice states no rescale",
        edited(lambda d: drop("RescaleSlope", "RescaleIntercept")(d[3], 3)),
        "!DICOM-RESCALE",
    ),
    ("unsigned 16 bit above 32767", edited(list, intercept=-50000), "ok"),
    ("32 bits allocated", each(wide), "ok"),
    ("MONOCHROME1", each(put(PhotometricInterpretation="MONOCHROME1")), "DICOM-INVERTED"),
    ("colour only", edited(colour_series), "!DICOM-COLOUR"),
    ("enhanced CT", lambda f: save([enhanced(series())], f), "ok"),
    (
        "enhanced CT, frames shuffled",
        lambda f: save([enhanced(series(), np.random.default_rng(1).permutation(20))], f),
        "ok",
    ),
    ("enhanced CT, RLE", enhanced_compressed(RLELossless), "ok"),
    ("enhanced CT, JPEG 2000", enhanced_compressed(JPEG2000Lossless), "ok"),
    ("enhanced CT, two time points", enhanced_times, "DICOM-SPLIT"),
    ("enhanced CT, a frame missing", enhanced_gap, "!DICOM-GAP"),
    ("mosaic", each(put(ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]), slices=1), "!DICOM-MOSAIC"),
    ("one slice", edited(list, slices=1), "!DICOM-SINGLE"),
    ("two slices", edited(list, slices=2), "DICOM-FEW"),
    ("slice 8 missing", without(8), "!DICOM-GAP"),
    ("slices 5, 6 and 13 missing", without(5, 6, 13), "!DICOM-GAP"),
    ("the last three missing, a count tells", each(put(ImagesInAcquisition=23)), "DICOM-COUNT"),
    ("three identical copies", duplicates, "DICOM-DUPLICATE"),
    ("two different slices at one position", edited(conflicting), "!DICOM-DUPLICATE"),
    ("two different slices, one derived", edited(conflicting_later), "!DICOM-DUPLICATE"),
    ("2.5 mm, then 5 mm", thick_part, "!DICOM-SPACING"),
    (
        "positions rounded to 3 decimals, oblique",
        edited(list, orientation=oblique((12, -17, 23)), decimals=(3, 10)),
        "ok",
    ),
    (
        "positions rounded to 2 decimals, oblique",
        edited(list, orientation=oblique((12, -17, 23)), decimals=(2, 10)),
        "ok",
    ),
    (
        "positions rounded to 1 decimal, oblique",
        edited(list, orientation=oblique((12, -17, 23)), decimals=(1, 10)),
        "DICOM-ROUNDED",
    ),
    ("cosines rounded to 5 decimals", edited(list, orientation=oblique((12, -17, 23)), decimals=(10, 5)), "ok"),
    ("cosines rounded to 4 decimals", edited(list, orientation=oblique((12, -17, 23)), decimals=(10, 4)), "ok"),
    ("cosines rounded to 3 decimals", edited(list, orientation=oblique((12, -17, 23)), decimals=(6, 3)), "ok"),
    (
        "cosines rounded to 1 decimal",
        edited(list, orientation=oblique((12, -17, 23)), decimals=(6, 1)),
        "!DICOM-GEOMETRY",
    ),
    ("one slice shifted along the normal", edited(shift(7, (0, 0, 0.5))), "!DICOM-SPACING"),
    ("one slice shifted sideways", edited(shift(7, (1.0, 0, 0))), "!DICOM-GEOMETRY"),
    ("spacing drifts", each(lambda d, n: shift(n, (0, 0, 0.01 * n * n))([d] * (n + 1))), "!DICOM-SPACING"),
    ("tilted gantry", edited(list, step=(0, 0.8, 2.4)), "DICOM-TILT"),
    ("tilted gantry the other way", edited(list, orientation=oblique((18, 0, 0)), step=(0, 0, 2.5)), "DICOM-TILT"),
    ("three-plane localizer", planes((SAGITTAL, 3), (CORONAL, 3), first=3), "!DICOM-LOCALIZER"),
    (
        "unmarked three-plane localizer",
        planes((SAGITTAL, 3), (CORONAL, 3), first=3, localizer=False),
        "!DICOM-LOCALIZER",
    ),
    ("one localizer beside the stack", planes((CORONAL, 1)), "DICOM-SPLIT"),
    ("one unmarked slice of another plane", planes((CORONAL, 1), localizer=False), "DICOM-SPLIT"),
    (
        "one slice turned a little",
        change_some(range(19, 20), ImageOrientationPatient=list(oblique((5, 0, 0)))),
        "!DICOM-MIXED",
    ),
    ("arterial and venous phase", joined(AcquisitionNumber=2), "DICOM-SPLIT"),
    ("two time points, interleaved", second_time_point(), "DICOM-SPLIT"),
    ("echo time written in two ways", each(lambda d, n: put(EchoTime="4.6" if n % 2 else "4.6001")(d, n)), "ok"),
    ("two stacks turned by 10 degrees", two_stacks, "DICOM-SPLIT"),
    ("dual echo", joined(EchoTime="4.6", EchoNumbers="2"), "DICOM-SPLIT"),
    ("two b-values", joined(DiffusionBValue=800.0), "DICOM-SPLIT"),
    ("in phase and opposed by image type", joined(ImageType=["DERIVED", "PRIMARY", "OPP_PHASE"]), "DICOM-SPLIT"),
    ("the second time point stops early", second_time_point(13), "DICOM-SPLIT"),
    ("half the stack has another echo", change_some(range(10, 20), EchoTime="4.6"), "!DICOM-MIXED"),
    ("acquisition number counts the slices", each(lambda d, n: put(AcquisitionNumber=n + 1)(d, n)), "ok"),
    (
        "acquisition number counts the slices, all are here",
        each(lambda d, n: put(AcquisitionNumber=n + 1, ImagesInAcquisition=SLICES)(d, n)),
        "ok",
    ),
    (
        "two slices of another patient",
        change_some(range(7, 9), PatientID="ID-4712", PatientName="Roe^Max"),
        "!DICOM-PATIENT",
    ),
    ("two slices of another name", change_some(range(7, 9), PatientName="Roe^Max"), "!DICOM-PATIENT"),
    ("one name spelt two ways", change_some(range(7, 9), PatientName="DOE^JANE^^"), "ok"),
    ("5 slices of half the size", edited(smaller(5)), "!DICOM-MIXED"),
    ("10 slices of half the size", edited(smaller(10)), "!DICOM-MIXED"),
    ("6 slices of another pixel spacing", change_some(range(6, 12), PixelSpacing=["1.1", "1.1"]), "!DICOM-MIXED"),
    (
        "every other slice of another pixel spacing",
        change_some(range(0, 20, 2), PixelSpacing=["1.1", "1.1"]),
        "!DICOM-MIXED",
    ),
    ("all at one position", each(put(ImagePositionPatient=list(ORIGIN))), "!DICOM-DUPLICATE"),
    ("no position and orientation", each(drop("ImagePositionPatient", "ImageOrientationPatient")), "!DICOM-GEOMETRY"),
    ("no pixel spacing", each(drop("PixelSpacing")), "!DICOM-GEOMETRY"),
    ("pixel spacing 0", each(put(PixelSpacing=["0", "0"])), "!DICOM-GEOMETRY"),
    ("orientation all zero", each(put(ImageOrientationPatient=[0] * 6)), "!DICOM-GEOMETRY"),
    ("one position is nan", spoiled(lambda d: d.replace(b"-11\\-14.5", b"nan\\-14.5")), "!DICOM-GEOMETRY"),
    ("decimal commas", decimal_commas, "!DICOM-GEOMETRY"),
    ("thickness contradicts positions", each(put(SliceThickness="5", SpacingBetweenSlices="10")), "ok"),
    ("geometry under VR UN", as_unknown, "ok"),
    ("no SeriesInstanceUID", each(drop("SeriesInstanceUID")), "DICOM-IDENTITY"),
    ("two frames of reference", edited(move_far), "!DICOM-MIXED"),
    ("ultrasound cine", edited(ultrasound), "!DICOM-MULTIFRAME"),
    ("junk of every kind", with_junk, "ok"),
    ("names are UIDs", lambda f: save(series(), f, name=lambda n: f"1.2.840.{n}.{n * 7}"), "ok"),
    (
        "odd endings",
        lambda f: save(series(), f, name=lambda n: f"I{n}{('.IMA', '.DCM', '.dic', '.MR', '.001')[n % 5]}"),
        "ok",
    ),
    ("no preamble, no meta", bare, "ok"),
    ("one empty file", spoiled(lambda _data: b""), "!DICOM-READ"),
    ("the last file is empty", spoiled(lambda _data: b"", 19), "!DICOM-READ"),
    ("preamble of a program", spoiled(polyglot), "ok"),
    ("burned-in text", each(put(BurnedInAnnotation="YES")), "DICOM-BURNED"),
    ("Chinese description", each(put(SpecificCharacterSet="GB18030", SeriesDescription="平扫")), "ok"),
    ("unknown character set", each(put(SpecificCharacterSet="ISO_IR 999", SeriesDescription="x")), "ok"),
    ("65535 x 65535 claimed", edited(claim(Rows=65535, Columns=65535)), "!DICOM-SIZE"),
    ("2000000000 frames claimed", edited(claim(NumberOfFrames=2000000000)), "!DICOM-"),
    ("2000000000 frames claimed by the last slice", edited(claim(19, NumberOfFrames=2000000000)), "!DICOM-MULTIFRAME"),
    ("a screenshot in the series", edited(with_screenshot), "DICOM-SPLIT"),
    ("the last slice turned to colour", edited(colour_last), "!DICOM-COLOUR"),
    ("4 GB of pixels claimed", spoiled(huge_length), "!DICOM-"),
    ("deflate bomb", deflate_bomb, "!DICOM-SIZE"),
    ("20000 nested sequences", nested, "!DICOM-READ"),
    ("fragment beyond the end", fragment_beyond_end, "!DICOM-READ"),
    ("a named pipe among the slices", with_pipe, "ok"),
    ("8-bit MR", each(eight_bits, modality="MR", size=(8, 9), slices=2, step=1.0), "DICOM-FEW"),
    ("32 bits, values beyond 16", each(wide, slope=1, intercept=-70000 + 65535), "ok"),
    ("enhanced MR without rescale", enhanced_mr, "ok"),
    ("enhanced MR, implicit VR", lambda f: enhanced_mr(f, ImplicitVRLittleEndian), "ok"),
    ("enhanced MR, deflated", lambda f: enhanced_mr(f, DeflatedExplicitVRLittleEndian), "ok"),
    ("enhanced MR, one file for each frame", lambda f: enhanced_mr(f, each_alone=True), "ok"),
    ("enhanced MR with private scale and real-world map", philips, "ok"),
    ("enhanced CT, planes for each frame, rescale for all", own_planes, "ok"),
    ("enhanced MR, two stacks", enhanced_stacks, "DICOM-SPLIT"),
    ("enhanced MR, two echoes", enhanced_echoes, "DICOM-SPLIT"),
    ("mosaic known by its CSA header alone", each(csa(20), slices=1), "!DICOM-MOSAIC"),
    ("mosaics of a time series", each(csa(20)), "!DICOM-MOSAIC"),
    ("a CSA header that counts no mosaic", each(csa(0)), "ok"),
    ("mosaic placed by its protocol", mosaic(), "ok"),
    ("mosaic, sagittal", mosaic(SAGITTAL), "ok"),
    ("mosaic, compressed", mosaic(syntax=RLELossless), "ok"),
    ("mosaic, implicit VR", mosaic(syntax=ImplicitVRLittleEndian), "ok"),
    ("mosaics of a time series, placed by their protocol", mosaic(times=3), "DICOM-SPLIT"),
    ("mosaic in the other order than its protocol", mosaic(numbers=range(SLICES - 1, -1, -1)), "!DICOM-MOSAIC"),
    ("mosaic whose protocol lists more slices", mosaic(counted=SLICES + 1), "!DICOM-MOSAIC"),
    ("mosaic that lies beside its protocol", mosaic(moved_mm=0.1), "!DICOM-MOSAIC"),
    ("positions with noise of 1e-7", each(noisy_places, orientation=oblique((12, -17, 23))), "ok"),
    ("meta group without preamble and mark", all_without_mark, "ok"),
    ("DICOMDIR that lists files elsewhere", with_directory, "ok"),
    ("nuclear medicine tomogram", edited(nuclear), "!DICOM-MULTIFRAME"),
    ("dynamic PET", dynamic_pet, "DICOM-SPLIT"),
    ("feet first, supine", patient_lies("FFS", (-1, 0, 0, 0, 1, 0), origin=(17, -14, 26)), "ok"),
    ("feet first, prone", patient_lies("FFP", (1, 0, 0, 0, -1, 0), origin=(-11, 18, 26)), "ok"),
    ("decubitus left", patient_lies("HFDL", (0, -1, 0, 1, 0, 0), origin=(-17, 13, -22)), "ok"),
    ("overlapping thick slices", each(put(SliceThickness="7.5", SpacingBetweenSlices="2.5")), "ok"),
    ("no frame of reference", each(drop("FrameOfReferenceUID")), "ok"),
    ("12 bits in the upper part of the word", each(left_justified), "ok"),
    ("values counted from 0 up to 65535", edited(list, intercept=-32000), "ok"),
    ("RT dose beside the scan", with_dose, "ok"),
    ("soft and bone kernel at the same positions", joined(ConvolutionKernel="B70f"), "DICOM-SPLIT"),
    ("every second slice of another kernel", lifted(500, slice(1, None, 2), ConvolutionKernel="B70f"), "!DICOM-MIXED"),
    ("every second slice at another voltage", lifted(500, slice(1, None, 2), KVP="140"), "!DICOM-MIXED"),
    ("voltage written in two ways", each(lambda d, n: put(KVP="120" if n % 2 else "120.0")(d, n)), "ok"),
    (
        "magnitude and phase in turns",
        lifted(500, slice(1, None, 2), ImageType=["ORIGINAL", "PRIMARY", "P", "ND"]),
        "!DICOM-MIXED",
    ),
    ("a derived slice in the stack", change_some(range(3, 5), ImageType=["DERIVED", "SECONDARY", "AXIAL"]), "ok"),
    ("half the stack from another sequence", change_some(range(10, 20), ScanningSequence="GR"), "!DICOM-MIXED"),
    ("half the stack of another flip angle", change_some(range(10, 20), FlipAngle="20"), "!DICOM-MIXED"),
    ("half the stack of another private b-value", edited(private_b_values), "!DICOM-MIXED"),
    ("arterial and venous slices interlocked", lifted(500, slice(1, None, 2), AcquisitionNumber=2), "!DICOM-MIXED"),
    (
        "MR acquired every second slice in turns",
        each(lambda d, n: put(AcquisitionNumber=1 + n % 2)(d, n), modality="MR"),
        "DICOM-MIXED",
    ),
    (
        "every second slice missing",
        edited(lambda d: d.__delitem__(slice(1, None, 2)), slices=40, step=1.25),
        "DICOM-COUNT",
    ),
    ("PET that counts more slices", each(put(NumberOfSlices=23), modality="PT"), "DICOM-COUNT"),
    ("a series that counts more images", each(put(NumberOfSeriesRelatedInstances=23)), "DICOM-COUNT"),
    ("a series that counts its images", each(put(NumberOfSeriesRelatedInstances=SLICES)), "ok"),
    (
        "PET of two units",
        each(two_units, modality="PT"),
        "!DICOM-MIXED",
    ),
    (
        "one slice without its orientation",
        edited(lambda d: drop("ImageOrientationPatient")(d[4], 4)),
        "!DICOM-GEOMETRY",
    ),
    ("one slice mirrored", change_some(range(4, 5), ImageOrientationPatient=[-1, 0, 0, 0, 1, 0]), "!DICOM-"),
    ("two slices of another modality", change_some(range(3, 5), Modality="MR"), "!DICOM-MIXED"),
    (
        "a series identifier for each slice",
        each(own_uid("SeriesInstanceUID")),
        "!DICOM-SINGLE",
    ),
    (
        "a study identifier for each slice",
        each(own_uid("StudyInstanceUID")),
        "!DICOM-MIXED",
    ),
    ("a copy with one bit changed", with_changed_copy, "!DICOM-DUPLICATE"),
    ("position of two values", changed_all(two_coordinates), "!DICOM-GEOMETRY"),
    ("other position in a nested sequence", each(nested_place), "ok"),
    ("icon with pixels of its own", each(icon), "ok"),
    ("garbage behind the data set", changed_all(lambda data: data + bytes(range(100))), "ok"),
    ("enhanced CT, a frame in two fragments", enhanced_fragments, "ok"),
    ("JPEG 2000 in many fragments", many_fragments, "ok"),
    (
        "two slices of another birth date",
        each(lambda d, n: put(PatientBirthDate=f"19{50 + n // 18}0101")(d, n)),
        "!DICOM-PATIENT",
    ),
    ("birth date in some slices only", change_some(range(3), PatientBirthDate="19500101"), "ok"),
    ("one slice's bytes with two meanings", edited(signed_twin, intercept=-40000), "!DICOM-DUPLICATE"),
    ("8-bit pixels as big-endian words", eight_bits_as_words, "DICOM-FEW"),
    ("no PixelRepresentation", each(drop("PixelRepresentation")), "!DICOM-PIXELS"),
    ("slope without intercept", each(drop("RescaleIntercept"), intercept=0), "DICOM-RESCALE"),
    ("one slice without intercept", edited(lambda d: drop("RescaleIntercept")(d[3], 3)), "!DICOM-RESCALE"),
    ("the last file overwritten by zeros", spoiled(lambda data: bytes(len(data)), 19), "!DICOM-READ"),
    ("the last file is a web page", spoiled(lambda _data: b"<html>403 Forbidden</html>", 19), "!DICOM-READ"),
    ("the last file is cut inside its preamble", spoiled(lambda data: data[:60], 19), "!DICOM-READ"),
    ("the last file lost the mark DICM", spoiled(mark_overwritten, 19), "!DICOM-READ"),
    ("the last file lost its preamble", spoiled(preamble_lost, 19), "!DICOM-READ"),
    ("the last file is packed with gzip", packed_last, "!DICOM-READ"),
    ("three volumes, one after the other by number alone", by_number(in_turns=False), "DICOM-SPLIT"),
    ("three volumes in turns, by number alone", by_number(in_turns=True), "DICOM-SPLIT"),
    ("an enhanced file for each volume, by number alone", one_file_each, "DICOM-SPLIT"),
    ("magnitude and phase by ComplexImageComponent", joined(ComplexImageComponent="PHASE"), "DICOM-SPLIT"),
    ("GE magnitude and phase in turns", edited(ge_component), "!DICOM-MIXED"),
    ("cardiac phases by percentage", joined(NominalPercentageOfCardiacPhase=70.0), "DICOM-SPLIT"),
    ("another maker's element where Siemens counts a mosaic", each(other_maker), "ok"),
    (
        "enhanced MR, two flip angles",
        enhanced_pair("MRTimingAndRelatedParametersSequence", {"FlipAngle": 5.0}, {"FlipAngle": 25.0}),
        "DICOM-SPLIT",
    ),
    (
        "enhanced MR, two inversion times",
        enhanced_pair("MRModifierSequence", {"InversionTimes": [500.0]}, {"InversionTimes": [2400.0]}),
        "DICOM-SPLIT",
    ),
    (
        "enhanced MR, magnitude and phase",
        enhanced_pair(
            "MRImageFrameTypeSequence", {"ComplexImageComponent": "MAGNITUDE"}, {"ComplexImageComponent": "PHASE"}
        ),
        "DICOM-SPLIT",
    ),
    (
        "enhanced MR, dynamics by time offset",
        enhanced_pair(
            "TemporalPositionSequence", {"TemporalPositionTimeOffset": 0.0}, {"TemporalPositionTimeOffset": 1.5}
        ),
        "DICOM-SPLIT",
    ),
    ("enhanced CT, two voltages", enhanced_pair("CTXRayDetailsSequence", {"KVP": 80.0}, {"KVP": 140.0}), "DICOM-SPLIT"),
    (
        "enhanced CT, two cardiac phases",
        enhanced_pair(
            "CardiacSynchronizationSequence",
            {"NominalPercentageOfCardiacPhase": 30.0},
            {"NominalPercentageOfCardiacPhase": 70.0},
        ),
        "DICOM-SPLIT",
    ),
    ("enhanced MR, flip angles in turns along the stack", enhanced_in_turns, "!DICOM-MIXED"),
    ("enhanced CT divided into two files", divided(0, 1), "ok"),
    ("a grey screenshot in the series", edited(with_plain_picture), "DICOM-SPLIT"),
    ("one name in two character sets", each(name_in_two_charsets), "ok"),
]


@pytest.mark.parametrize(("make", "wanted"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_row(make: Make, wanted: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    make(tmp_path / "case")
    inventory = take_inventory([tmp_path])
    assert inventory.scans, "the series got lost"
    judge(inventory, wanted, ROUNDED if "rounded" in request.node.name else ROUNDING)
    for scan in inventory.scans:
        assert scan.code in {"", *CODES}
        assert {note.code for note in scan.warnings} <= set(CODES)
        assert not any(secret in f"{scan!r} {scan.reason}" for secret in ("4711", "Doe", "Roe"))


def judge(inventory: Inventory, wanted: str, tolerance: float = ROUNDING) -> None:
    usable = [scan for scan in inventory.scans if scan.usable]
    if wanted.startswith("?"):  # only decoding shows it
        wanted = "!" + wanted[1:]
    elif wanted.startswith("!"):
        assert not usable, "the headers show it: no pixel should have been decoded"
    if wanted.startswith("!"):
        assert not any(accepted(scan) for scan in usable), usable
        codes = {scan.code or refusal(scan) for scan in inventory.scans}
        assert all(code.startswith(wanted[1:]) for code in codes), (codes, [s.reason for s in inventory.scans])
        return
    assert usable, [(scan.code, scan.reason) for scan in inventory.scans]
    for scan in usable:
        check_voxels(scan, tolerance)
        codes = [note.code for note in scan.warnings]
        assert codes == [] if wanted == "ok" else wanted in codes, scan.warnings


def accepted(scan: Scan) -> bool:
    return refusal(scan) == ""


def refusal(scan: Scan) -> str:
    try:
        read(scan)
    except InputError as error:
        return error.code if error.where == scan.case_id else f"without its case: {error}"
    return ""


def check_voxels(scan: Scan, tolerance: float) -> None:
    volume = read(scan)
    assert scan.grid is not None
    assert volume.grid.same_place(scan.grid, 1e-9)
    assert volume.voxels.shape[0] == 1
    assert volume.voxels.shape[3] == len(scan.frames) == SLICES or len(scan.frames) == 2
    assert misfit(volume.voxels[0], scan.grid.affine) <= tolerance


def test_splits_keep_every_slice(tmp_path: Path) -> None:
    """Two volumes in one series: both come out whole, under ids of their own."""
    joined(AcquisitionNumber=2)(tmp_path / "case")
    scans = find_scans(tmp_path)
    assert [scan.usable for scan in scans] == [True, True]
    assert len({scan.case_id for scan in scans}) == 2
    assert not set(scans[0].files) & set(scans[1].files)


def test_half_of_a_divided_object_is_told(tmp_path: Path) -> None:
    divided(0)(tmp_path)
    (scan,) = find_scans(tmp_path)
    assert [note.code for note in scan.warnings] == ["DICOM-COUNT"]


@pytest.mark.parametrize(
    ("change", "said"),
    [(mark_overwritten, "DICM"), (preamble_lost, "128 bytes"), (gzip.compress, "gzip")],
)
def test_dicom_that_hides_is_told_for_each_file(change: Callable[[bytes], bytes], said: str, tmp_path: Path) -> None:
    changed_all(change)(tmp_path)
    inventory = take_inventory([tmp_path])
    assert [skip.code for skip in inventory.skipped] == ["SKIP-DAMAGED"] * SLICES
    assert said in inventory.skipped[0].reason


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (joined(DiffusionBValue=800.0), ["no b-value", "b-value 800"]),
        (joined(EchoTime="4.6", EchoNumbers="2"), ["no echo time", "echo 2 4.6"]),
        (joined(ConvolutionKernel="B70f"), ["no kernel", "kernel B70f"]),
        (second_time_point(), ["time point 1", "time point 2"]),
        (planes((CORONAL, 1)), ["axial images", "coronal images"]),
        (by_number(in_turns=False), ["images 1 to 20", "images 21 to 40", "images 41 to 60"]),
        (by_number(in_turns=True), ["images 1, 4, 7 ...", "images 2, 5, 8 ...", "images 3, 6, 9 ..."]),
        (one_file_each, ["file IM0000.dcm", "file IM0001.dcm", "file IM0002.dcm"]),
    ],
)
def test_parts_of_a_series_are_told_apart(make: Make, told: list[str], tmp_path: Path) -> None:
    make(tmp_path)
    messages = [note.message for scan in find_scans(tmp_path) for note in scan.warnings if note.code == "DICOM-SPLIT"]
    assert len(set(messages)) == len(messages) >= 2
    assert all(any(message.endswith(f": {text}") for message in messages) for text in told), messages


def test_short_time_point_is_refused(tmp_path: Path) -> None:
    second_time_point(13)(tmp_path / "case")
    assert sorted(scan.code for scan in find_scans(tmp_path)) == ["", "DICOM-INCOMPLETE"]


def test_both_phases_cut_short_are_told(tmp_path: Path) -> None:
    both_phases_cut(tmp_path / "case")
    scans = find_scans(tmp_path)
    assert [scan.usable for scan in scans] == [True, True]
    assert all("DICOM-COUNT" in [note.code for note in scan.warnings] for scan in scans)


def test_gap_is_named(tmp_path: Path) -> None:
    without(8)(tmp_path / "case")
    (scan,) = find_scans(tmp_path)
    # ORIGIN z -22; slices 0..7 kept: the 8th lies at -22 + 7 * 2.5 = -4.5, the next at -22 + 9 * 2.5 = 0.5
    assert "slices 8 and 9 (at -4.50 and 0.50 mm) are 5 mm apart, the others 2.5 mm: 1 slice is missing" in scan.reason


def test_smallest_exact_type(tmp_path: Path) -> None:
    for name, make, dtype in (
        ("a", edited(list), np.int16),
        ("b", edited(list, intercept=-50000), np.int16),
        ("c", slope_half, np.float32),
        ("d", edited(pet, modality="PT"), np.float32),
    ):
        make(tmp_path / name)
        (scan,) = find_scans(tmp_path / name)
        assert read(scan).voxels.dtype == dtype, name


def test_unsigned_values_stay(tmp_path: Path) -> None:
    """Stored values above 32767 without rescale: a signed type would wrap."""
    datasets = series("MR")
    for dataset in datasets:
        set_pixels(dataset, stored_pixels(dataset).astype(np.int64) + 40000)
    save(datasets, tmp_path / "case")
    (scan,) = find_scans(tmp_path)
    volume = read(scan)
    assert volume.voxels.dtype == np.uint16
    assert misfit(volume.voxels[0].astype(np.int64) - 40000, volume.grid.affine) <= ROUNDING


def test_pixel_padding_is_kept(tmp_path: Path) -> None:
    datasets = series(intercept=0)
    for dataset in datasets:
        stored = stored_pixels(dataset).astype(np.int64)
        stored[:3, :3] = -2000
        set_pixels(dataset, stored)
        dataset.add_new(0x00280120, "SS", -2000)
    save(datasets, tmp_path / "case")
    (scan,) = find_scans(tmp_path)
    assert (read(scan).voxels[0, :3, :3] == -2000).all()


def test_changed_files_are_refused(tmp_path: Path) -> None:
    paths = save(series(), tmp_path / "case")
    (scan,) = find_scans(tmp_path)
    paths[-1].unlink()
    assert refusal(scan) in ("DICOM-READ", "DICOM-CHANGED")


def test_references_are_no_scans(tmp_path: Path) -> None:
    datasets = series()
    save(datasets, tmp_path / "case")
    structures = Dataset()
    structures.file_meta = FileMetaDataset()
    structures.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    structures.SOPClassUID, structures.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.481.3", generate_uid()
    structures.Modality, structures.PatientID = "RTSTRUCT", "ID-4711"
    roi = Dataset()
    roi.ROINumber, roi.ROIName = 1, "GTV_Mass"
    structures.StructureSetROISequence = Items([roi])
    referenced, study, one = Dataset(), Dataset(), Dataset()
    one.SeriesInstanceUID = datasets[0].SeriesInstanceUID
    study.RTReferencedSeriesSequence = Items([one])
    referenced.RTReferencedStudySequence = Items([study])
    referenced.FrameOfReferenceUID = datasets[0].FrameOfReferenceUID
    structures.ReferencedFrameOfReferenceSequence = Items([referenced])
    save([structures], tmp_path / "case", name=lambda _n: "RS.dcm")
    inventory = take_inventory([tmp_path])
    (reference,), (scan,) = inventory.references, inventory.scans
    assert reference.kind == "rtstruct"
    assert reference.names == ("GTV_Mass",)
    assert reference.series_uids == {scan.series_uid}
    assert reference.frame_uid == scan.frame_uid
    assert reference.group == scan.group


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGExtended12Bit])
def test_jpeg_with_loss(syntax: str, tmp_path: Path) -> None:
    """8-bit JPEG: equal to an independent decoder within its rounding of 1, in place, and said to be lossy."""
    datasets = series("MR", size=(16, 24), slices=5)
    expected = []
    for dataset in datasets:
        values = stored_pixels(dataset).astype(np.int64)
        grey = ((values - values.min()) * 255 // np.ptp(values)).astype(np.uint8)
        stream = BytesIO()
        Image.fromarray(grey).save(stream, "JPEG", quality=95)
        expected.append(np.asarray(Image.open(stream)))
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
        dataset.PixelData = encapsulate([stream.getvalue()])
        dataset["PixelData"].VR = "OB"
    save(datasets, tmp_path / "case", syntax)
    (scan,) = find_scans(tmp_path)
    assert [note.code for note in scan.warnings] == ["DICOM-LOSSY"]
    voxels = read(scan).voxels[0]
    assert voxels.dtype == np.uint8
    assert np.abs(voxels.astype(int) - np.transpose(expected).astype(int)).max() <= 1


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless])
def test_code_stream_of_another_size_is_refused(syntax: str, tmp_path: Path) -> None:
    """The codec would take memory for what the stream claims: 60000 rows, where the header says 36."""
    datasets = compress(series(), syntax)
    stream = bytearray(next(generate_frames(datasets[8].PixelData, number_of_frames=1)))
    if syntax == JPEG2000Lossless:
        stream[12:16] = struct.pack(">L", 60000)  # Ysiz: behind SOC 2, SIZ 2, Lsiz 2, Rsiz 2, Xsiz 4
    else:
        at = stream.index(b"\xff\xf7")
        stream[at + 5 : at + 7] = struct.pack(">H", 60000)
    datasets[8].PixelData = encapsulate([bytes(stream)])
    datasets[8]["PixelData"].VR = "OB"
    save(datasets, tmp_path / "case")
    (scan,) = find_scans(tmp_path)
    assert refusal(scan) == "DICOM-PIXELS"


def test_codec_that_crashes_costs_its_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that decodes dies; this one does not, and the next series is read."""
    save(compress(series(), RLELossless), tmp_path / "case")
    (scan,) = find_scans(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(dicom_pixels, "call_all", lambda _decode, jobs, n: call_all(os.abort, [() for _ in jobs], n))
        assert refusal(scan) == "DICOM-PIXELS"
    check_voxels(scan, ROUNDING)
