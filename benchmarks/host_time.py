"""Host time of the Triton ops: what Python and PyTorch take for a call, without the GPU's work.

    python benchmarks/host_time.py [--rounds 300] [--json]

Triton's driver is replaced by one that launches nothing (`infoseg_fast.bench.mock_driver`), and the
tensors are small and lie on the CPU, so the time includes the arithmetic of the folded projection on
few numbers. Processor time of one thread, since other processes may run; the variants run in turns.
Printed: median and fifth percentile of forward and backward together, launches of Triton, and
allocations by `torch.empty` and `torch.empty_strided`.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from unittest.mock import patch

import torch

from infoseg_fast.bench.mock_driver import mocked
from infoseg_fast.ops import mutual_information_loss
from infoseg_fast.recipe.appearance import appearance_term

B, C, D, K, SIDE = 8, 64, 32, 15, 4


class Nothing(torch.autograd.Function):
    """What PyTorch itself takes for a function with a gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.new_empty(())

    @staticmethod
    def backward(ctx, grad):
        return None


def calls() -> dict[str, Callable[[], torch.Tensor]]:
    """Forward and backward pass of the losses of the recipes, by name."""
    torch.manual_seed(0)
    shapes = (B, C, SIDE, SIDE), (B, K, D), (D, C), (D,)
    tensors = [torch.randn(shape).requires_grad_() for shape in shapes]
    images, upstream = torch.rand(B, 3, 4 * SIDE, 4 * SIDE), torch.ones(())

    def both(function, **settings):
        def call():
            for x in tensors:
                x.grad = None
            value = function(*tensors, backend="triton", **settings)
            value.backward(upstream)
            return value

        return call

    return {
        "an autograd.Function that does nothing": both(lambda f, *_, backend: Nothing.apply(f)),
        "loss, 1 negative": both(mutual_information_loss),
        "loss, infonce, all negatives": both(mutual_information_loss, estimator="infonce", num_negatives="all"),
        "appearance term": both(appearance_term, images=images, smooth=1),
    }


def allocations(call: Callable[[], object]) -> int:
    """How often `call` allocates by torch.empty or torch.empty_strided."""
    number = 0

    def counted(function):
        def count(*arguments, **keywords):
            nonlocal number
            number += 1
            return function(*arguments, **keywords)

        return count

    with (
        patch.object(torch, "empty", counted(torch.empty)),
        patch.object(torch, "empty_strided", counted(torch.empty_strided)),
    ):
        call()
    return number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output and nothing else")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with mocked() as started:
        found, times = {}, {name: [] for name in calls()}
        cases = calls()
        for name, call in cases.items():
            call()  # compiles
            started.clear()
            found[name] = {"launches": 0, "allocations": allocations(call)}
            found[name]["launches"] = len(started)
        for _ in range(arguments.rounds):
            for name, call in cases.items():
                call()  # brings the call's code and data into the caches
                before = time.process_time()
                call()
                times[name].append(time.process_time() - before)
                started.clear()
    for name, seconds in times.items():
        found[name]["median_us"] = round(1e6 * statistics.median(seconds))
        found[name]["p5_us"] = round(1e6 * sorted(seconds)[len(seconds) // 20])
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    print("| forward and backward | launches | allocations | host, us (5th percentile) |\n|---|---|---|---|")
    for name, x in found.items():
        print(f"| {name} | {x['launches']} | {x['allocations']} | {x['median_us']} ({x['p5_us']}) |")


if __name__ == "__main__":
    main()
