"""Errors a user can act on, each with the exit code of its kind (numbers of ``sysexits.h``)."""

from collections.abc import Iterable


class ShdError(Exception):
    """Base of every error whose message is meant for the user."""

    exit_code = 1


class InputError(ShdError):
    """Input data cannot be used; all problems are reported together.

    Parameters
    ----------
    problems : str or iterable of str
        What was found, what was expected and what to do, one sentence per problem.

    Attributes
    ----------
    problems : tuple of str
        The same, one entry per problem; ``str()`` joins them, one per line.
    """

    exit_code = 65

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__(self.problems)  # one argument, so that the error survives pickling between processes

    def __str__(self) -> str:
        return "\n".join(self.problems)


class GradientError(InputError):
    """The gradient table is missing, wrong in size, or does not fit the image."""


class NoInputError(ShdError):
    """Nothing in the data set matched what was asked for."""

    exit_code = 66


class DeviceError(ShdError):
    """The compute device asked for, or a compiled part of the package, is not there."""

    exit_code = 69


class OutputError(ShdError):
    """An output cannot be written."""

    exit_code = 73


class WeightsError(ShdError):
    """Network weights are damaged, of another architecture, or missing."""

    exit_code = 78


class TrainingError(ShdError):
    """The fit did not give usable numbers."""
