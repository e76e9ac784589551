"""Errors that end in one line for the person at the terminal."""


class UserError(Exception):
    """Bad input: a wrong key, value or file.

    The message is one line that names the file, line or config key, says what was found and what is allowed.
    Commands print it to stderr and exit with `status`.
    """

    status = 2


class RunsCrashedError(UserError):
    """Runs of a sweep ended by a bug or a dying process, not by bad input; exit status 1."""

    status = 1
