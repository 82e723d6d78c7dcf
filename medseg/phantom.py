"""Phantom patients: a small study of thighs with soft-tissue tumours, drawn from formulas.

`make_study` lays out what a researcher would have on disk: DICOM series beside their RTSTRUCT or DICOM SEG, NIfTI
scans, NIfTI masks in a folder of their own, new scans without masks, and a broken one. No patient was ever scanned.

Each patient is a function of world coordinates (mm, RAS+), sampled at voxel centres, so the reference is exact on any
grid. The thigh is asymmetric: bone to the side, vessels to the middle, more fat behind; mirrored masks show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medseg.errors import UsageError
from medseg.grid import Float, Grid
from medseg.io import nifti
from medseg.io.dicom_seg_write import write_dicom_seg
from medseg.io.dicom_write import SeriesIdentity, write_series
from medseg.io.rtstruct import write_rtstruct
from medseg.volume import Labels, Mask, Volume

Stored = Literal["rtstruct", "dicom-seg", "nifti-mask", "nifti"]
"""How a patient lies on disk: a DICOM series with one of three kinds of reference, or all in NIfTI."""

TUMOUR, FEMUR = 1, 2

# Signal of tissues in a T1-weighted image, muscle 220: in the order seen in a thigh, fat brightest, cortex darkest.
FAT, MUSCLE, MARROW, CORTEX, VESSEL, NERVE = 600.0, 220.0, 540.0, 35.0, 70.0, 330.0
EDGE_MM = 0.5
"""Half-width of the transition between tissues: what a voxel of about 1 mm averages over."""


@dataclass(frozen=True)
class PhantomStudy:
    """Where the parts of a study are.

    Attributes:
        training: folder of training scans; DICOM references stand beside their series.
        training_references: folder of the other references, NIfTI, named by case id.
        new: folder of held-out scans, and one that is broken.
        new_references: folder of their references, NIfTI on each scan's own grid, named by case id.
        training_ids, new_ids: case ids, the broken one not among them.
        broken_id: case id of a new scan that lacks a slice.
        tumour: what the tumour is called: mask number, RTSTRUCT structure, SEG segment.
    """

    training: Path
    training_references: Path
    new: Path
    new_references: Path
    training_ids: tuple[str, ...]
    new_ids: tuple[str, ...]
    broken_id: str
    tumour: tuple[int | str, ...] = (TUMOUR, "GTV*", "tumour")


def make_study(folder: Path, patients: int = 24, held_out: int = 6, seed: int = 0) -> PhantomStudy:
    """Write a study of `patients` training patients and `held_out` new ones; the same seed gives the same voxels.

    Args:
        folder: must be absent or empty.
        patients: training patients, at least 1.
        held_out: new patients, at least 1; a broken scan is added.
        seed: of everything random.

    Raises:
        UsageError: USAGE-PATH when `folder` holds something, USAGE-OPTION for too few patients.
        RunError: RUN-WRITE.
    """
    if patients < 1 or held_out < 1:
        raise UsageError(
            "USAGE-OPTION", "", f"{patients} training and {held_out} new patients, wanted at least 1 of each"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError("USAGE-PATH", str(folder), "is not an empty folder", "Name one that does not exist yet.")
    ids = [f"patient-{number:02d}" for number in range(1, patients + held_out + 2)]
    study = PhantomStudy(
        folder / "training",
        folder / "training_references",
        folder / "new",
        folder / "new_references",
        tuple(ids[:patients]),
        tuple(ids[patients:-1]),
        ids[-1],
    )
    for number, name in enumerate(study.training_ids):
        _write_training(study, name, number, seed)
    for number, name in enumerate(study.new_ids, start=patients):
        _write_new(study, name, number, seed)
    files = _write_series(draw_patient(patients + held_out, seed, oblique=False)[0], study.new / ids[-1], ids[-1])
    files[len(files) // 2].unlink()
    return study


def _write_training(study: PhantomStudy, name: str, number: int, seed: int) -> None:
    kinds: tuple[Stored, ...] = ("rtstruct", "dicom-seg", "nifti-mask", "rtstruct", "nifti", "dicom-seg")
    kind = kinds[number % len(kinds)]
    volume, mask = draw_patient(number, seed, oblique=number % 6 == 3)
    if kind == "nifti":
        _write_nifti(volume, mask, study.training / f"{name}.nii.gz", study.training_references)
        return
    files = _write_series(volume, study.training / name, name)
    if kind == "rtstruct":
        labels = Labels({TUMOUR: "GTV_Mass", FEMUR: "Femur"})
        write_rtstruct(study.training / name / "RTSTRUCT" / "structures.dcm", mask, labels, files)
    elif kind == "dicom-seg":
        labels = Labels({TUMOUR: "tumour", FEMUR: "femur"})
        write_dicom_seg(study.training / name / "SEG" / "segments.dcm", mask, labels, files)
    else:
        nifti.write_mask(study.training_references / f"{name}.nii.gz", tumour_of(mask))


def _write_new(study: PhantomStudy, name: str, number: int, seed: int) -> None:
    volume, mask = draw_patient(number, seed, oblique=number % 6 == 3)
    if number % 6 == 4:
        _write_nifti(volume, mask, study.new / f"{name}.nii.gz", study.new_references)
        return
    _write_series(volume, study.new / name, name)
    nifti.write_mask(study.new_references / f"{name}.nii.gz", tumour_of(mask))


def _write_nifti(volume: Volume, mask: Mask, path: Path, references: Path) -> None:
    """Write both with the axes in another order than a DICOM series has: right, then down the stack, then front."""
    order = volume.grid.order_to("RIA")
    grid = volume.grid.reordered(order)
    nifti.write_volume(path, Volume(order.apply(volume.voxels), grid, volume.modality))
    nifti.write_mask(references / path.name, tumour_of(Mask(mask.labels, mask.grid).placed_on(grid)))


def _write_series(volume: Volume, folder: Path, name: str) -> list[Path]:
    identity = SeriesIdentity(patient_id=name, description="T1 axial", series_number=3, study_date="20200101")
    return write_series(volume, folder / "MR", identity)


def tumour_of(mask: Mask) -> Mask:
    """Return the mask with the tumour alone."""
    return Mask((mask.labels == TUMOUR).astype(np.uint8), mask.grid)


def location_baseline(references: Sequence[Mask], grid: Grid) -> Mask:
    """Return the guess of one who never looks at the scan: the training references' mean ellipsoid.

    Its centre lies as far from the grid's centre as theirs on average, in mm along x, y and z; its semi-axes are the
    mean of theirs, the square root of 5 times the standard deviation of the voxels' places along each axis (exact for
    an ellipsoid). What a model earns beyond it, it earned by looking.

    Args:
        references: masks of training cases; every label above 0 counts; empty ones are passed over.
        grid: of the scan to guess on.

    Returns:
        label 1 inside the ellipsoid.

    Raises:
        UsageError: USAGE-OPTION without any reference that holds something.
    """
    places = [mask.grid.to_world(np.argwhere(mask.labels > 0)) - _centre(mask.grid) for mask in references]
    places = [place for place in places if len(place)]
    if not places:
        raise UsageError("USAGE-OPTION", "", "no reference holds a voxel; the baseline has nothing to average")
    centre = np.mean([place.mean(axis=0) for place in places], axis=0)
    axes = np.mean([np.sqrt(5) * place.std(axis=0) for place in places], axis=0) + 1e-6
    away = (_points(grid) - _centre(grid) - centre) / axes
    return Mask(((away**2).sum(axis=-1) <= 1).astype(np.uint8), grid)


def _centre(grid: Grid) -> Float:
    return grid.to_world((np.array(grid.shape) - 1) / 2)


def _points(grid: Grid) -> Float:
    """Return the world coordinates `(i, j, k, 3)` of all voxel centres."""
    return grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1))


def draw_patient(number: int, seed: int, oblique: bool = False) -> tuple[Volume, Mask]:
    """Return one patient's scan, MR uint16, and the mask of tumour (1) and femur (2) on its grid.

    Args:
        number: which patient; each is drawn apart, whatever the number of others.
        seed: of the study.
        oblique: tilt the slices by 6 to 14 degrees about two axes.
    """
    rng = np.random.default_rng([seed, number])
    grid = _grid(rng, oblique)
    thigh = _Thigh.draw(rng, grid)
    points = _points(grid)
    signal = thigh.signal(points) * thigh.bias(points) * rng.uniform(0.6, 1.5)
    noise = rng.normal(0, rng.uniform(0.03, 0.06) * MUSCLE, (2, *grid.shape))
    # Magnitude of a complex signal: the noise is Rician (Gudbjartsson 1995).
    voxels = np.hypot(signal + noise[0], noise[1]).round().astype(np.uint16)
    labels = np.where(thigh.tumour_at(points) < 0, TUMOUR, np.where(thigh.bone_at(points) < 0, FEMUR, 0))
    return Volume(voxels[None], grid, "MR"), Mask(labels.astype(np.uint8), grid)


def _grid(rng: np.random.Generator, oblique: bool) -> Grid:
    """Return an axial grid, columns to the left, rows to the back, slices to the head; or one tilted."""
    spacing = rng.uniform(1.1, 1.35)
    columns, rows, slices = round(124 / spacing), round(116 / spacing), int(rng.integers(14, 21))
    turn = np.eye(3)
    if oblique:
        about_x, about_y = np.deg2rad(rng.uniform(6, 14, 2) * rng.choice([-1, 1], 2))
        turn = np.array([[1, 0, 0], [0, np.cos(about_x), -np.sin(about_x)], [0, np.sin(about_x), np.cos(about_x)]])
        cos, sin = np.cos(about_y), np.sin(about_y)
        turn = turn @ np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-spacing, -spacing, 4.0])
    centre = (np.array([columns, rows, slices]) - 1) / 2
    affine[:3, 3] = rng.uniform([-4, -4, -300], [4, 4, -200]) - affine[:3, :3] @ centre
    return Grid((columns, rows, slices), affine)


@dataclass(frozen=True)
class _Waves:
    """A smooth random field: cosines of random direction and phase, mean 0, standard deviation about 1."""

    waves: Float  # (n, 3) radians per mm
    phases: Float  # (n,)

    @classmethod
    def draw(cls, rng: np.random.Generator, lengths_mm: tuple[float, float], count: int = 12) -> _Waves:
        directions = rng.normal(size=(count, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        lengths = rng.uniform(*lengths_mm, (count, 1))
        return cls(2 * np.pi * directions / lengths, rng.uniform(0, 2 * np.pi, count))

    def __call__(self, points: Float) -> Float:
        field = np.zeros(points.shape[:-1])
        for wave, phase in zip(self.waves, self.phases, strict=True):
            field += np.cos(points @ wave + phase)
        return np.asarray(field * np.sqrt(2 / len(self.phases)))


@dataclass(frozen=True)
class _Blob:
    """An ellipsoid with an uneven surface: `distance` is below 0 inside, roughly in mm."""

    centre: Float
    axes: Float
    surface: _Waves
    unevenness: float

    def distance(self, points: Float) -> Float:
        away = (points - self.centre) / self.axes
        radius = np.linalg.norm(away, axis=-1)
        bump = 1 + self.unevenness * self.surface(points) if self.unevenness else 1.0
        return np.asarray((radius - bump) * float(self.axes.mean()))


def _over(below: Float, distance: Float, tissue: Float | float) -> Float:
    """Lay a tissue over what is there, with a soft edge; `distance` is negative inside, mm."""
    share = 1 / (1 + np.exp(np.clip(distance / EDGE_MM, -30, 30)))
    return below + share * (tissue - below)


@dataclass(frozen=True)
class _Thigh:
    """One patient: every position in mm relative to the centre of the scan."""

    origin: Float
    radii: Float  # (2,) of the limb along x and y
    fat_mm: float
    taper: float  # growth of the limb towards the head, per mm
    bone: Float  # (2,) centre
    bone_mm: float
    muscles: Float  # (n, 2) centres of muscle bellies
    muscle_signal: Float  # (n,)
    fibres: _Waves
    fat_texture: _Waves
    vessels: Float  # (n, 4): x, y, radius, signal
    lookalikes: tuple[tuple[_Blob, float], ...]
    tumour: _Blob
    tumour_signal: float
    tumour_texture: _Waves
    core: float  # share of the tumour's radius that is necrotic
    field: _Waves
    field_depth: float

    @classmethod
    def draw(cls, rng: np.random.Generator, grid: Grid) -> _Thigh:
        """Draw a patient whose tumour lies well inside the grid."""
        radii = rng.uniform([47, 43], [55, 50])
        bone = rng.uniform([10, 0], [16, 7])
        half = (grid.shape[2] - 1) * grid.spacing[2] / 2
        tumour = _draw_tumour(rng, radii, bone, half)
        angles = np.arange(7) * 2 * np.pi / 7 + rng.normal(0, 0.15, 7)
        bellies = np.column_stack([np.cos(angles) * radii[0], np.sin(angles) * radii[1]]) * rng.uniform(
            0.4, 0.6, (7, 1)
        )
        return cls(
            origin=_centre(grid),
            radii=radii,
            fat_mm=rng.uniform(4, 9),
            taper=rng.uniform(0.0005, 0.002),
            bone=bone,
            bone_mm=rng.uniform(10, 13),
            muscles=bellies,
            muscle_signal=MUSCLE * rng.uniform(0.9, 1.1, 7),
            fibres=_Waves.draw(rng, (5, 14)),
            fat_texture=_Waves.draw(rng, (6, 20)),
            vessels=_draw_vessels(rng),
            lookalikes=_draw_lookalikes(rng, radii, bone, half, tumour),
            tumour=tumour,
            tumour_signal=float(rng.choice([rng.uniform(1.4, 2.0), rng.uniform(0.45, 0.65)], p=[0.75, 0.25])) * MUSCLE,
            tumour_texture=_Waves.draw(rng, (4, 11)),
            core=float(rng.choice([0.0, rng.uniform(0.35, 0.6)])),
            field=_Waves.draw(rng, (150, 300), count=4),
            field_depth=rng.uniform(0.08, 0.2),
        )

    def tumour_at(self, points: Float) -> Float:
        """Distance to the tumour's surface at world points, below 0 inside."""
        return self.tumour.distance(points - self.origin)

    def bone_at(self, points: Float) -> Float:
        """Distance to the femur's surface in mm at world points, below 0 inside."""
        across = (points - self.origin)[..., :2] - self.bone
        return np.asarray(np.linalg.norm(across, axis=-1) - self.bone_mm)

    def bias(self, points: Float) -> Float:
        """Sensitivity of the coil: a smooth factor around 1."""
        return np.asarray(np.exp(self.field_depth * self.field(points - self.origin)))

    def signal(self, points: Float) -> Float:
        """Signal without noise and bias at world points."""
        here = points - self.origin
        flat = here[..., :2]
        limb = (np.linalg.norm(flat / (self.radii * (1 + self.taper * here[..., 2:])), axis=-1) - 1) * self.radii.mean()
        image = _over(np.zeros(limb.shape), limb, FAT * (1 + 0.04 * self.fat_texture(here)))
        behind = np.clip(-here[..., 1] / self.radii[1], 0, 1)
        image = _over(image, limb + self.fat_mm * (1 + 0.7 * behind), self._muscle(here))
        for x, y, radius, tissue in self.vessels:
            image = _over(image, np.linalg.norm(flat - (x, y), axis=-1) - radius, tissue)
        for blob, tissue in self.lookalikes:
            image = _over(image, blob.distance(here), tissue)
        image = _over(image, self.bone_at(points), CORTEX)
        image = _over(image, self.bone_at(points) + 3.5, MARROW * (1 + 0.04 * self.fat_texture(here)))
        return np.maximum(self._with_tumour(image, here), 0)

    def _muscle(self, here: Float) -> Float:
        """Bellies around their centres, with septa of fat where two are equally near."""
        distances = np.stack([np.linalg.norm(here[..., :2] - belly, axis=-1) for belly in self.muscles])
        nearest = distances.argmin(axis=0)
        first, second = np.partition(distances, 1, axis=0)[:2]
        tissue = self.muscle_signal[nearest] * (1 + 0.06 * self.fibres(here))
        return _over(tissue, (second - first) - 1.2, 0.6 * FAT)

    def _with_tumour(self, image: Float, here: Float) -> Float:
        distance = self.tumour.distance(here)
        tissue = self.tumour_signal * (1 + 0.16 * self.tumour_texture(here))
        if self.core:
            depth = self.core * float(self.tumour.axes.mean())
            tissue = _over(tissue, distance + float(self.tumour.axes.mean()) - depth, 0.5 * MUSCLE)
        return _over(image, distance, tissue)


def _draw_tumour(rng: np.random.Generator, radii: NDArray[np.float64], bone: Float, half_mm: float) -> _Blob:
    """Draw a tumour in the soft tissue, clear of the bone and of the ends of the stack."""
    axes = rng.uniform([8, 8, 10], [18, 16, min(22, 0.6 * half_mm)])
    reach_mm = half_mm - 1.3 * axes[2] - 2  # the surface bulges by up to 0.3 of an axis
    while True:
        centre = rng.uniform([-40, -36, -reach_mm], [40, 36, reach_mm])
        inside = np.linalg.norm(centre[:2] / (radii - axes[:2] - 3)) < 1
        if inside and np.linalg.norm(centre[:2] - bone) > axes[:2].max() + 11:
            return _Blob(centre, axes, _Waves.draw(rng, (18, 40), count=6), rng.uniform(0.04, 0.12))


def _draw_vessels(rng: np.random.Generator) -> Float:
    """Draw artery, vein and nerve towards the middle of the body."""
    artery = rng.uniform([-16, 2], [-8, 10])
    vein, nerve = artery + rng.uniform([-7, -5], [-5, 5]), rng.uniform([-4, -22], [6, -14])
    flow = rng.choice([VESSEL, 1.8 * MUSCLE])  # blood is dark, or bright where it flows in
    return np.array([[*artery, 2.6, VESSEL], [*vein, 3.2, flow], [*nerve, 3.0, NERVE]])


def _draw_lookalikes(
    rng: np.random.Generator, radii: Float, bone: Float, half_mm: float, tumour: _Blob
) -> tuple[tuple[_Blob, float], ...]:
    """Draw what is not a tumour but might be taken for one: a lipoma, bright as fat, and nodes, small."""
    blobs: list[tuple[_Blob, float]] = []
    for _ in range(int(rng.integers(1, 4))):
        lipoma = rng.random() < 0.4
        axes = rng.uniform([6, 6, 8], [11, 10, 14]) if lipoma else rng.uniform(2.5, 4.5, 3)
        centre = rng.uniform([-40, -36, -half_mm], [40, 36, half_mm])
        clear = tumour.distance(centre[None])[0] > axes.max() and np.linalg.norm(centre[:2] - bone) > 16
        if clear and np.linalg.norm(centre[:2] / (radii - 8)) < 1:
            tissue = FAT if lipoma else MUSCLE * rng.uniform(1.4, 1.9)
            blobs.append((_Blob(centre, axes, _Waves.draw(rng, (18, 40), count=4), 0.03), float(tissue)))
    return tuple(blobs)
