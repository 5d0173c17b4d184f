"""What the appearance term costs in a training step of the default recipe.

    python benchmarks/recipe_step.py [--images 32] [--side 64] [--classes 6] [--rounds 150]

Steps with and without it in turns, processor time of one thread, medians. The images are random: the cost does not
depend on them.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from image_folder import write_folder

from infoseg_fast.allocator import keep_freed_memory
from infoseg_fast.config import TrainConfig
from infoseg_fast.data import open_set
from infoseg_fast.data.crops import Batch
from infoseg_fast.train import Run


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
        print("| smooth | without, ms | with, ms | share of the step |\n|---|---|---|---|")
        for smooth in (0, 1):
            runs = {}
            for weight in (0.0, 10.0):
                config = TrainConfig(data=str(data), classes=args.classes, crop=args.side, smooth=smooth)
                config.appearance = weight
                config.complete()
                runs[weight] = Run(config, images, torch.device("cpu"), None)
                runs[weight].model.train()
            batch = Batch(torch.from_numpy(pixels).movedim(3, 1).contiguous(), None)
            times = {weight: [] for weight in runs}
            for turn in range(args.rounds + 10):
                for weight in sorted(runs, reverse=turn % 2 == 0):
                    start = time.process_time()
                    runs[weight].train_step(batch)
                    runs[weight].step += 1
                    times[weight].append(1e3 * (time.process_time() - start))
            without, with_it = (statistics.median(taken[10:]) for taken in times.values())
            print(f"| {smooth} | {without:.2f} | {with_it:.2f} | {(with_it - without) / with_it:.3f} |", flush=True)


if __name__ == "__main__":
    main()
