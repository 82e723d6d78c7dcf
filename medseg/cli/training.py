"""`medseg train`, `medseg join` and `medseg demo`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from medseg.cli.terminal import DONE, SOME_REJECTED, Output, Positive, Seed, out, plain, screen


def train(
    config: Path,
    /,
    *overrides: str,
    output: Output = Path("run"),
    resume: bool = False,
    fold: Positive | None = None,
    from_: Annotated[Path | None, Parameter(name="--from")] = None,
) -> int:
    """Train a network on the scans and reference masks that a configuration names; with folds=5, five of them.

    Args:
        config: configuration file.
        overrides: settings as key=value, such as train.epochs=20.
        output: the run folder.
        resume: go on with a run that was stopped.
        from_: model or run folder to start from: its weights, its preparation, its patch.
        fold: of a configuration with folds, train this one only: others may run elsewhere at the same time.
    """
    from medseg.config import load
    from medseg.training import train as run
    from medseg.training.team import place_of

    if from_ is not None:
        overrides += (f"start.model={json.dumps(str(from_))}",)  # quoted, as YAML wants names with spaces or colons
    result = run(load(config, overrides), output, resume=resume, fold=fold, watch=screen)
    screen.close()
    if place_of().rank == 0:  # of several processes one tells
        out.print(plain(result.summary()))
    return SOME_REJECTED if result.left_out else DONE


def join(*models: Path, output: Output) -> int:
    """Join models of one architecture and one preparation into an ensemble: predict takes it as any other model.

    Args:
        models: two or more model or run folders.
        output: folder of the ensemble; its scores are for medseg evaluate to find.
    """
    from medseg.errors import UsageError
    from medseg.models.model_folder import join_models, load_model

    if len(models) < 2:
        raise UsageError("USAGE-PATH", "MODELS", f"{len(models)} model is given, wanted two or more", "Name them.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError("USAGE-PATH", str(output), "is there already", "Choose a folder that is new or empty.")
    join_models([load_model(model) for model in models], output)
    out.print(plain(f"model: {output}"))
    return DONE


def demo(*, output: Output = Path("medseg-demo"), seed: Seed = 0) -> int:
    """Make phantom patients, train on them, predict the held-out ones and write the Dice report; minutes on a CPU.

    Args:
        output: folder for everything the demo makes.
        seed: of the phantoms and the training.
    """
    from medseg.demo import run_demo

    result = run_demo(output, seed=seed, watch=screen)
    screen.close()
    out.print(plain(result.summary()))
    return DONE
