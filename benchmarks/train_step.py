"""Time a whole training step with the loss on PyTorch's thread pool, on its own pool, and in plain
PyTorch.

    python benchmarks/train_step.py [--width 16] [--images 16] [--side 128] [--threads 1 2] [--rounds 15]

A second pool shares the cores with PyTorch's threads, which spin for a while after each of their
own regions; the op alone does not show this. Medians of wall-clock times, measured in turns.
"""

import argparse
import random
import statistics
import time

import torch

import infoseg_fast as isf
from infoseg_fast import extension
from infoseg_fast.allocator import keep_freed_memory

# name: backend of the loss, thread pool of the extension
WAYS = {"PyTorch's pool": ("cpp", "automatic"), "own pool": ("cpp", "own"), "plain PyTorch": ("reference", "automatic")}


def step_of(backend: str, pool: str, args: argparse.Namespace):
    """A function that runs one training step and returns the seconds of the loss and of the whole
    step.
    """
    torch.manual_seed(0)
    model = isf.InfoSegNet(num_classes=15, width=args.width)
    criterion = isf.InfoSegLoss(num_negatives=1, backend=backend)
    optimizer = torch.optim.Adam(model.parameters())
    images = torch.rand(args.images, 3, args.side, args.side)

    def step() -> tuple[float, float]:
        extension.compiled().set_thread_pool(pool)
        start = time.perf_counter()
        features, global_features = model(images)
        projection = model.local_projection
        leaves = [x.detach().requires_grad_() for x in (features, global_features)]
        before = time.perf_counter()
        criterion(*leaves, projection.weight, projection.bias).backward()
        loss = time.perf_counter() - before
        torch.autograd.backward([features, global_features], [x.grad for x in leaves])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss, time.perf_counter() - start

    return step


def main() -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    print("| threads | loss on | loss forward + backward, ms | training step, ms |\n|---|---|---|---|")
    for threads in args.threads:
        torch.set_num_threads(threads)
        steps = {name: step_of(*way, args) for name, way in WAYS.items()}
        times = {name: [] for name in steps}
        order = list(steps)
        for turn in range(args.rounds + 2):
            random.Random(turn).shuffle(order)
            for name in order:
                taken = steps[name]()
                if turn >= 2:
                    times[name].append(taken)
        for name, taken in times.items():
            loss, step = (1e3 * statistics.median(t) for t in zip(*taken, strict=True))
            print(f"| {threads} | {name} | {loss:.2f} | {step:.1f} |", flush=True)
    extension.compiled().set_thread_pool("automatic")


if __name__ == "__main__":
    main()
