"""The package's exceptions."""


class DataError(ValueError):
    """A file or an option is invalid. The text is one line that names it.

    The command line prints the text and exits with status 2.
    """


class BackendUnavailableError(RuntimeError):
    """A backend requested by name cannot run. The text says why, and which backends can."""
