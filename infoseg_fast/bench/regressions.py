"""`infoseg bench --compare FILE`: comparison of the rows of a run with the rows of an earlier run.

An op is slower if two ratios exceed `LIMIT`: the ratio of its times, and the ratio of its times
relative to plain PyTorch in the same run. The second ratio hardly changes on a busy machine. Rows
of another machine have only the second ratio.
"""

from pathlib import Path

from ..errors import DataError
from .tables import aligned, read_csv

LIMIT = 1.15
OWN, PLAIN = "infoseg_fast", "eager"
KEY = ("op", "case", "mode", "shape", "dtype", "threads")
NEEDED = (*KEY, "provider", "median_ms", "machine")
SHOWN = ("op", "case", "mode", "before_ms", "now_ms", "ratio", "ratio_to_eager", "verdict")


def read(file: Path) -> list[dict]:
    """The rows of an earlier `--csv`.

    Raises:
        DataError: the file cannot be read, or `infoseg bench --csv` did not write it.
    """
    rows = read_csv(file, NEEDED, "--compare", "infoseg bench --csv")
    for number, row in enumerate(rows, 2):
        try:
            positive = float(row["median_ms"]) > 0
        except (TypeError, ValueError):
            positive = False
        if not positive:
            raise DataError(f"--compare {file}, line {number}: median_ms must be above 0, not {row['median_ms']!r}")
    return rows


def compared(now: list[dict], before: list[dict]) -> list[dict]:
    """A row for each case and mode that both runs have, with the columns `SHOWN`."""
    times = [{(one["provider"], *(str(one[name]) for name in KEY)): one for one in rows} for rows in (before, now)]
    found = []
    for key, row in times[1].items():
        if key[0] != OWN or key not in times[0]:
            continue
        old = times[0][key]
        ratio = float(row["median_ms"]) / float(old["median_ms"])
        plain = [side.get((PLAIN, *key[1:])) for side in times]
        relative = None if None in plain else ratio * float(plain[0]["median_ms"]) / float(plain[1]["median_ms"])
        same = old["machine"] == row["machine"]
        ratios = [x for x in (ratio if same else None, relative) if x is not None]
        found.append({
            "op": row["op"], "case": row["case"], "mode": row["mode"],
            "before_ms": old["median_ms"], "now_ms": row["median_ms"],
            "ratio": f"{ratio:.2f}" if same else "other machine",
            "ratio_to_eager": "" if relative is None else f"{relative:.2f}",
            "verdict": "slower" if ratios and min(ratios) > LIMIT else "",
        })  # fmt: skip
    return found


def report(now: list[dict], before: list[dict], file: Path) -> int:
    """Print the comparison. Returns the number of cases that became slower.

    Raises:
        DataError: the two runs have no case in common.
    """
    rows = compared(now, before)
    if not rows:
        raise DataError(f"--compare {file} has none of the cases, shapes and threads of this run")
    print(aligned(rows, SHOWN))
    slower = sum(row["verdict"] == "slower" for row in rows)
    print(f"{slower} of {len(rows)} slower than in {file} by more than {100 * LIMIT - 100:.0f} %")
    return slower
