"""Tables as text, as CSV files and in documentation files."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError


def aligned(rows: list[dict], columns: Sequence[str]) -> str:
    """The columns of the rows as aligned text, with a header."""
    lines = [list(columns), *([str(row[c]) for c in columns] for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def write_csv(file: Path, columns: Sequence[str], rows: list[dict]) -> None:
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, columns)
        writer.writeheader()
        writer.writerows(rows)


def read_csv(file: Path, columns: Sequence[str], name: str, writer: str) -> list[dict[str, str]]:
    """The rows of a CSV file, at least one.

    Args:
        columns: the columns that are needed.
        name: the argument that names the file, for errors.
        writer: the command that writes such files, for errors.

    Raises:
        DataError: the file cannot be read, is empty, or lacks a column.
    """
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{name} {file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    missing = [column for column in columns if not rows or any(row.get(column) is None for row in rows)]
    if missing:
        raise DataError(f"{name} {file} is not a file of {writer}: it has no {missing[0]!r}")
    return rows


def write(file: Path, name: str, table: str) -> None:
    """Replace the text of `file` between `<!-- name -->` and `<!-- /name -->` by `table`."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", flags=re.DOTALL)
    text, number = pattern.subn(lambda found: f"{found[1]}{table}\n{found[2]}", file.read_text())
    if number != 1:
        raise SystemExit(f"{file} must hold one place for the table {name!r}, and holds {number}")
    file.write_text(text)
