"""The scripts in `pipelines/`: short, on the public API, and they run."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest

import medseg
from pipelines import predict_folder, study, train
from tests import cases

FOLDER = Path(study.__file__).parent
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if path.name != "__init__.py")
LIGHT = ["train.epochs=1", "train.batch_size=4", "model.widths=[4, 8]", "train.precision=fp32", "data.validation=0.3"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    cases.data_set(folder, 4)
    (folder / "study.yaml").write_text("data: {scans: images, references: labels}\n")
    cases.nifti(folder / "new" / "later.nii.gz", cases.image(7))
    cases.nifti(folder / "new_labels" / "later.nii.gz", cases.blob())
    return folder


@pytest.fixture(scope="module")
def model(data: Path) -> Path:
    assert train.main([str(data / "study.yaml"), str(data / "run"), *LIGHT]) == 0
    return data / "run"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_short_and_public(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    taken = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    names = {alias.name for node in taken if node.module == "medseg" for alias in node.names}
    assert names <= set(medseg.__all__)
    assert not [node.module for node in taken if (node.module or "").startswith("medseg.")]


@pytest.mark.parametrize("script", [train, predict_folder, study])
def test_without_arguments_says_how(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main([]) == 2
    assert f"python pipelines/{Path(script.__file__ or '').name} " in capsys.readouterr().out


def test_runs_as_a_script_from_anywhere(tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "train.py"), "/no/such.yaml", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("/no/such.yaml: cannot be read")


def test_train_leaves_a_model_and_goes_on(data: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (model / "model" / "weights.safetensors").is_file()
    assert train.main([str(data / "study.yaml"), str(model), *LIGHT]) == 0  # a finished run is only read
    assert "Traceback" not in capsys.readouterr().err


def test_predict_folder_writes_masks_on_the_scans(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict_folder.main([str(data / "new"), str(model), str(tmp_path)]) == 0
    mask, scan = nib.load(tmp_path / "later.nii.gz"), nib.load(data / "new" / "later.nii.gz")
    assert mask.shape == scan.shape
    assert np.allclose(mask.affine, scan.affine, atol=1e-5)
    assert capsys.readouterr().out.startswith("later: tumour ")


def test_predict_folder_goes_on_after_a_bad_scan(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = tmp_path / "scans"
    cases.nifti(scans / "good.nii.gz", cases.image(8))
    (scans / "bad.nii.gz").write_bytes(b"\x1f\x8b\x08")
    assert predict_folder.main([str(scans), str(model), str(tmp_path / "out")]) == 3
    assert capsys.readouterr().err.startswith("bad: ")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.nii.gz"]


def test_study_from_training_to_report(data: Path, model: Path, tmp_path: Path) -> None:
    words = [data / "study.yaml", data / "new", data / "new_labels", tmp_path]
    assert study.main([*map(str, words), *LIGHT]) == 0
    assert (tmp_path / "masks" / "later.nii.gz").is_file()
    assert (tmp_path / "report" / "report.html").is_file()
    assert study.main([*map(str, words), *LIGHT]) == 0  # nothing is done twice, nothing breaks


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (train, ["/no/such.yaml", "run"]),
        (predict_folder, [".", "/no/such", "out"]),
        (study, ["/no/such.yaml", ".", ".", "out"]),
    ],
)
def test_mistakes_are_sentences(script: ModuleType, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(words) == 2
    assert "/no/such" in capsys.readouterr().err


def test_the_slurm_script_starts_one_task_for_each_gpu(tmp_path: Path) -> None:
    """srun is a stand-in that tells what it was asked for."""
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/bash\nprintf "%s\\n" "$SRUN_CPUS_PER_TASK" "$@"\n')
    srun.chmod(0o755)
    script = Path(__file__).parents[1] / "pipelines" / "train_slurm.sh"
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "6"}
    given = ["my study.yaml", "run", "budget=8h"]
    asked = subprocess.run([script, *given], env=environment, capture_output=True, text=True, check=True)
    cores, _, program, *arguments = asked.stdout.splitlines()
    assert (cores, program) == ("6", "medseg")
    assert arguments == ["train", "my study.yaml", "budget=8h", "--output", "run", "--resume"]
    assert subprocess.run([script], env=environment, capture_output=True, check=False).returncode == 2


def test_a_fault_is_not_wrong_usage(data: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([str(data / "study.yaml"), str(model), *LIGHT, "seed=1"]) == 1  # the folder holds another run
    assert "RUN-RESUME" in capsys.readouterr().err
