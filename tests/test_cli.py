"""The command line as its users meet it: exit codes, sentences, no traceback, nothing that libraries say."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.text import Text

import medseg.cli.data
from medseg.cli import _run
from medseg.config import load
from medseg.ledger import read_rows
from tests import cases, phantoms

Run = Callable[..., tuple[int, str, str]]
COMMANDS = (
    "demo",
    "scan",
    "convert",
    "check",
    "plan",
    "train",
    "join",
    "predict",
    "watch",
    "evaluate",
    "compare",
    "doctor",
)
LIGHT = ("train.epochs=1", "train.batch_size=4", "model.widths=[4, 8]", "train.precision=fp32", "data.validation=0.3")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command inside this process: exit code, standard output, standard error."""

    def call(*words: object) -> tuple[int, str, str]:
        code = _run([str(word) for word in words])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        assert "\x1b" not in out + err  # plain text where there is no terminal
        return code, out, err

    return call


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four NIfTI pairs, a configuration, a trained model."""
    folder = tmp_path_factory.mktemp("a study")
    cases.data_set(folder, 4)
    (folder / "study.yaml").write_text("data: {scans: images, references: labels}\nlabels: {tumour: 1}\n")
    assert _run(["train", str(folder / "study.yaml"), *LIGHT, "-o", str(folder / "run")]) == 0
    return folder


def start(*words: object, **options: object) -> subprocess.Popen[str]:
    """Start the real program."""
    command = [sys.executable, "-m", "medseg", *map(str, words)]
    # A shell that starts the tests in the background has Ctrl-C ignored, and what it starts inherits that.
    options.setdefault("preexec_fn", lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload,no-any-return]


# ------------------------------------------------------------------------------------------------------ help, usage


@pytest.mark.parametrize("words", [(), ("--help",), *((command, "--help") for command in COMMANDS)])
def test_help(run: Run, words: tuple[str, ...]) -> None:
    code, out, _ = run(*words)
    assert code == 0
    assert "Usage: medseg" in out
    assert "Exit codes: 0 all done" in out
    assert "--empty" not in out


def test_help_names_every_command(run: Run) -> None:
    _, out, _ = run("--help")
    assert all(f"{command} " in out for command in COMMANDS)


def test_python_runs_it_as_a_module_too() -> None:
    done = subprocess.run([sys.executable, "-m", "medseg", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == medseg.__version__


def test_version(run: Run) -> None:
    assert run("--version")[:2] == (0, f"{medseg.__version__}\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("scna", "x"), 'Did you mean "scan"?'),
        (("scan", "--cvs", "x"), "Did you mean --csv?"),
        (("scan",), "no folder or file is given"),
        (("scan", "/no/such/folder"), "/no/such/folder: there is no such file or folder (USAGE-PATH)"),
        (("train",), "CONFIG"),
        (("train", "/no/such.yaml"), "/no/such.yaml: cannot be read: No such file or directory"),
        (("train", "."), "Is a directory"),
        (("convert", "."), "--output"),
        (("predict", ".", "--output", "o"), "--model"),
        (("join", "one", "-o", "o"), "1 model is given, wanted two or more"),
        (("join", "/no/such/model", "b", "-o", "o"), "/no/such/model: no such folder"),
        (("predict", "--model", "m", "-o", "o"), "no folder or file is given"),
        (("predict", ".", "--model", "/no/such/model", "-o", "o"), "/no/such/model: no such folder"),
        (("predict", ".", "--model", "m", "-o", "o", "--batch-size", "-1"), "Must be >= 1"),
        (("predict", ".", "--model", "m", "-o", "o", "--format", "png"), "nifti"),
        (("demo", "--seed", "-1"), "Must be >= 0"),
        (("demo", "--seed", "one"), '"one"'),
        (("evaluate", "--masks", "/no/such", "--references", ".", "-o", "o"), "/no/such: not a folder"),
        (("evaluate", "--masks", ".", "--references", ".", "-o", "o", "--fail-under", "dice"), "such as dice=0.8"),
        (("evaluate", "--masks", ".", "--references", ".", "-o", "o", "--fail-under", "hd95_mm=3"), "Metrics: dice"),
        (("evaluate", "--masks", ".", "--references", ".", "-o", "o", "--groups", "/no/such"), "not readable"),
        (("compare", "/no/such/a", "/no/such/b"), "/no/such/a: cannot be read"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_usage_is_a_sentence_and_2(
    run: Run, words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert said in err
    assert list(tmp_path.iterdir()) == []


def test_errors_of_usage_point_to_the_help(run: Run) -> None:
    assert run("scan", "--cvs", "x")[2].splitlines()[-1] == "See medseg scan --help."
    assert run("scna")[2].splitlines()[-1] == "See medseg --help."


def test_every_fault_of_a_configuration_at_once(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "study.yaml"
    config.write_text("data: {scans: .}\ntrain:\n  epocs: 3\n  batch_size: none\n")
    code, _, err = run("train", config, "learning_rate=1")
    assert code == 2
    assert "study.yaml:3: train.epocs: unknown key, did you mean 'epochs'?" in err
    assert "study.yaml:4: train.batch_size" in err
    assert "belongs under `train:`" in err


# -------------------------------------------------------------------------------------------------- scan, convert


@pytest.mark.parametrize("junk", [None, "notes.txt"])
def test_folder_without_scans(run: Run, tmp_path: Path, junk: str | None) -> None:
    if junk:
        (tmp_path / junk).write_text("no scan")
    code, out, err = run("scan", tmp_path)
    others = "; 1 other file passed over: 1 x neither DICOM nor NIfTI" if junk else ""
    assert (code, out, err) == (1, f"no scan found{others}\n", "")


def test_scan_writes_its_tables(run: Run, tmp_path: Path) -> None:
    cases.data_set(tmp_path / "with space", 2)
    (tmp_path / "with space" / "images" / "cut.nii.gz").write_bytes(b"\x1f\x8b\x08")
    code, out, _ = run("scan", tmp_path / "with space", "--csv", tmp_path / "t.csv", "--json", tmp_path / "t.json")
    assert code == 3
    assert out.splitlines()[-1] == "4 usable, 1 rejected"
    assert "(NIFTI-READ)" in next(line for line in out.splitlines() if line.startswith("images_cut"))
    assert len(json.loads((tmp_path / "t.json").read_text())) == 5
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 6


def test_table_cannot_be_written(run: Run, tmp_path: Path) -> None:
    cases.data_set(tmp_path, 1)
    (tmp_path / "file").write_text("")
    code, _, err = run("scan", tmp_path, "--csv", tmp_path / "file" / "t.csv")
    assert code == 1
    assert "(RUN-WRITE)" in err


def test_output_that_is_a_file(run: Run, tmp_path: Path) -> None:
    cases.data_set(tmp_path / "scans", 1)
    (tmp_path / "out").write_text("")
    code, _, err = run("convert", tmp_path / "scans", "-o", tmp_path / "out")
    assert code == 1
    assert "(RUN-WRITE)" in err


def test_convert_says_reasons_on_standard_error(run: Run, tmp_path: Path) -> None:
    slices = phantoms.series()
    phantoms.save(slices, tmp_path / "scans" / "whole")
    phantoms.save(phantoms.series()[:1], tmp_path / "scans" / "one")
    code, out, err = run("convert", tmp_path / "scans", "-o", tmp_path / "out")
    assert code == 3
    assert out.splitlines() == ["whole: done", f"1 done, 1 rejected; ledger: {tmp_path / 'out' / 'cases.csv'}"]
    assert [line.partition(": ")[0] for line in err.splitlines()] == ["one"]
    assert "Doe" not in out + err
    assert "4711" not in out + err


def test_names_that_are_not_utf8(run: Run, tmp_path: Path) -> None:
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff")
    cases.nifti(tmp_path / "good.nii.gz", cases.image())
    Path(folder).mkdir()
    (tmp_path / "good.nii.gz").rename(Path(folder) / os.fsdecode(b"s\xfe.nii.gz"))
    (Path(folder) / "cut.nii").write_bytes(b"\x5c\x01\x00\x00")
    code, out, err = run("scan", folder)
    assert code == 3
    (out + err).encode("utf-8")
    assert run("convert", folder, "-o", tmp_path / "out")[0] == 3


# ----------------------------------------------------------------------------------------- check, plan, train


def test_check_groups_findings_and_says_who_can_be_used(run: Run, study: Path, tmp_path: Path) -> None:
    code, out, _ = run("check", study / "study.yaml", "--json", tmp_path / "findings.json")
    assert code == 0
    assert out.splitlines()[-1].startswith("4 cases can be used")
    assert out.splitlines()[-1].endswith("0 errors")
    assert "note: labels.tumour: in 4 of 4 cases" in out
    assert json.loads((tmp_path / "findings.json").read_text())["findings"]


def test_check_counts_errors(run: Run, tmp_path: Path) -> None:
    cases.data_set(tmp_path, 4)
    (tmp_path / "labels" / "case_03.nii.gz").unlink()
    (tmp_path / "study.yaml").write_text("data: {scans: images, references: labels}\n")
    code, out, _ = run("check", tmp_path / "study.yaml")
    assert code == 3
    assert out.startswith("error: case_03: ")
    assert out.splitlines()[-1].endswith("1 error")


def test_findings_on_a_terminal_stand_under_headings(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from medseg.case import Finding

    printed: list[str] = []
    monkeypatch.setattr(type(medseg.cli.data.out), "is_terminal", property(lambda self: True))
    monkeypatch.setattr(medseg.cli.data.out, "print", lambda text: printed.append(Text.from_markup(str(text)).plain))
    medseg.cli.data.show_findings(
        [
            Finding("note", "MASK-EMPTY", "b", "empty"),
            Finding("error", "MASK-GRID", "z", "away"),
            Finding("error", "MASK-GRID", "a", "away"),
        ]
    )
    assert printed == [
        "2 errors",
        "  a: away (MASK-GRID)",
        "  z: away (MASK-GRID)",
        "1 note",
        "  b: empty (MASK-EMPTY)",
    ]


def test_nothing_to_train_on(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "study.yaml").write_text("data: {scans: empty}\n")
    for command in ("check", "plan", "train"):
        code, _, err = run(command, tmp_path / "study.yaml", *(["-o", tmp_path / "run"] if command == "train" else []))
        assert code in (1, 2), command
        assert err or command == "check"


def test_plan_is_what_train_does(run: Run, study: Path) -> None:
    before = sorted(study.rglob("*"))
    code, out, _ = run("plan", study / "study.yaml", *LIGHT)
    assert code == 0
    assert sorted(study.rglob("*")) == before
    rows = [re.split(r"  +", line, maxsplit=2) for line in out.splitlines()]
    shown = {row[0]: row[1:] for row in rows}
    trained = load(study / "run" / "config.yaml")
    assert shown["train.patch"][0] == "[{}, {}]".format(*trained.train.patch or ())
    assert shown["prepare.plane"][0] == trained.prepare.plane == "axial"  # 2.5 mm along z, the others 0.9 and 0.7
    # The axial plane's rows run along y (0.7 mm), its columns along x (0.9 mm).
    assert np.allclose(trained.prepare.spacing_mm or (), (0.7, 0.9))
    assert shown["prepare.spacing_mm"] == ["[0.7, 0.9]", "median of 3 training cases (all alike)"]
    assert shown["data"] == ["3 cases to train on, 1 to validate, 0 left out"]
    # 3 cases of 6 slices each; 18 slices in steps of 4 are 5 steps.
    assert shown["train.epochs"] == ["1", "of 5 steps: 5 steps in all"]
    # 12 voxels of 8 x 7 x 6 = 336: 3.57 %; each 0.9 x 0.7 x 2.5 = 1.575 mm3, so 12 are 0.0189 ml.
    assert shown["label tumour"] == ["in 3 cases; 0.0189 ml in the median (0.0189 to 0.0189), 3.57% of the scan"]


def test_a_plan_is_a_configuration(run: Run, study: Path, tmp_path: Path) -> None:
    assert run("plan", study / "study.yaml", *LIGHT, "-o", tmp_path / "plan.yaml")[0] == 0
    planned, trained = load(tmp_path / "plan.yaml"), load(study / "run" / "config.yaml")
    assert (planned.prepare, planned.augment, planned.model) == (trained.prepare, trained.augment, trained.model)
    code, _, err = run("plan", tmp_path / "plan.yaml", "-o", tmp_path / "plan.yaml")
    assert code == 2
    assert "is the configuration that the plan is made from" in err


def test_train_refuses_a_folder_with_a_run(run: Run, study: Path) -> None:
    code, _, err = run("train", study / "study.yaml", *LIGHT, "-o", study / "run")
    assert code == 1
    assert "Add --resume" in err


# --------------------------------------------------------------------------------- predict, evaluate, compare


def test_predict_then_evaluate_then_compare(run: Run, study: Path, tmp_path: Path) -> None:
    masks, report = tmp_path / "masks", tmp_path / "report"
    code, out, _ = run("predict", study / "images", "--model", study / "run", "-o", masks, "--precision", "fp32")
    assert code == 0
    assert out.splitlines()[-1] == f"4 done; ledger: {masks / 'cases.csv'}"
    starts = ["to predict: 4 cases", "memory: up to", "disk: up to", "too few validation cases"]
    starts += ["case_00: done", "case_00 took", "case_01: done"]
    assert all(line.startswith(start) for line, start in zip(out.splitlines(), starts, strict=False))
    assert len(out.splitlines()) == len(starts) + 3
    again = run("predict", study / "images", "--model", study / "run", "-o", masks, "--precision", "fp32")
    assert again[1].splitlines()[-1].startswith("4 reused")

    words = ("evaluate", "--masks", masks, "--references", study / "labels", "-o")
    code, out, _ = run(*words, report)
    assert code == 0
    assert out.startswith("tumour: ")  # the name in labels.json
    assert out.splitlines()[-1] == f"report: {report / 'report.html'}"
    assert {path.name for path in report.iterdir()} >= {"report.json", "report.html", "scores.csv"}

    code, out, err = run(*words, tmp_path / "strict", "--fail-under", "dice=1", "--labels", "lesion")
    assert code == 3
    assert err.startswith("lesion: mean dice ")
    assert err.rstrip().endswith("wanted 1 (--fail-under)")
    assert run(*words, tmp_path / "lax", "--fail-under", "dice=0")[0] == 0

    code, out, _ = run("compare", report, tmp_path / "lax" / "report.json", "-o", tmp_path / "compared")
    assert code == 0
    assert out.startswith("tumour: on 4 cases of 4 patients the mean Dice was ")
    assert {path.name for path in (tmp_path / "compared").iterdir()} == {"compare.html", "compare.json", "compare.csv"}
    assert run("compare", report)[0] == 2


def test_watch_once_predicts_what_is_there(run: Run, study: Path, tmp_path: Path) -> None:
    words = ("watch", study / "images", "--model", study / "run", "-o", tmp_path / "masks", "--once", "--quiet", "0")
    code, out, _ = run(*words, "--precision", "fp32", "--workers", "0")
    assert (code, out.splitlines()[-1]) == (0, f"4 done; ledger: {tmp_path / 'masks' / 'cases.csv'}")
    (tmp_path / "empty").mkdir()
    code, out, _ = run("watch", tmp_path / "empty", *words[2:4], "-o", tmp_path / "none", *words[6:])
    assert (code, out.splitlines()[-1]) == (0, "nothing new that is complete")
    assert run("watch", tmp_path / "absent", *words[2:])[0] == 2


def test_joined_models_predict_as_one(run: Run, study: Path, tmp_path: Path) -> None:
    joined = tmp_path / "joined"
    assert run("join", study / "run", study / "run", "-o", joined)[:2] == (0, f"model: {joined}\n")
    code, _, err = run("join", study / "run", study / "run", "-o", joined)
    assert (code, "is there already" in err) == (2, True)
    for model, masks in (study / "run", tmp_path / "one"), (joined, tmp_path / "two"):
        assert run("predict", study / "images", "--model", model, "-o", masks, "--precision", "fp32")[0] == 0
    names = [path.name for path in (tmp_path / "one").glob("*.nii.gz")]  # a model joined with itself is itself
    assert len(names) == 4
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "two" / n).read_bytes() for n in names)


def test_strata_and_paper(run: Run, study: Path, tmp_path: Path) -> None:
    table = tmp_path / "sites.csv"
    table.write_text("case,site\n" + "".join(f"case_{n:02},{'north' if n % 2 else 'south'}\n" for n in range(4)))
    words = ("evaluate", "--masks", study / "labels", "--references", study / "labels", "--labels", "tumour")
    assert run(*words, "--strata", table, "--by", "site", "--paper", "-o", tmp_path / "out")[0] == 0
    assert "north" in (tmp_path / "out" / "report.json").read_text()
    assert {"table.tex", "table.md"} <= {path.name for path in (tmp_path / "out" / "paper").iterdir()}
    code, _, err = run(*words, "--by", "site", "-o", tmp_path / "out2")
    assert (code, "belong together" in err) == (2, True)


def test_groups_make_patients(run: Run, study: Path, tmp_path: Path) -> None:
    table = tmp_path / "groups.csv"
    table.write_text("case,group\n" + "".join(f"case_{n:02},p{n // 2}\n" for n in range(4)))
    words = ("evaluate", "--masks", study / "labels", "--references", study / "labels", "--labels", "tumour")
    assert run(*words, "--groups", table, "-o", tmp_path / "out")[0] == 0
    code, out, _ = run("compare", tmp_path / "out", tmp_path / "out")
    assert code == 0
    assert "on 4 cases of 2 patients" in out


def test_a_missing_mask_is_3(run: Run, study: Path, tmp_path: Path) -> None:
    cases.nifti(tmp_path / "masks" / "case_00.nii.gz", cases.blob())
    words = ("evaluate", "--masks", tmp_path / "masks", "--references", study / "labels", "-o", tmp_path / "out")
    code, out, _ = run(*words, "--labels", "tumour")
    assert code == 3
    assert "3 without a mask" in out


def test_predict_goes_on_after_a_bad_scan(run: Run, study: Path, tmp_path: Path) -> None:
    cases.nifti(tmp_path / "new" / "good.nii.gz", cases.image(9))
    (tmp_path / "new" / "bad.nii.gz").write_bytes(b"\x1f\x8b\x08")
    code, out, err = run("predict", tmp_path / "new", "--model", study / "run" / "model", "-o", tmp_path / "masks")
    assert code == 3
    assert "good: done" in out
    assert err.startswith("bad: rejected: ")
    assert {row.case: row.status for row in read_rows(tmp_path / "masks" / "cases.csv")} == {
        "bad": "rejected",
        "good": "done",
    }


@pytest.mark.parametrize("content", [b"", b"architecture: [", b"\xff\xfe"])
def test_model_that_is_none(run: Run, study: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.yaml").write_bytes(content)
    code, _, err = run("predict", study / "images", "--model", tmp_path, "-o", tmp_path / "out")
    assert code == 2
    assert "(MODEL-FORMAT)" in err


# ---------------------------------------------------------------------------------------------- the unexpected


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "stopped. What was finished is kept"),
        (OSError(28, "No space left on device", "/data/x"), 1, "/data/x: No space left on device"),
        (MemoryError(), 1, "not enough memory (RUN-MEMORY)"),
        (ZeroDivisionError("Doe^Jane"), 1, "an unexpected fault inside medseg: ZeroDivisionError in test_cli.py, line"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_traceback_whatever_happens(
    run: Run, monkeypatch: pytest.MonkeyPatch, fault: BaseException, code: int, said: str, tmp_path: Path
) -> None:
    def fail(paths: object) -> None:
        raise fault

    monkeypatch.setattr("medseg.scan.take_inventory", fail)
    found, _, err = run("scan", tmp_path)
    assert found == code
    assert said in err
    assert "Doe" not in err


# ------------------------------------------------------------------------------------------------- the process


def test_reader_that_goes_away(study: Path) -> None:
    with start("scan", study) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_interrupt(study: Path, tmp_path: Path) -> None:
    long = ("train", study / "study.yaml", *LIGHT, "train.epochs=100000", "-o", tmp_path / "run")
    with start(*long) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("epoch"):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    first, last = err.splitlines()
    assert first == "warning: stopping after the step in hand; once more stops at once"
    assert last == "stopped. What was finished is kept; the same command goes on from there (train: add --resume)."


@pytest.mark.parametrize("command", [("scan", "."), ("check", "study.yaml"), ("evaluate", "--help")])
def test_light_commands_never_import_torch(study: Path, command: tuple[str, ...]) -> None:
    code = (
        "import sys; from medseg.cli import _run; _run(sys.argv[1:]);"
        "sys.exit(', '.join({'torch', 'monai'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command], cwd=study, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("option", [("--shard", "3/2"), ("--shard", "0/2"), ("--timeout", "0"), ("--timeout", "-1")])
def test_wrong_options_are_refused_before_anything_is_loaded(tmp_path: Path, option: tuple[str, str]) -> None:
    code = "import sys; from medseg.cli import _run; print(_run(sys.argv[1:]), 'torch' in sys.modules)"
    words = ("predict", tmp_path, "--model", tmp_path, "-o", tmp_path / "out", *option)
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stdout == "2 False\n"
    assert option[0] in done.stderr
    assert not (tmp_path / "out").exists()


def test_libraries_and_odd_terminals_are_quiet() -> None:
    """Warnings and log records of others stay away, medseg's own are plain lines, a poor terminal shows `?`."""
    code = (
        "import logging, warnings, medseg.cli as cli, nibabel; cli._quieten();"
        "warnings.warn('for programmers'); logging.getLogger('pydicom').warning('a bad value');"
        "logging.getLogger('nibabel.global').error('odd header');"
        "logging.getLogger('medseg.scan').warning('%s is odd', 'case-\\udcff\\u80bf');"
        "from medseg.cli.terminal import out; out.print(cli.plain('\\u80bf'))"
    )
    poor = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONWARNINGS": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=poor)
    assert (done.returncode, done.stdout, done.stderr) == (0, "?\n", "warning: case-?? is odd\n")


def test_bar_on_a_terminal_and_lines_in_a_pipe(study: Path, tmp_path: Path) -> None:
    """A pseudo-terminal gets control codes of a bar that is gone at the end; a pipe gets none (`run` proves it)."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", "from medseg.cli import main; main()", "convert", "images", "-o", str(tmp_path)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen(command, cwd=study, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # Linux: the other side is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.wait() == 0
    assert b"4/4" in shown
    assert shown.count(b": done") == 4
    assert shown.rstrip().endswith(b"cases.csv")


@pytest.mark.realdata
def test_real_zoo(run: Run, shared_data: Path) -> None:
    code, out, err = run("scan", shared_data / "zoo")
    assert err == ""
    lines = out.splitlines()
    usable = sum(" usable " in f"{line} " for line in lines[1:-1])
    rejected = len(lines) - 2 - usable
    assert code == (3 if rejected else 0)
    assert lines[-1].startswith(f"{usable} usable, {rejected} rejected; 1 RTSTRUCT or SEG object; ")


@pytest.mark.realdata
def test_real_dirty_pairs_are_named(run: Run, shared_data: Path, tmp_path: Path) -> None:
    places = shared_data / "hippocampus"
    (tmp_path / "study.yaml").write_text(
        f"data: {{scans: {places / 'images'}, references: {places / 'labels'}}}\n"
        "labels: {anterior: 1, posterior: 2}\n"
    )
    code, out, _ = run("check", tmp_path / "study.yaml")
    assert code == 3
    assert [line.split(":")[0] for line in out.splitlines()].count("error") == 3
    assert out.splitlines()[-1].startswith("208 cases can be used")


def test_sizes_are_those_of_the_phantom(run: Run, tmp_path: Path) -> None:
    """8 x 7 x 6 voxels of 0.9 x 0.7 x 2.5 mm, i to the left."""
    cases.nifti(tmp_path / "one.nii.gz", np.zeros(cases.SHAPE, np.int16))
    _, out, _ = run("scan", tmp_path)
    assert out.splitlines()[1].split() == ["one", "NIfTI", "8x7x6", "0.9x0.7x2.5", "LAS", "usable"]
