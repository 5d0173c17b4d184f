"""Scores of a recipe on sets of images: accuracy, mean IoU and NMI of the last step, over seeds.

    python benchmarks/recipe/real.py landcover DIR ... --csv real.csv --baselines
    python benchmarks/recipe/real.py landcover DIR ... --csv real.csv --recipe paper
    python benchmarks/recipe/real.py landcover DIR ... --csv real.csv --set overcluster=2

Without a SET: landcover and landcover-4. A set is what `infoseg train --data` takes, or a drawn set
of `benchmarks/sets`. The landcover sets are scored on all tiles, since their eval split is small;
others on the eval split. No label is used before the score. The CSV has one row for each run. A run
that is in it is not repeated, so an interrupted table is continued by the same command. `--set
NAME=VALUE` changes a setting of `infoseg train`. `--without PART` leaves out a part of the default
recipe. `--baselines` adds the methods without a network.
"""

import argparse
import csv
import dataclasses
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, pstdev

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sets import DRAWN_SETS

from infoseg_fast import load
from infoseg_fast.config import Settings
from infoseg_fast.data import NAMES, open_set
from infoseg_fast.scores import baselines
from infoseg_fast.scores.evaluate import evaluate
from infoseg_fast.train import train

COLUMNS = ("set", "method", "seed", "pixel_accuracy", "mean_iou", "nmi", "constant", "seconds")
BASELINES = ("kmeans", "kmeans-gabor", "mixture", "mixture-merged")
# The setting that leaves out each part of the default recipe.
PARTS = {
    "over-clustering": "overcluster=1",
    "refinement": "refine=0",
    "smoothing": "smooth=0",
    "averaging": "average=0",
    "appearance": "appearance=0",
}


class Table:
    """The CSV: rows by (set, method, seed)."""

    def __init__(self, file: Path | None) -> None:
        self.file, self.rows = file, {}
        if file is not None and file.exists():
            with open(file, newline="") as lines:
                self.rows = {self.key(row): row for row in csv.DictReader(lines)}

    @staticmethod
    def key(row: dict) -> tuple[str, str, str]:
        return row["set"], row["method"], str(row["seed"])

    def add(self, row: dict) -> None:
        row = {name: f"{x:.4f}" if isinstance(x, float) else x for name, x in row.items()}
        self.rows[self.key(row)] = row
        if self.file is not None:
            new = not self.file.exists()
            with open(self.file, "a", newline="") as lines:
                writer = csv.DictWriter(lines, COLUMNS)
                if new:
                    writer.writeheader()
                writer.writerow(row)


def opened(name: str, folder: Path) -> tuple[str, str]:
    """A set as `--data` takes it, drawn in the folder if need be, and the split that it is scored
    on.
    """
    source = str(DRAWN_SETS[name].write(folder / "data")) if name in DRAWN_SETS else name
    return source, "all" if name in NAMES else "eval"


def score_run(name: str, seed: int, settings: dict) -> dict:
    """Train once and score the last step."""
    with tempfile.TemporaryDirectory() as folder:
        source, split = opened(name, Path(folder))
        started = time.perf_counter()
        train(source, Path(folder) / "run", **{"seed": seed, "eval_every": 0} | settings)
        seconds = time.perf_counter() - started
        return evaluate(load(Path(folder) / "run"), open_set(source, split), torch.device("cpu")) | {"seconds": seconds}


def score_baseline(name: str, seed: int, method: str) -> dict:
    """Fit a baseline and score it."""
    with tempfile.TemporaryDirectory() as folder:
        source, split = opened(name, Path(folder))
        started = time.perf_counter()
        scores, _ = baselines.baseline(method, source, split, seed=seed)
        return scores | {"seconds": time.perf_counter() - started}


def jobs(args: argparse.Namespace, settings: dict) -> Iterator[tuple[str, str, int, dict | str]]:
    """Set, name of the method, seed, and the settings of a run or the name of a baseline."""
    method = " ".join([args.recipe, *args.settings])
    for name in args.sets:
        for baseline in BASELINES if args.baselines else ():
            yield name, baseline, 0, baseline
        for seed in args.seeds:
            yield name, method, seed, settings


def parsed(pairs: list[str]) -> dict:
    """Settings from NAME=VALUE; 0 or 1 for a switch."""
    types = {
        f.name: (lambda text: bool(int(text))) if f.metadata.get("switch") else f.metadata.get("type", str)
        for f in dataclasses.fields(Settings)
    }
    return {name: types[name](value) for name, value in (pair.split("=", 1) for pair in pairs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", default=["landcover", "landcover-4"], metavar="SET")
    parser.add_argument("--recipe", default="default", metavar="NAME", help="as of infoseg train (default: default)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings")
    parser.add_argument("--without", action="append", default=[], choices=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--baselines", action="store_true", help="score the baselines too")
    parser.add_argument("--csv", type=Path, help="read finished runs from this file, and add rows to it")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.settings += [PARTS[part] for part in args.without]
    table, settings = Table(args.csv), {"recipe": args.recipe} | parsed(args.settings)
    shown: dict[tuple[str, str], list[dict]] = {}
    for name, method, seed, how in jobs(args, settings):
        key = Path(name).name, method, str(seed)
        if key not in table.rows:
            scores = score_baseline(name, seed, how) if isinstance(how, str) else score_run(name, seed, how)
            table.add(
                {
                    **dict(zip(COLUMNS, key, strict=False)),
                    "constant": scores["majority_accuracy"],
                    **{column: scores[column] for column in ("pixel_accuracy", "mean_iou", "nmi", "seconds")},
                }
            )
        shown.setdefault(key[:2], []).append(table.rows[key])
        if isinstance(how, str) or seed == args.seeds[-1]:
            print(line(*key[:2], shown[key[:2]]), flush=True)


def line(name: str, method: str, rows: list[dict]) -> str:
    """A row of the table: means over seeds, and the deviation of the accuracy."""
    accuracy, iou, nmi, seconds = (
        [float(row[column]) for row in rows] for column in ("pixel_accuracy", "mean_iou", "nmi", "seconds")
    )
    return (
        f"{name:<16} {method:<24} accuracy {mean(accuracy):.3f} +- {pstdev(accuracy):.3f}   mean IoU {mean(iou):.3f}   "
        f"NMI {mean(nmi):.3f}   constant {float(rows[0]['constant']):.3f}   {mean(seconds):.0f} s"
    )


if __name__ == "__main__":
    main()
