"""Errors that are the user's to mend, and the one that says a backend cannot run."""


def printable(text: object) -> str:
    r"""The text on one line: line ends, control characters and undecodable bytes become \\n, \\x1b, \\xff."""
    shown = (c if c.isprintable() else c.encode("utf-8", "surrogateescape") for c in str(text))
    return "".join(c if isinstance(c, str) else repr(c.decode("latin-1"))[1:-1] for c in shown)


class DataError(ValueError):
    """A file or an option is not as it must be. The text is one line that names it.

    The command line prints the text and exits with status 2.
    """

    def __init__(self, text: object) -> None:
        super().__init__(printable(text))


class BackendUnavailableError(RuntimeError):
    """A backend was asked for by name and cannot run; the text says why, and which others can."""
