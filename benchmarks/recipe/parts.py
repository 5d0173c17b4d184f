"""The gain of the parts of the default recipe that act when labels are made, each from one
training.

    python benchmarks/recipe/parts.py --csv parts.csv landcover=RUN0 landcover=RUN1 DIR=RUN2 ...

For each finished RUN of the default recipe on a SET, labels are made from its last checkpoint, with
all parts and with one part left out: the refinement, or the averaged weights. The weights are the
same, so the difference of a pair is the gain of the part. The last lines give the mean gain over
the sets (mean over the seeds of a set first), its standard error, and the mean deviation over
seeds. A part stays in the recipe if one of its two gains is at least .01 and more than twice its
standard error, or if it halves a deviation.
"""

import argparse
import csv
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, pstdev, stdev

import torch

from infoseg_fast.batches import sample_of
from infoseg_fast.config import Settings
from infoseg_fast.data import NAMES, for_training, open_set
from infoseg_fast.recipe import DataInfo
from infoseg_fast.recipe.default import DefaultRecipe
from infoseg_fast.recipe.labelling import Labelling
from infoseg_fast.run_folder import RunFolder
from infoseg_fast.scores.evaluate import evaluate
from infoseg_fast.segmenter import Segmenter

COLUMNS = ("set", "seed", "variant", "pixel_accuracy", "mean_iou", "nmi")
PARTS = ("refinement", "averaging")
SCORES = ("pixel_accuracy", "mean_iou")
LEAST_GAIN = 0.01


def labellings(source: str, folder: Path) -> Iterator[tuple[str, Labelling]]:
    """Name and labelling of each variant of a RUN."""
    run = RunFolder(folder)
    settings, content = Settings(**run.read_config()["config"]), run.load()
    data = DataInfo.from_state(content["labelling"]["data"])
    train_set = for_training(open_set(source, "train"))
    train_set.scaling, train_set.position = data.scaling, data.position
    sample = sample_of(train_set, settings, torch.device("cpu"))
    recipe = DefaultRecipe(settings, data)
    recipe.load_state_dict(content["recipe"])
    whole = recipe.labelling(sample)
    yield "all parts", whole
    if settings.refine:
        recipe.settings = dataclasses.replace(settings, refine=False)
        yield "without refinement", recipe.labelling(sample)
        recipe.settings = settings
    if settings.average:
        recipe.network.average = None
        yield "without averaging", recipe.labelling(sample)


def rows_of(source: str, folder: Path) -> Iterator[dict]:
    """A row for each variant of a RUN."""
    split = "all" if source in NAMES else "eval"
    seed = RunFolder(folder).read_config()["config"]["seed"]
    for variant, labelling in labellings(source, folder):
        scores = evaluate(Segmenter(labelling), open_set(source, split), torch.device("cpu"))
        yield {
            "set": Path(source).name,
            "seed": seed,
            "variant": variant,
            **{name: f"{scores[name]:.4f}" for name in COLUMNS[3:]},
        }


def rule(rows: list[dict], part: str) -> str:
    """A line that says what a part gains, and whether that is enough."""
    found = {(row["set"], str(row["seed"]), row["variant"]): row for row in rows}
    runs = [key[:2] for key in found if key[2] == f"without {part}"]
    said, stays = [], False
    for score in SCORES:
        values: dict[str, list[tuple[float, float]]] = {}  # of each set: with and without the part
        for name, seed in runs:
            both = (found[name, seed, v] for v in ("all parts", f"without {part}"))
            values.setdefault(name, []).append(tuple(float(row[score]) for row in both))
        gains = [mean(a - b for a, b in x) for x in values.values()]
        error = stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
        deviations = [
            mean(pstdev(y) for y in ys)
            for ys in zip(*(list(zip(*x, strict=True)) for x in values.values()), strict=True)
        ]
        said.append(
            f"{score} {mean(gains):+.4f} (standard error {error:.4f}, deviation {deviations[0]:.4f} with and "
            f"{deviations[1]:.4f} without it)"
        )
        stays |= mean(gains) >= LEAST_GAIN and mean(gains) > 2 * error
        stays |= deviations[0] < deviations[1] / 2
    if len(set(name for name, _ in runs)) == 1:
        return f"{part}: {'; '.join(said)}: one set has no standard error"
    return f"{part}: {'; '.join(said)}: it {'stays' if stays else 'does not stay'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="SET=RUN")
    parser.add_argument("--csv", type=Path, required=True, help="write the rows to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with open(args.csv, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for pair in args.runs:
            source, _, folder = pair.rpartition("=")
            for row in rows_of(source, Path(folder)):
                rows.append(row)
                writer.writerow(row)
                file.flush()
                print(*row.values(), flush=True)
    for part in PARTS:
        if any(row["variant"] == f"without {part}" for row in rows):
            print(rule(rows, part))


if __name__ == "__main__":
    main()
