"""The page docs/reliability.md, made from the tests' own rows: `python -m tests.reliability`; a test keeps it current.

Rows that the tests hold as tables are taken from there; the others name the test that proves them.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

from medseg.codes import CODES
from medseg.io.atomic import write_text
from tests.io.test_dicom_gauntlet import ROWS
from tests.io.test_limits import HOSTILE
from tests.test_dataset_gauntlet import FOLDERS, MASKS, Row

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"

Line = tuple[str, str]
"""What the input is; `right`, or `warned` or `refused` with a code."""

NIFTI: list[tuple[str, str, str]] = [
    # input, outcome, test in tests/io/test_nifti.py
    (
        "any orientation, oblique, either handedness, axes permuted",
        "right",
        "test_agrees_with_nibabel_over_orientations",
    ),
    ("sform alone, qform alone", "right", "test_one_form_is_enough"),
    ("qform alone, oblique, either handedness", "right", "test_qform_alone_agrees_with_nibabel"),
    ("big endian, NIfTI-2", "right", "test_byte_orders_and_versions"),
    (".hdr and .img, compressed too", "right", "test_names_of_pairs"),
    (".hdr without .img", "refused NIFTI-READ", "test_pair_without_voxels"),
    ("8 to 64 bit, signed, unsigned, float", "right", "test_types"),
    ("scl_slope 0 or NaN, fractions, negative", "right", "test_scaling"),
    ("scl_slope or scl_inter infinite", "refused NIFTI-VALUES", "test_refuses_a_header"),
    ("last axes of length 1, a single slice", "warned NIFTI-DIMENSIONS", "test_axes_of_length_one"),
    ("4-D, vectors, 1-D", "refused NIFTI-DIMENSIONS", "test_refuses_other_dimensions"),
    ("metres and microns", "warned NIFTI-UNITS", "test_units"),
    ("a spacing that no scanner has", "warned NIFTI-UNITS", "test_a_spacing_that_no_scanner_has_is_noted"),
    (
        "shear in the sform (its conversion is refused: GRID-SHEAR)",
        "warned NIFTI-SHEAR",
        "test_shear_is_kept_and_noted",
    ),
    (
        "sform and qform less than half a voxel apart",
        "warned NIFTI-GEOMETRY",
        "test_small_differences_of_the_forms_are_noted",
    ),
    (
        "sform and qform apart, or contradicting on left and right",
        "refused NIFTI-GEOMETRY",
        "test_left_and_right_contradict",
    ),
    ("both codes 0; NaN, zero rows, pixdim 0, odd units", "refused NIFTI-GEOMETRY", "test_refuses_a_header"),
    ("dim negative, 0, above 7", "refused NIFTI-DIMENSIONS", "test_refuses_a_header"),
    ("RGB, complex, unknown types", "refused NIFTI-TYPE", "test_refuses_a_header"),
    ("NaN or infinity among the voxels", "refused NIFTI-VALUES", "test_refuses_what_is_no_number"),
    ("cut anywhere, compressed or not", "refused NIFTI-READ", "test_refuses_a_truncated_file"),
    ("gzip checksum or length wrong", "refused NIFTI-CHECKSUM", "test_refuses_a_wrong_checksum"),
    ("bytes behind the gzip stream", "right", "test_after_the_gzip_stream"),
    ("empty, web page, git-lfs or annex pointer, zip", "refused NIFTI-READ", "test_refuses_what_is_no_image"),
    ("ending and content disagree about compression", "warned NIFTI-NAME", "test_wrong_ending"),
    ("a name without .nii or .nii.gz", "warned NIFTI-NAME", "test_content_under_another_name"),
    ("vox_offset beyond the file or inside the header", "refused NIFTI-READ", "test_refuses_a_header"),
    ("a header that claims more, or less, than the file holds", "refused NIFTI-SIZE", "test_refuses_a_header"),
    ("AppleDouble companions, unfinished files", "passed over", "test_names"),
]

OTHERS: list[tuple[str, str, str]] = [
    # input, outcome, file::test
    (
        "SEG: binary, fractional, label map, sparse or shuffled frames, any orientation",
        "right",
        "tests/io/test_dicom_seg.py",
    ),
    (
        "SEG beside the scan's voxels, cut, of undescribed segments",
        "refused MASK-GRID, MASK-READ, MASK-VALUES",
        "tests/io/test_dicom_seg.py",
    ),
    ("RTSTRUCT: holes, keyholes, several contours, off the planes, absent UIDs", "right", "tests/io/test_rtstruct.py"),
    (
        "RTSTRUCT: points only, across the slices, outside, cut",
        "refused MASK-READ, MASK-GRID",
        "tests/io/test_rtstruct.py",
    ),
    (
        "configuration: tags, anchors, `$`, `_target_`, nested deep",
        "refused CONFIG-UNSAFE",
        "tests/config/test_load.py::test_refuses",
    ),
    (
        "configuration: broken YAML, tabs, empty, a list, not UTF-8",
        "refused CONFIG-SYNTAX",
        "tests/config/test_load.py::test_refuses",
    ),
    ("configuration: unknown or repeated key", "refused CONFIG-KEY", "tests/config/test_load.py::test_refuses"),
    (
        "configuration: wrong type or range, NaN, labels that clash",
        "refused CONFIG-VALUE",
        "tests/config/test_load.py::test_refuses",
    ),
    (
        "configuration: 1e-3, byte order mark, CR LF, `no` as text",
        "right",
        "tests/config/test_load.py::test_words_of_yaml_1_1_stay_words",
    ),
    (
        "configuration: aliases that multiply",
        "refused CONFIG-UNSAFE",
        "tests/config/test_load.py::test_billion_laughs_end_at_once",
    ),
    (
        "model: pickle in disguise, three kinds",
        "refused MODEL-FORMAT",
        "tests/models/test_model_folder.py::test_pickles_in_disguise_are_not_run",
    ),
    ("model: cut weights", "refused MODEL-HASH, MODEL-FORMAT", "tests/models/test_model_folder.py::test_cut_weights"),
    (
        "model: other shape, missing or unexpected key, other type",
        "refused MODEL-SHAPE",
        "tests/models/test_model_folder.py::test_weights_of_another_architecture",
    ),
    (
        "model: NaN or infinite weights",
        "refused MODEL-VALUES",
        "tests/models/test_model_folder.py::test_values_that_are_no_numbers",
    ),
    (
        "model: a header that claims more than the file holds",
        "refused MODEL-FORMAT",
        "tests/models/test_model_folder.py::test_a_header_that_claims_more_than_the_file_holds",
    ),
    (
        "model: weights saved on a GPU",
        "right",
        "tests/models/test_model_folder.py::test_weights_of_bfloat16_or_a_gpu_are_saved_as_plain_arrays",
    ),
    (
        "model: README, zip or nothing named as weights",
        "refused MODEL-FORMAT",
        "tests/models/test_model_folder.py::test_other_files_named_weights",
    ),
]

MADE = "<!-- Made from the tests by `python -m tests.reliability`; a test keeps it current. Do not edit. -->"

INTRODUCTION = """
How real input goes wrong, and what becomes of it. Every row is written by a test and judged voxel by voxel against what
the test knows to be there. *Right*: read exactly. *Warned*: read exactly, with a warning of that code. *Refused*: that
case alone, with that code and a message; the batch goes on.
"""

LIMITS = """
## Not read, or not yet

| input | what happens | instead |
|---|---|---|
| tilted gantry, converted or masked | listed with `DICOM-TILT`, then refused `GRID-SHEAR` | a resampled series |
| Siemens mosaic whose header lacks the protocol, or contradicts it | refused `DICOM-MOSAIC` | dcm2niix |
| DICOM SEG or RTSTRUCT written onto a mosaic | refused `MASK-GRID` | masks as NIfTI |
| modality lookup table | refused `DICOM-RESCALE` | export with slope and intercept |
| floating-point pixel data, more than 32 bits | refused `DICOM-PIXELS` | export as integers |
| real-world value maps, Philips' private scale | not applied: the modality rescale counts | |
| GE slices acquired in turns under two acquisition numbers | MR: read, warned `DICOM-MIXED`; CT, PET: refused | |
| a slice whose bytes are lost but whose file is whole | cannot be seen | |
| another patient's slices under the same id, name and birth date | cannot be seen | |

## Broken on purpose

`python tests/benchmarks/mutants.py` flips signs and transposes in a copy of the code, one at a time: the frames LPS and
RAS, rows and columns, the order of slices, array order, byte and bit order, quaternions, and the places of mosaic
tiles, SEG frames and contours. 66 of the 67 were caught when they were first tried; the one that was not, a mirrored x
in what SEG and RTSTRUCT share, was hidden by tests whose series came from our own writer. All 67 are caught now.
"""


def dicom_lines() -> list[Line]:
    """The rows of the DICOM gauntlet."""
    return [(name, _outcome(wanted)) for name, _, wanted in ROWS]


def _outcome(wanted: str) -> str:
    if wanted == "ok":
        return "right"
    return f"refused {wanted[1:].rstrip('-')}" if wanted[0] in "!?" else f"warned {wanted}"


def data_lines(rows: list[Row]) -> list[Line]:
    """The rows of the data set gauntlet."""
    kinds = {"error": "refused", "warning": "warned", "note": "noted"}
    return [(row.name, f"{kinds[row.severity]} {row.said}" if row.said else "right") for row in rows]


def hostile_lines() -> list[Line]:
    """Input that asks for too much, each refused in seconds and within 2.5 GB."""
    return [
        (name.replace("_", " "), "right" if code == "ok" else f"refused {code}") for name, (_, code) in HOSTILE.items()
    ]


def page() -> str:
    """Return the page."""
    nifti = [(text, outcome, f"tests/io/test_nifti.py::{test}") for text, outcome, test in NIFTI]
    sections = [
        ("DICOM series", _proved(dicom_lines(), "tests/io/test_dicom_gauntlet.py")),
        ("Hostile input", _proved(hostile_lines(), "tests/io/test_limits.py")),
        ("Masks beside their scan", _proved(data_lines(MASKS), "tests/test_dataset_gauntlet.py")),
        ("Data sets and folders", _proved(data_lines(FOLDERS), "tests/test_dataset_gauntlet.py")),
        ("NIfTI files", nifti),
        ("References, configurations, models", OTHERS),
    ]
    counts = Counter(row[1].split()[0] for _, rows in sections for row in rows)
    total = ", ".join(f"{counts[kind]} {kind}" for kind in ("right", "warned", "noted", "refused", "passed"))
    lines = [
        "# Reliability",
        "",
        MADE,
        *INTRODUCTION.rstrip().splitlines(),
        "",
        f"{counts.total()} rows: {total} over.",
    ]
    for title, rows in sections:
        files = sorted({row[2].partition("::")[0] for row in rows})
        named = any("::" in row[2] for row in rows)
        lines += ["", f"## {title}", "", f"Proved by {', '.join(f'`{file}`' for file in files)}.", ""]
        lines += ["| input | outcome | test |", "|---|---|---|"] if named else ["| input | outcome |", "|---|---|"]
        for text, outcome, test in rows:
            name = f" `{test.partition('::')[2] or test}` |" if named else ""
            lines.append(f"| {_cell(text)} | {_cell(outcome)} |{name}")
    return "\n".join(lines) + "\n" + LIMITS


def _proved(lines: list[Line], file: str) -> list[tuple[str, str, str]]:
    return [(text, outcome, file) for text, outcome in lines]


def _cell(text: str) -> str:
    """Text for a table, codes in code type."""
    return re.sub(r"\b[A-Z]+-[A-Z]+\b", lambda m: f"`{m[0]}`" if m[0] in CODES else m[0], text.replace("|", "\\|"))


def proofs() -> list[tuple[Path, str]]:
    """File and test, "" for the whole file, that each named row rests on."""
    named = [f"tests/io/test_nifti.py::{test}" for _, _, test in NIFTI] + [test for _, _, test in OTHERS]
    return [(ROOT / name.partition("::")[0], name.partition("::")[2]) for name in named]


def functions_of(path: Path) -> set[str]:
    """Names of the functions of a test file."""
    return {node.name for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)}


if __name__ == "__main__":
    write_text(PAGE, page())
