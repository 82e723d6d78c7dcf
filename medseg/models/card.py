"""The model card: `README.md` in a model folder, for people who meet the model later. No code reads it.

Names that users or scans gave (labels, channels, modalities) are written so that Markdown sees plain text in them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medseg.facts import Range, Seen, seen_by

if TYPE_CHECKING:
    from medseg.models.model_folder import ModelDescription

LONGEST = 80
"""Characters of a name that are shown."""

SPECIAL = re.compile(r"[\\`*_\[\]<>#|~&$@:/]|(?<!\d)\.|\.(?!\d)")
"""Marks that mean something inside a line of Markdown (CommonMark 0.31 and GitHub's tables, links and formulas): each
may be escaped. The dot makes `www.` a link; in numbers it does no harm."""

PAPERS = {
    "unet": "U-Net: Ronneberger, Fischer, Brox, MICCAI 2015 (arXiv:1505.04597)",
    "segnet": "SegNet: Badrinarayanan, Kendall, Cipolla, IEEE TPAMI 2017 (arXiv:1511.00561)",
    "deeplab": "DeepLabV3+: Chen, Zhu, Papandreou, Schroff, Adam, ECCV 2018 (arXiv:1802.02611)",
    "bisenet": "BiSeNetV2: Yu, Gao, Wang, Yu, Shen, Sang, IJCV 2021 (arXiv:2004.02147)",
}

INTENDED_USE = """\
For research: to draw masks that a person then looks at. **Not a medical device and not for clinical use**: nothing here
was tested for decisions about patients."""

EMPTY_RULE = """\
On cases that were held out from training, on the scans' own grids. Where mask and reference are both empty, the case
is not scored; where only one of them is, or the mask is missing, Dice is 0. The interval is for the mean over patients
like these. The location-only floor is what a mask scores that never looks at the scan: a Dice near it shows little."""

NOT_SCORED = "Not measured: no case was held out, or the networks were joined later. Run `medseg evaluate` before use."

ELSEWHERE = """\
Beyond what the table of the training cases shows (another modality or sequence, other spacings, another region, smaller
or larger structures, another disease, children) nothing is known. `medseg predict` flags scans and masks outside of it;
a scan without a flag may still be drawn wrongly. A label that few training cases hold is learned from those few."""


def card(description: ModelDescription) -> str:
    """Return the card of a model as Markdown.

    Args:
        description: of the model, complete: hashes and versions are shown.
    """
    seen = seen_by(description.trained_on)
    labels = ", ".join(map(plain, description.labels.values()))
    parts = [
        f"# Model: {labels}",
        _summary(description),
        f"## Intended use\n\n{INTENDED_USE}",
        f"## Training cases\n\n{_cases(seen) if seen else 'Not recorded.'}",
        f"## Recipe\n\n{_recipe(description)}",
        f"## Scores\n\n{_scores(description.scores)}",
        f"## Limits\n\n{ELSEWHERE}\n{_slices(description)}",
        f"## How to cite\n\n{_cite(description, seen)}",
        f"## Versions and hashes\n\n{_versions(description)}",
    ]
    return "\n\n".join(parts) + "\n"


def plain(text: object) -> str:
    """Return a text that Markdown shows as it is, on one line, and cut when it is long."""
    shown = " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())
    shown = shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}..."
    return SPECIAL.sub(r"\\\g<0>", shown)


def _table(rows: Sequence[Sequence[str]]) -> str:
    first, *others = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([first, "|" + "---|" * len(rows[0]), *others])


def _summary(description: ModelDescription) -> str:
    count = len(description.weights)
    networks = "One network" if count == 1 else f"An ensemble of {count} networks"
    plane = plain(description.preparation.get("plane", ""))
    kind = (
        f"{networks} ({plain(description.network.name)}) that draws these labels slice by slice, in the {plane} plane"
    )
    numbers = ", ".join(f"{number} {plain(name)}" for number, name in description.labels.items())
    return f"{kind}. Numbers in its masks: 0 background, {numbers}. Made by medseg; `medseg predict` uses it."


def _cases(seen: Seen) -> str:
    rows = [
        ("what", "training cases"),
        ("number", str(seen.cases)),
        *(
            (f"modality of channel {n}", _counted(channel.modalities))
            for n, channel in enumerate(seen.channels, start=1)
        ),
        ("body part, as their headers say", _counted(seen.body_parts)),
        ("spacing along x, y, z (mm)", " x ".join(map(_span, seen.spacing_mm))),
        ("field of view along x, y, z (mm)", " x ".join(map(_span, seen.extent_mm))),
    ]
    labels = [("label", "cases that hold it", "volume in those (ml)", "pieces at most")]
    for name, label in seen.labels.items():
        volume = _span(label.volume_ml) if label.volume_ml else ""
        labels.append((plain(name), str(label.cases), volume, str(label.most_pieces)))
    note = "Nothing that identifies a patient is in this folder."
    return f"{_table(rows)}\n\n{_table(labels)}\n\n{note}"


def _counted(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{plain(kind) or 'unknown'} ({count})" for kind, count in kinds.items())


def _span(values: Range) -> str:
    low, high = (f"{value:.3g}" for value in values)
    return low if low == high else f"{low} to {high}"


def _recipe(description: ModelDescription) -> str:
    network = {f"model.{key}": value for key, value in description.network.model_dump(mode="json").items()}
    keys = ("plane", "spacing_mm", "context")
    preparation = {f"prepare.{key}": description.preparation.get(key) for key in keys}
    channels = description.preparation.get("channels", [])
    kinds = [channel.get("normalise", "") for channel in channels if isinstance(channel, dict)]
    settings = {**network, **preparation, "prepare.normalise": ", ".join(map(str, kinds)), **description.recipe}
    settings["start.hash"] = description.parent or None
    rows = [(f"`{key}`", plain(value)) for key, value in settings.items() if value is not None]
    return _table([("setting", "value"), *rows])


def _scores(scores: Mapping[str, Any]) -> str:
    rows = [["label", "cases", "mean Dice", "95 % interval", "median Dice", "median HD95 (mm)", "location-only floor"]]
    for label, figures in scores.items():
        if isinstance(figures, dict):
            low, high = (_figure(figures.get(f"mean_dice_{end}")) for end in ("low", "high"))
            interval = f"{low} to {high}" if low and high else "too few patients"
            row = [plain(label), plain(figures.get("cases")), _figure(figures.get("mean_dice")), interval]
            others = ("median_dice", "median_hd95_mm", "location_floor")
            rows.append([*row, *(_figure(figures.get(key)) for key in others)])
    return f"{_table(rows)}\n\n{EMPTY_RULE}" if len(rows) > 1 else NOT_SCORED


def _figure(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, (int, float)) else ""


def _slices(description: ModelDescription) -> str:
    context = description.preparation.get("context", 0)
    sees = f"each with {plain(context)} on each side" if context else "each by itself"
    return f"It sees slices, {sees}: what only the third dimension tells, it cannot know."


def _cite(description: ModelDescription, seen: Seen | None) -> str:
    digest = next(iter(description.weights.values()), "")[:12]
    version = plain(description.versions.get("medseg", ""))
    cases = f", trained on {seen.cases} cases" if seen else ""
    sentence = f"Masks were drawn with medseg {version} by the model {digest}{cases}."
    return f"> {sentence}\n\nAdd where the training data come from. The network: {PAPERS[description.network.name]}."


def _versions(description: ModelDescription) -> str:
    packages = [("package", "version"), *((plain(k), plain(v)) for k, v in description.versions.items())]
    files = [("file", "SHA-256"), *((f"`{name}`", f"`{digest}`") for name, digest in description.weights.items())]
    return f"{_table(packages)}\n\n{_table(files)}"
