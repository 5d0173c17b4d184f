"""The growth of the time of an op with each of its sizes, and that of the best plain PyTorch.

    python benchmarks/scaling.py [--op NAME] [--csv scaling.csv] [--plot scaling.png]
    python benchmarks/scaling.py --plot scaling.png --from scaling.csv     # draws the CSV again

One size at a time goes through `SIZES`, the others stay at their middle values. Each row has the
median time of forward + backward (forward, where there is no gradient), and the exponent of a fit
time ~ size ** exponent over the larger half of the sizes. One thread is measured in processor time,
more threads by the clock: the machine should be idle.
"""

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from infoseg_fast.allocator import keep_freed_memory
from infoseg_fast.bench import cpu, providers
from infoseg_fast.bench.tables import aligned, read_csv, write_csv
from infoseg_fast.errors import DataError
from infoseg_fast.ops import OPS
from infoseg_fast.ops.record import Case

MIDDLE = {"B": 16, "C": 64, "D": 256, "K": 15, "h": 32, "w": 32}
SIZES = {
    "B": (4, 8, 16, 32, 64),
    "C": (16, 32, 64, 128, 256),
    "D": (64, 128, 256, 512, 1024),
    "K": (3, 6, 15, 27, 60, 120),
    "P": (256, 512, 1024, 2048, 4096),  # positions: h grows, w = 32
    "n": (1, 2, 4, 8, 15),  # partners of an image, of the loss
    "threads": (1, 2, 4, 8),
}
PROVIDERS = ("infoseg_fast", "eager")
FIELDS_IN_A_ROW = 4
COLUMNS = (
    "op", "size", "value", "provider", "mode", "median_ms", "p20_ms", "p80_ms", "exponent", "threads",
    *providers.INSTALLED,
)  # fmt: skip


def case_of(op: str, size: str, value: int) -> Case:
    """The case of a size with the others in the middle."""
    case = replace(OPS[op].cases_for("cpu")[0], **MIDDLE, name=f"{size} = {value}")
    if size == "P":
        return replace(case, h=value // case.w)
    if size == "n":
        return replace(case, settings=case.settings | {"num_negatives": value})
    return case if size == "threads" else replace(case, **{size: value})


def sizes_of(op: str) -> dict[str, tuple[int, ...]]:
    """The sizes that an op has, and the numbers of threads that this machine has cores for."""
    left_out = {"n"} - ({"n"} if op == "mutual_information_loss" else set())
    found = {size: values for size, values in SIZES.items() if size not in left_out}
    return found | {"threads": tuple(n for n in SIZES["threads"] if n <= torch.get_num_threads())}


def exponent(values: list[int], times: list[float]) -> float:
    """The slope of log time over log size at the larger half of the sizes."""
    half = slice(-max(len(values) // 2 + 1, 2), None)
    return float(np.polyfit(np.log(values[half]), np.log(times[half]), 1)[0])


def curve(op: str, size: str, values: tuple[int, ...], repeats: int) -> list[dict]:
    """The rows of one size."""
    rows, common = [], providers.installed()
    before = torch.get_num_threads()
    for value in values:
        torch.set_num_threads(value if size == "threads" else 1)
        case = case_of(op, size, value)
        tensors, keywords = providers.arguments(case, cpu.CPU)
        functions = providers.providers(case, keywords)
        steps = {name: list(providers.steps(case, functions[name], tensors).items())[-1] for name in PROVIDERS}
        times = cpu.timed({name: step for name, (_, step) in steps.items()}, repeats)
        for name, (mode, _) in steps.items():
            tenths = statistics.quantiles(times[name], n=10)
            figures = statistics.median(times[name]), tenths[1], tenths[7]
            figures = dict(zip(("median_ms", "p20_ms", "p80_ms"), (round(x, 4) for x in figures), strict=True))
            given = {"op": op, "size": size, "value": value, "provider": name, "mode": mode}
            rows.append(given | figures | {"threads": torch.get_num_threads()} | common)
    torch.set_num_threads(before)
    for name in PROVIDERS:
        own = [row for row in rows if row["provider"] == name]
        slope = exponent([row["value"] for row in own], [row["median_ms"] for row in own]) if len(own) > 1 else ""
        for row in own:
            row["exponent"] = slope and round(slope, 2)
    return rows


def draw(rows: list[dict], file: Path) -> None:
    """A picture of the rows, which may be those of a CSV: a field for each size, log over log."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sizes = list(dict.fromkeys(row["size"] for row in rows))
    columns = min(len(sizes), FIELDS_IN_A_ROW)
    lines = -(-len(sizes) // columns)
    figure, fields = plt.subplots(lines, columns, figsize=(2.6 * columns, 2.6 * lines), squeeze=False, sharey=True)
    for field in fields.flat[len(sizes) :]:
        field.set_axis_off()
    for field, size in zip(fields.flat, sizes, strict=False):
        for name in PROVIDERS:
            own = [row for row in rows if row["size"] == size and row["provider"] == name]
            x, y, low, high = ([float(row[key]) for row in own] for key in ("value", "median_ms", "p20_ms", "p80_ms"))
            label = f"{name}: {own[0]['exponent']}" if own else name
            (line,) = field.loglog(x, y, marker="o", markersize=3, label=label)
            field.fill_between(x, low, high, alpha=0.2, color=line.get_color())
        values = sorted({int(row["value"]) for row in rows if row["size"] == size})
        field.set_xticks(values, [str(value) for value in values], fontsize=7)
        field.minorticks_off()
        field.set_xlabel(size)
        field.set_title("time ~ size ** exponent", fontsize=7)
        field.legend(fontsize=7)
    for line in fields:
        line[0].set_ylabel("ms")
    figure.suptitle(f"{rows[0]['op']}, {rows[0]['mode']}, {rows[0]['machine']}", fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [name for name, op in OPS.items() if op.differentiable]
    parser.add_argument("--op", default="mutual_information_loss", choices=names)
    parser.add_argument("--size", nargs="+", choices=list(SIZES), help="only these sizes")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--from", dest="source", type=Path, metavar="CSV", help="draw these rows and measure nothing")
    args = parser.parse_args(argv)
    if args.source is not None:
        try:
            rows = read_csv(args.source, COLUMNS[:9], "--from", "benchmarks/scaling.py --csv")
        except DataError as error:
            parser.error(str(error))
    else:
        rows = []
        for size, values in sizes_of(args.op).items():
            if args.size is None or size in args.size:
                rows += curve(args.op, size, values, args.repeats)
                print(aligned([row for row in rows if row["size"] == size], COLUMNS[:9]), flush=True)
        if args.csv is not None:
            write_csv(args.csv, COLUMNS, rows)
    if args.plot is not None:
        draw(rows, args.plot)


if __name__ == "__main__":
    main()
