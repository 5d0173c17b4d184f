"""The package's exceptions."""


def printable(text: object) -> str:
    r"""The text on one line. Line ends, control characters and undecodable bytes are escaped: \\n,
    \\x1b, \\xff.
    """
    shown = (c if c.isprintable() else c.encode("utf-8", "surrogateescape") for c in str(text))
    return "".join(c if isinstance(c, str) else ascii(c.decode("latin-1"))[1:-1] for c in shown)


def first_line(error: object) -> str:
    """The first line of the text of an error, or the name of its class if it has no text."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class DataError(ValueError):
    """A file or an option is invalid. The text is one line that names it.

    The command line prints the text and exits with status 2.
    """

    def __init__(self, text: object) -> None:
        super().__init__(printable(text))


class BackendUnavailableError(RuntimeError):
    """A backend requested by name cannot run. The text says why, and which backends can."""
