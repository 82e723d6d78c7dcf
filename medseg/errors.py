"""Every error that medseg raises on purpose, on one screen.

    MedsegError
    |-- UsageError        the command line, a path or a file given to medseg is wrong    (exit code 2)
    |   |-- ConfigError   the configuration is wrong
    |   `-- ModelError    the model folder is wrong, or does not fit the work
    |-- InputError        one input is unfit; its case is `rejected`, the batch goes on
    |   |-- DicomError    a DICOM object or series
    |   |-- NiftiError    a NIfTI file
    |   `-- MaskError     a reference mask, or its place on the scan
    `-- RunError          medseg's or the machine's fault; the case is `failed`, the batch goes on

Each error says where, what was found, what was wanted and what to do, and carries a stable code from
`medseg.codes.CODES`. Scripts test the code; people read the sentence.
"""

from __future__ import annotations

from medseg.codes import CODES


class MedsegError(Exception):
    """Base of the tree.

    Args:
        code: a key of `medseg.codes.CODES`.
        where: case id, file or setting the error is about; never a patient's name.
        problem: what was found and what was wanted, without a final stop.
        advice: what to do, a full sentence.
    """

    def __init__(self, code: str, where: str, problem: str, advice: str = "") -> None:
        if code not in CODES:
            raise KeyError(f"unknown error code {code!r}")
        super().__init__(code, where, problem, advice)  # all four in args: it survives pickling between processes
        self.code = code
        self.where = where
        self.problem = problem
        self.advice = advice

    @property
    def message(self) -> str:
        """The sentence without the place: problem, code and advice."""
        return f"{self.problem} ({self.code}).{' ' + self.advice if self.advice else ''}"

    @property
    def exit_code(self) -> int:
        """What a program that ends with this error returns: 2 for wrong usage, 1 for anything else."""
        return 2 if isinstance(self, UsageError) else 1

    def __str__(self) -> str:
        """Return the whole sentence."""
        return f"{self.where}: {self.message}" if self.where else self.message


class UsageError(MedsegError):
    """The command line, a path or a file given to medseg is wrong."""


class ConfigError(UsageError):
    """The configuration is wrong."""


class ModelError(UsageError):
    """The model folder is wrong, or does not fit the work."""


class InputError(MedsegError):
    """One input is unfit; its case is rejected."""


class DicomError(InputError):
    """A DICOM object or series is unfit."""


class NiftiError(InputError):
    """A NIfTI file is unfit."""


class MaskError(InputError):
    """A reference mask is unfit, or does not lie on its scan."""


class RunError(MedsegError):
    """medseg's or the machine's fault."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, its type when it has none: what a library says, made short."""
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
