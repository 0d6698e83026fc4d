"""The one kind of error that is the user's to mend: a command turns it into one line on stderr and exit code 2."""


class UserError(ValueError):
    """What was given, what was expected and what to do, in one line."""


class TrainingDivergedError(RuntimeError):
    """Training produced numbers that are not finite; the message says at which step and what to try."""


class LostProcessError(RuntimeError):
    """Another process of the run has ended, so that this one cannot go on."""


def first_line(error: Exception) -> str:
    """What a library's error says, as a part of a line of ours."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
