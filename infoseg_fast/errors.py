"""Errors that are the user's to mend, and the one that says a backend cannot run."""


class DataError(ValueError):
    """Something on disk or on the command line is not as it must be. Its text is one line that names it.

    The command line prints the text and exits with status 2.
    """


class BackendUnavailableError(RuntimeError):
    """A backend was asked for by name and cannot run; the text says why, and which others can."""
