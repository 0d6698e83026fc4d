"""Errors that a command reports in one line: a user's mistake (exit code 2), diverged training, a lost process."""


class UserError(ValueError):
    """A user's mistake. The message is one line: what was given, what was expected and what to do."""


class TrainingDivergedError(RuntimeError):
    """Training produced numbers that are not finite. The message names the step and what to try."""


class LostProcessError(RuntimeError):
    """Another process of the run has ended, so this one cannot continue."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its class where it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
