"""What a recipe reaches: trains on several sets with several seeds and prints the scores of the last step.

    python benchmarks/recipe.py landcover landcover-4 DIR --seeds 0 1 2 --csv trials.csv
    python benchmarks/recipe.py texture-mosaics landcover --set appearance=0 --set balance=0.5

A set is what `infoseg train --data` takes, or the name of a drawn set of benchmarks/sets.
The landcover sets are scored on all tiles, since their eval split is small, others on the eval split.
`--set NAME=VALUE` changes a setting of `infoseg train` (0 or 1 for a switch); what is not set is the default recipe.
`--baselines` scores what needs no network first.
"""

import argparse
import csv
import dataclasses
import tempfile
import time
from pathlib import Path
from statistics import mean, pstdev

import numpy as np
import torch
from sets import SETS

from infoseg_fast import load
from infoseg_fast.config import TrainConfig
from infoseg_fast.data import NAMES, open_set
from infoseg_fast.data.base import to_float
from infoseg_fast.ops.linear_sum_assignment import linear_sum_assignment
from infoseg_fast.recipe.smoothing import grain
from infoseg_fast.scores import baselines
from infoseg_fast.scores.evaluate import evaluate
from infoseg_fast.train import train

COLUMNS = (
    "set", "settings", "seed", "pixel_accuracy", "mean_iou", "nmi", "many_to_one", "constant", "per_image",
    "cluster_shares", "seconds",
)  # fmt: skip


def opened(data: str, folder: str) -> tuple[str, str]:
    """A set as `--data` takes it, made in the folder if need be, and the split that it is scored on."""
    source = str(SETS[data].write(Path(folder) / "data")) if data in SETS else data
    return source, "all" if data in NAMES else "eval"


def description(data: str, with_baselines: bool) -> dict[str, float]:
    """The grain of the images, and the pixel accuracy of each method of `infoseg baseline`."""
    with tempfile.TemporaryDirectory() as folder:
        source, split = opened(data, folder)
        methods = baselines.METHODS if with_baselines else ()
        scores = {name: baselines.baseline(name, source, split)[0]["pixel_accuracy"] for name in methods}
        return {"grain": grain(open_set(source, "train"))} | scores


def trial(data: str, seed: int, settings: dict) -> dict:
    """Train once and score the last step; no label is used before that."""
    with tempfile.TemporaryDirectory() as folder:
        source, split = opened(data, folder)
        began = time.perf_counter()
        train({"data": source, "seed": seed, "eval_every": 0} | settings, Path(folder) / "run")
        seconds = time.perf_counter() - began
        segmenter = load(Path(folder) / "run")
        images = open_set(source, split)
        scores = evaluate(segmenter, images, torch.device("cpu"))
        counts = np.array(scores["confusion"])
        return {
            "set": Path(data).name,
            "settings": " ".join(f"{k}={v}" for k, v in settings.items()) or "default",
            "seed": seed,
            "pixel_accuracy": scores["pixel_accuracy"],
            "mean_iou": scores["mean_iou"],
            "nmi": scores["nmi"],
            "many_to_one": counts.max(axis=1).sum() / counts.sum(),
            "constant": scores["majority_accuracy"],
            "per_image": matched_by_image(segmenter, images),
            "cluster_shares": " ".join(f"{x:.3f}" for x in counts.sum(axis=1) / counts.sum()),
            "seconds": seconds,
        }


def matched_by_image(segmenter, images) -> float:
    """Accuracy when every image has a matching of its own: what is lost against it is lost by classes that change."""
    counts = np.stack(
        [
            segmenter.count(
                to_float(images.native_image(i))[None],
                torch.from_numpy(images.target(i))[None],
                images.num_targets,
            ).numpy()
            for i in range(len(images))
        ]
    )
    rows, columns = linear_sum_assignment(counts, maximize=True)
    matched = sum(int(one[r, c].sum()) for one, r, c in zip(counts, rows, columns, strict=True))
    return matched / counts.sum()


def switch(text: str) -> bool:
    return bool(int(text))


def parsed(pairs: list[str]) -> dict:
    types = {
        f.name: switch if f.metadata.get("switch") else f.metadata.get("type", str)
        for f in dataclasses.fields(TrainConfig)
    }
    return {name: types[name](value) for name, value in (pair.split("=", 1) for pair in pairs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", metavar="SET")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--baselines", action="store_true", help="score the baselines too")
    parser.add_argument("--csv", type=Path, help="rows are added to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = parsed(args.settings)
    for data in args.data:
        told = description(data, args.baselines)
        print(f"{Path(data).name}: " + ", ".join(f"{name} {x:.3f}" for name, x in told.items()), flush=True)
        rows = []
        for seed in args.seeds:
            rows.append(trial(data, seed, settings))
            if args.csv:
                new = not args.csv.exists()
                with open(args.csv, "a", newline="") as file:
                    writer = csv.DictWriter(file, COLUMNS)
                    if new:
                        writer.writeheader()
                    writer.writerow({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in rows[-1].items()})
        accuracy, nmi = [row["pixel_accuracy"] for row in rows], [row["nmi"] for row in rows]
        print(
            f"{rows[0]['set']}: pixel accuracy {mean(accuracy):.3f} +- {pstdev(accuracy):.3f} "
            f"({' '.join(f'{x:.3f}' for x in accuracy)}), constant {rows[0]['constant']:.3f}, NMI {mean(nmi):.3f}, "
            f"{mean(row['seconds'] for row in rows):.0f} s a run",
            flush=True,
        )


if __name__ == "__main__":
    main()
