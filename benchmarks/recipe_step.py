"""The cost of the parts of the default recipe: in a training step, in labels, and in a checkpoint.

    python benchmarks/recipe_step.py [--images 32] [--side 64] [--classes 6] [--rounds 150]

Variants with and without a part run in turns. Printed: medians of processor time of one thread. The
images are random, since the cost does not depend on them.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from infoseg_fast.allocator import keep_freed_memory
from infoseg_fast.config import Settings
from infoseg_fast.recipe import DataInfo, Recipe, recipe_class
from infoseg_fast.recipe.sample import SAMPLE_CROPS, Sample
from infoseg_fast.segmenter import Segmenter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--classes", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=150)
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    x = torch.rand(args.images, 3, args.side, args.side)
    data = DataInfo(3, args.classes, None, [0.5] * 3, [0.3] * 3)
    sample = Sample(lambda: [(x, None)] * -(-SAMPLE_CROPS // args.images))

    def recipe(**given: object) -> Recipe:
        settings = Settings.create({"data": "random", "classes": args.classes, **given})
        return recipe_class(settings.recipe)(settings, data)

    print("| a training step | smooth | without, ms | with, ms | share of the part |\n|---|---|---|---|---|")
    for part, without, everywhere in (
        ("appearance term", {"appearance": 0.0}, {"overcluster": 1.0}),
        ("over-clustering", {"overcluster": 1.0}, {}),
    ):
        for smooth in (0, 1):
            steps = [Step(recipe(smooth=smooth, **everywhere | how), x) for how in (without, {})]
            show(part, smooth, *in_turns(steps, args.rounds))
    print("| labels | smooth | without, ms | with, ms | share of the part |\n|---|---|---|---|---|")
    for smooth in (0, 1):
        labelling = recipe(smooth=smooth).labelling(sample)
        plain = dataclasses.replace(labelling, refinement=None)
        show(
            "refinement",
            smooth,
            *in_turns([partial(Segmenter(one).segment, x) for one in (plain, labelling)], args.rounds),
        )
    made = recipe(smooth=0)
    (milliseconds,) = in_turns([partial(made.labelling, sample)], min(20, args.rounds))
    print(f"a labelling, from {len(sample.batches) * args.images} crops: {milliseconds:.0f} ms")


class Step:
    """A training step on the same images each time."""

    def __init__(self, recipe: Recipe, images: torch.Tensor) -> None:
        self.recipe, self.images, self.number = recipe.train(), images, 0
        self.optimizer = torch.optim.AdamW([p for p in recipe.parameters() if p.requires_grad], lr=3e-3)

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.recipe.loss(self.number, self.images, None).backward()
        self.optimizer.step()
        self.recipe.after_step(self.number)
        self.number += 1


def in_turns(calls: list[Callable], rounds: int) -> list[float]:
    """Milliseconds of each, medians."""
    times = [[] for _ in calls]
    for turn in range(rounds + 10):
        for i in sorted(range(len(calls)), reverse=turn % 2 == 0):
            start = time.process_time()
            calls[i]()
            times[i].append(1e3 * (time.process_time() - start))
    return [statistics.median(taken[10:]) for taken in times]


def show(part: str, smooth: int, without: float, with_it: float) -> None:
    share = (with_it - without) / with_it
    print(f"| {part} | {smooth} | {without:.2f} | {with_it:.2f} | {share:.3f} |", flush=True)


if __name__ == "__main__":
    main()
