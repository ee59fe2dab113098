"""The errors a user can act on, each with the exit code that design.md gives it.

Everything a user does wrong raises a :class:`KatError`; the command line prints its one line and exits with
``exit_code``. Any other exception is a bug of ours and keeps its traceback (exit 5).
"""


class KatError(Exception):
    """One line that says what is wrong, where, and what to do about it."""

    exit_code = 5


class UsageError(KatError):
    """A wrong argument, setting or input file (exit 2)."""

    exit_code = 2


class InconclusiveError(KatError):
    """The evidence does not decide the question (exit 3)."""

    exit_code = 3


class EvidenceError(KatError):
    """Evidence that must not be trusted: a flipped byte, a wrong hash, a pair that is no pair (exit 4)."""

    exit_code = 4
