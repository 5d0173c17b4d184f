"""Tables that commands of this folder write into the documentation, between `<!-- name -->` and `<!-- /name -->`."""

import re
from pathlib import Path


def write(file: Path, name: str, table: str) -> None:
    """Put `table` in the place of what the file has between the marks of `name`."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", flags=re.DOTALL)
    text, number = pattern.subn(lambda found: f"{found[1]}{table}\n{found[2]}", file.read_text())
    if number != 1:
        raise SystemExit(f"{file} must hold one place for the table {name!r}, and holds {number}")
    file.write_text(text)
