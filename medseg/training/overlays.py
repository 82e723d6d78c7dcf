"""`overlays/epoch-012.png`: the same few validation slices again and again, with reference and prediction on them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from medseg.io.atomic import atomic_path
from medseg.models import Network
from medseg.store import Entry, SliceStore
from medseg.training.data import VolumeDice
from medseg.volume import UNANNOTATED

REFERENCE, PREDICTION = "#56b4e9", "#e69f00"
"""From the palette of Okabe and Ito (2008): told apart by everybody, and both light enough for grey slices."""

MOST = 6
"""Cases in a picture: as many as one looks at."""

PANEL_INCHES, DPI = 3.0, 110

STYLE: dict[Any, Any] = {"text.parse_math": False, "font.size": 9}  # a case id is text, whatever dollar signs it holds


@dataclass(frozen=True)
class Shown:
    """A slice that is shown: of which case, and where along the working grid's stack."""

    entry: Entry
    index: int


def choose_slices(store: SliceStore) -> list[Shown]:
    """Choose the slice with the largest foreground of each case; of many cases some, from small to large."""
    found = []
    for entry in store:
        masks = entry.masks()
        areas = [int(np.count_nonzero(_foreground(np.asarray(masks[n])))) for n in range(entry.shape[0])]
        found.append((max(areas), Shown(entry, int(np.argmax(areas)))))
    found.sort(key=lambda pair: (pair[0], pair[1].entry.case))
    places = np.linspace(0, len(found) - 1, min(MOST, len(found))).round().astype(int)
    return [found[place][1] for place in places]


def write_overlay(
    path: Path, title: str, slices: Sequence[Shown], network: Network, validation: VolumeDice, aspect: float
) -> None:
    """Write one picture; on the working grid, row 0 on top.

    Args:
        path: of the PNG.
        title: above everything.
        slices: to show.
        network: whose masks are drawn.
        validation: knows how to ask it.
        aspect: height of a pixel divided by its width.

    Raises:
        RunError: RUN-WRITE.
    """
    columns = min(3, len(slices))
    rows = math.ceil(len(slices) / columns)
    with mpl.rc_context(STYLE):
        size = (PANEL_INCHES * columns, PANEL_INCHES * rows + 0.6)
        figure = Figure(figsize=size, layout="constrained")
        figure.suptitle(title)
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in panels:
            axes.set_axis_off()
        for axes, shown in zip(panels, slices, strict=False):
            _panel(axes, shown, network, validation, aspect)
        lines = [Line2D([], [], color=REFERENCE, lw=2), Line2D([], [], color=PREDICTION, lw=1.5, ls="--")]
        figure.legend(lines, ["reference", "prediction"], loc="outside lower center", ncols=2, frameon=False)
        with atomic_path(path) as partial:
            figure.savefig(partial, format="png", dpi=DPI)


def _panel(axes: Axes, shown: Shown, network: Network, validation: VolumeDice, aspect: float) -> None:
    image, labels = shown.entry.slice(shown.index, validation.context)
    predicted = validation.labels(network, image[None])[0].numpy()
    wanted = labels.numpy()
    modalities = shown.entry.shape[1]
    grey = image.reshape(modalities, -1, *wanted.shape)[0, validation.context].numpy()  # this slice of the first scan
    low, high = np.percentile(grey, (1, 99.5))
    axes.imshow(grey, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=aspect, interpolation="nearest")
    for outline in _outlines(wanted):
        axes.contour(outline, [0.5], colors=REFERENCE, linewidths=2)
    for outline in _outlines(predicted):
        axes.contour(outline, [0.5], colors=PREDICTION, linewidths=1.5, linestyles="--")
    axes.set_title(f"{shown.entry.case}, slice {shown.index + 1}: {_agreement(wanted, predicted)}", fontsize=8)


def _outlines(labels: NDArray[np.uint8]) -> Iterator[NDArray[np.float32]]:
    """Yield each label that is there as 0 and 1."""
    for label in np.unique(labels[_foreground(labels)]):
        yield (labels == label).astype(np.float32)


def _foreground(labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    known: NDArray[np.bool_] = labels != UNANNOTATED
    return known & (labels > 0)


def _agreement(wanted: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> str:
    """Return the Dice of this slice, labels told apart."""
    known = wanted != UNANNOTATED
    both = np.count_nonzero((wanted == predicted) & (predicted > 0))
    total = np.count_nonzero(_foreground(wanted)) + np.count_nonzero((predicted > 0) & known)
    return f"Dice {2 * both / total:.2f}" if total else "empty"
