"""`medseg train` and `medseg demo`."""

from __future__ import annotations

from pathlib import Path

from medseg.cli.terminal import DONE, SOME_REJECTED, Output, Seed, out, plain, screen


def train(config: Path, /, *overrides: str, output: Output = Path("run"), resume: bool = False) -> int:
    """Train a network on the scans and reference masks that a configuration names.

    Args:
        config: configuration file.
        overrides: settings as key=value, such as train.epochs=20.
        output: the run folder.
        resume: go on with a run that was stopped.
    """
    from medseg.config import load
    from medseg.training import train as run

    result = run(load(config, overrides), output, resume=resume, watch=screen)
    screen.close()
    out.print(plain(result.summary()))
    return SOME_REJECTED if result.left_out else DONE


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
