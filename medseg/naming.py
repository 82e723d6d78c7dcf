"""How people name scans and masks: the words that decorate a name, and the keys under which two names are one.

`imagesTr/liver_7_0000.nii.gz` and `labelsTr/liver_7.nii.gz`, `volume-12.nii` and `segmentation-12.nii`,
`case_01/imaging.nii.gz` and `case_01/segmentation.nii.gz`, `sub-03_T1w.nii.gz` and `sub-03_T1w_mask.nii.gz` belong
together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.io.nifti import is_nifti, nifti_stem

Key = tuple[str, ...]
Parts = tuple[str, ...]


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


MASK_WORDS = _set(
    "seg segs segm segmentation segmentations dseg mask masks msk label labels labelstr labelsts lbl gt "
    "groundtruth annotation annotations reference references"
)
"""A NIfTI whose name begins or ends with one of these, or that lies in a folder named so, is a mask."""

STRUCTURE_WORDS = _set("tumor tumour lesion lesions roi gtv ptv ctv manual ref truth")
"""More words that end the name of a file known to be a mask; too common in names of scans to tell a mask by."""

PREDICTION_WORDS = frozenset({"pred", "preds", "prediction", "predictions", "predicted"})
"""A NIfTI named so is the output of a model: neither a scan nor a reference."""

SCAN_WORDS = _set(
    "image images imagestr imagests img imgs imaging volume volumes vol scan scans orig ct mr mri pet t1 t2 t1w "
    "t2w t1c t1ce t1gd t1n t2f flair adc dwi pd nifti"
)
"""Words that say what kind of scan a file is, not whose."""

_CHANNEL = re.compile(r"000\d")  # nnU-Net's number of the channel, always the last four digits of a scan's name
_WORD_AND_NUMBER = re.compile(r"([a-z]+)(\d+)")  # img0001 and label0001 are one


def parts_below(path: Path, roots: Sequence[Path]) -> Parts:
    """Return the folder names below the given root and the stem of the file; the root's own name when nothing follows.

    Args:
        path: a file, or the folder of a DICOM series.
        roots: the files and folders that were given; the deepest that holds `path` counts.
    """
    path = path.absolute()
    holding = [root for root in (r.absolute() for r in roots) if path.is_relative_to(root)]
    root = max(holding, key=lambda r: len(r.parts), default=path.parent.parent)
    below = path.relative_to(root).parts or (path.name,)
    return (*below[:-1], nifti_stem(path)) if is_nifti(path) else below


def words(name: str) -> Key:
    """Split a name at spaces, dots, dashes and underlines, in lower case; `img0001` counts as two words."""
    found: list[str] = []
    for word in re.split(r"[\s_.\-]+", name.casefold()):
        glued = _WORD_AND_NUMBER.fullmatch(word)
        known = glued is not None and glued[1] in MASK_WORDS | SCAN_WORDS
        found.extend(glued.groups() if glued and known else [word])
    return tuple(word for word in found if word)


def bare(name: Key, decorations: frozenset[str]) -> Key:
    """Take `decorations` off both ends of a name; nothing is left of a name that consists of them."""
    first, last = 0, len(name)
    while first < last and name[first] in decorations:
        first += 1
    while first < last and name[last - 1] in decorations:
        last -= 1
    return name[first:last]


def looks_like(parts: Parts, decorations: frozenset[str]) -> bool:
    """Whether the name begins or ends with one of the words, or a folder above is named by them alone."""
    *folders, stem = (words(part) for part in parts)
    return bare(stem, decorations) != stem or any(folder and not bare(folder, decorations) for folder in folders)


def _joined(parts: Iterable[Key]) -> Key:
    return tuple(word for part in parts for word in part)


def plain_key(parts: Parts, folder_words: frozenset[str], name_words: frozenset[str] = frozenset()) -> Key:
    """Return all words of folders and name, without folders named by `folder_words` alone.

    Args:
        parts: as `parts_below` gives them.
        folder_words: what makes a folder's name say nothing about whose scan it holds (images, labelsTr).
        name_words: taken off both ends of the last part.
    """
    *folders, stem = (words(part) for part in parts)
    kept = [folder for folder in folders if bare(folder, folder_words)]
    return _joined([*kept, bare(stem, name_words)])


def bare_parts(parts: Parts) -> list[Key]:
    """Return each part without any decoration and without the channel's number; parts of decorations alone go."""
    every = MASK_WORDS | STRUCTURE_WORDS | SCAN_WORDS
    stripped = []
    for part in parts:
        name = bare(words(part), every)
        if len(name) > 1 and _CHANNEL.fullmatch(name[-1]):
            name = bare(name[:-1], every)
        stripped.append(name)
    return [name for name in stripped if name]


def owner_key(parts: Parts) -> Key:
    """Return what is left of folders and name without decorations: whose scan it is."""
    return _joined(bare_parts(parts))


# ------------------------------------------------------------------------------------------------- pairing by names


MASK_ENDINGS = MASK_WORDS | STRUCTURE_WORDS


@dataclass(frozen=True)
class Named:
    """A scan or mask as its names tell it.

    Attributes:
        id: its case id.
        parts: folders and stem below the root that was given, one tuple for each file of a case.
        root: name of the folder that was given, where the names below it are not enough.
    """

    id: str
    parts: tuple[Parts, ...]
    root: str = ""


Level = tuple[Callable[[Named], set[Key]], Callable[[Named], set[Key]]]
"""The keys of a scan and the keys of a mask; the two belong together when they share one."""


def _as_written(item: Named) -> set[Key]:
    return set(item.parts)


def _plain(item: Named) -> set[Key]:
    return {words(item.id)} | {plain_key(parts, SCAN_WORDS) for parts in item.parts}


def _plain_mask(item: Named) -> set[Key]:
    return {words(item.id)} | {plain_key(parts, MASK_WORDS, MASK_ENDINGS) for parts in item.parts}


def _owner(item: Named) -> set[Key]:
    return {owner_key(parts) for parts in item.parts}


def _stem(item: Named) -> set[Key]:
    return {words(parts[-1]) for parts in item.parts}


def _mask_stem(item: Named) -> set[Key]:
    return {bare(words(parts[-1]), MASK_ENDINGS) for parts in item.parts}


def _any_part(item: Named) -> set[Key]:
    return {key for parts in item.parts for key in bare_parts((item.root, *parts) if item.root else parts)}


LEVELS: tuple[Level, ...] = (
    (_as_written, _as_written),  # case_01 and case_01, letter for letter
    (_plain, _plain_mask),  # images/Case_01 and labels/case_01_seg
    (_owner, _owner),  # case_01/imaging, case_01_0000 and case_01/segmentation
    (_stem, _mask_stem),  # siteA/case_01 and case_01_mask
    (_any_part, _any_part),  # STS_001/MR_T1/axial and STS_001
)
"""From strict to loose: what one level pairs, or finds ambiguous, is not looked at by the next."""


def pair_names(
    scans: Sequence[Named], masks: Sequence[Named]
) -> tuple[dict[int, int], list[tuple[set[int], set[int]]]]:
    """Pair scans and masks by their names.

    Returns:
        Index of the scan to index of its mask; and the knots: groups of scans and masks that fit each other, but not
        one to one.
    """
    pairs: dict[int, int] = {}
    knots: list[tuple[set[int], set[int]]] = []
    free_scans, free_masks = set(range(len(scans))), set(range(len(masks)))
    for scan_keys, mask_keys in LEVELS:
        of_scans = {number: scan_keys(scans[number]) - {()} for number in free_scans}
        of_masks = {number: mask_keys(masks[number]) - {()} for number in free_masks}
        for some_scans, some_masks in _groups(of_scans, of_masks):
            if len(some_scans) == len(some_masks) == 1:
                pairs[min(some_scans)] = min(some_masks)
            else:
                knots.append((some_scans, some_masks))
            free_scans -= some_scans
            free_masks -= some_masks
    return pairs, knots


def _groups(of_scans: Mapping[int, set[Key]], of_masks: Mapping[int, set[Key]]) -> list[tuple[set[int], set[int]]]:
    """Return the scans and masks that hang together by shared keys; those that fit nothing are not among them."""
    holders: dict[Key, tuple[set[int], set[int]]] = {}
    for side, keys_of in enumerate((of_scans, of_masks)):
        for number, keys in keys_of.items():
            for key in keys:
                holders.setdefault(key, (set(), set()))[side].add(number)
    groups: list[tuple[set[int], set[int]]] = []
    for scans, masks in holders.values():
        if scans and masks:
            touching = [group for group in groups if group[0] & scans or group[1] & masks]
            groups = [group for group in groups if group not in touching]
            groups.append((scans.union(*(g[0] for g in touching)), masks.union(*(g[1] for g in touching))))
    return sorted(groups, key=lambda group: min(group[0]))
