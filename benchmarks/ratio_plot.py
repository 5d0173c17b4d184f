"""A picture of the rows of `infoseg bench --csv FILE`: how many times longer the providers take.

    python benchmarks/ratio_plot.py benchmarks/timings/ops.csv ratios.png

One line for each case, of its longest mode (forward + backward, where there is a gradient). A
marker is the median of a provider over that of the op, a bar from its 20 % to its 80 % quantile.
"""

import argparse
from pathlib import Path

from infoseg_fast.bench.tables import read_csv
from infoseg_fast.errors import DataError

OURS = "infoseg_fast"
COLUMNS = ("case", "mode", "provider", "median_ms", "p20_ms", "p80_ms", "machine", "threads", "torch", "commit")


def ratios(rows: list[dict]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """20 % quantile, median and 80 % quantile over the median of the op, by case and provider."""
    modes = {row["case"]: row["mode"] for row in rows}  # the last mode of a case is the longest
    rows = [row for row in rows if row["mode"] == modes[row["case"]]]
    ours = {row["case"]: float(row["median_ms"]) for row in rows if row["provider"] == OURS}
    found: dict[str, dict] = {case: {} for case in ours}
    for row in rows:
        if row["case"] in ours:
            times = (float(row[key]) / ours[row["case"]] for key in ("p20_ms", "median_ms", "p80_ms"))
            found[row["case"]][row["provider"]] = tuple(times)
    return found


def draw(rows: list[dict], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cases = ratios(rows)
    heights = {case: len(cases) - i for i, case in enumerate(cases)}
    providers = list(dict.fromkeys(row["provider"] for row in rows))
    figure, field = plt.subplots(figsize=(8, 0.28 * len(cases) + 1.4))
    for provider in providers:
        points = [(heights[case], *of_case[provider]) for case, of_case in cases.items() if provider in of_case]
        y, low, middle, high = zip(*points, strict=True)
        spread = [[m - a for m, a in zip(middle, low, strict=True)], [b - m for m, b in zip(middle, high, strict=True)]]
        field.errorbar(middle, y, xerr=spread, fmt="o", markersize=4, linewidth=1, label=provider)
    field.set_xscale("log")
    field.set_yticks(list(heights.values()), list(heights), fontsize=8)
    field.set_xlabel(f"time / time of {OURS} (to the right: slower)")
    field.grid(axis="x", which="both", alpha=0.3)
    field.legend(fontsize=7, loc="lower right")
    first = rows[0]
    field.set_title(
        f"{first['machine']}, {first['threads']} thread(s), torch {first['torch']}, commit {first['commit'][:7]}",
        fontsize=8,
    )
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path, help="written by infoseg bench --csv")
    parser.add_argument("picture", type=Path, help="file to write")
    args = parser.parse_args(argv)
    try:
        draw(read_csv(args.csv, COLUMNS, "csv", "infoseg bench --csv"), args.picture)
    except DataError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
