"""What parts of the default recipe cost: the appearance term and the finer network in a training step, the refinement
in labels and its passes, and what a checkpoint needs besides.

    python benchmarks/recipe_step.py [--images 32] [--side 64] [--classes 6] [--rounds 150]

With and without each in turns, processor time of one thread, medians. The images are random: the cost does not
depend on them.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sets.image_folder import write_folder

from infoseg_fast.allocator import keep_freed_memory
from infoseg_fast.config import TrainConfig
from infoseg_fast.data import open_set
from infoseg_fast.data.crops import Batch
from infoseg_fast.train import FIRST, Run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--classes", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=150)
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (args.images, args.side, args.side, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        labels = np.zeros((args.side, args.side), np.uint8)
        data = write_folder(Path(folder) / "data", [(image, labels) for image in pixels], args.images, ["any"])
        images = open_set(str(data), "train", num_classes=args.classes)

        def run(**settings) -> Run:
            config = TrainConfig(data=str(data), classes=args.classes, crop=args.side, **settings)
            config.complete()
            made = Run(config, images, torch.device("cpu"), None)
            for learner in made.learners():
                learner.model.train()
            return made

        batch = Batch(torch.from_numpy(pixels).movedim(3, 1).contiguous(), None)

        def step(run: Run) -> None:
            run.train_step(batch)
            run.step += 1

        print("| a step, smooth | without the term, ms | with, ms | its share |\n|---|---|---|---|")
        for smooth in (0, 1):
            runs = [run(smooth=smooth, appearance=weight, overcluster=1.0) for weight in (0.0, 10.0)]
            show(smooth, *in_turns([partial(step, made) for made in runs], args.rounds))
        print("| a step, smooth | one network, ms | with the finer one, ms | its share |\n|---|---|---|---|")
        for smooth in (0, 1):
            runs = [run(smooth=smooth, overcluster=times) for times in (1.0, 3.0)]
            show(smooth, *in_turns([partial(step, made) for made in runs], args.rounds))
        # Of random images --passes auto makes none.
        print("| labels, smooth | without refinement, ms | with, ms | its share |\n|---|---|---|---|")
        for smooth in (0, 1):
            segmenters = [run(smooth=smooth, refine=refine).segmenter() for refine in (False, True)]
            x = batch.images.float() / 255
            show(smooth, *in_turns([partial(segmenter.segment, x) for segmenter in segmenters], args.rounds))
        print("| labels, smooth | without passes, ms | with 2, ms | their share |\n|---|---|---|---|")
        for smooth in (0, 1):
            segmenters = [run(smooth=smooth, passes=passes).segmenter() for passes in (0, 2)]
            show(smooth, *in_turns([partial(segmenter.segment, x) for segmenter in segmenters], args.rounds))
        made, alone = run(smooth=0), run(smooth=0, overcluster=1.0)
        batches = -(-FIRST // args.images)
        for one in (made, alone):
            one.first_crops = [batch] * batches
            one.seen = one.statistics_of(one.first_crops)

        def choice() -> None:
            made.chosen = None
            made.choice()

        times = in_turns([choice, alone.refinement], 20)
        print(f"of {args.images * batches} crops: choice {times[0]:.0f} ms, refinement {times[1]:.0f} ms")


def in_turns(calls: list[Callable], rounds: int) -> list[float]:
    """Milliseconds of each, medians."""
    times = [[] for _ in calls]
    for turn in range(rounds + 10):
        for i in sorted(range(len(calls)), reverse=turn % 2 == 0):
            start = time.process_time()
            calls[i]()
            times[i].append(1e3 * (time.process_time() - start))
    return [statistics.median(taken[10:]) for taken in times]


def show(smooth: int, without: float, with_it: float) -> None:
    print(f"| {smooth} | {without:.2f} | {with_it:.2f} | {(with_it - without) / with_it:.3f} |", flush=True)


if __name__ == "__main__":
    main()
