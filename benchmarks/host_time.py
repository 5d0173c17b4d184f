"""Host time of the Triton ops: the time of Python and PyTorch for a call, without the GPU's work.

    python benchmarks/host_time.py [--rounds 300] [--docs FILE]

Triton's driver is replaced by one that launches nothing (`infoseg_fast.bench.mock_driver`), and the
tensors are small and lie on the CPU. Processor time of one thread, since other processes may run;
the variants run in turns.
Printed: the least time of forward and backward together, its ratio to that of an autograd.Function
that does nothing, launches of Triton, and allocations by `torch.empty`, `torch.empty_like` and
`torch.empty_strided`. Then the launches of Triton and the operations of PyTorch in the loss of a
recipe with its gradient, networks included.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from infoseg_fast.bench.mock_driver import Started, mocked
from infoseg_fast.bench.tables import write
from infoseg_fast.config import Settings
from infoseg_fast.ops import dispatch, mutual_information_loss
from infoseg_fast.recipe import DataInfo, recipe_class
from infoseg_fast.recipe.appearance import appearance_term
from infoseg_fast.reference import fold_projection, fold_projection_gradient

B, C, D, K, SIDE = 8, 16, 8, 5, 4  # so few numbers that their arithmetic does not count
CLASSES = 15  # of the recipes


class Nothing(torch.autograd.Function):
    """What PyTorch itself takes for a function with a gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.new_empty(())

    @staticmethod
    def backward(ctx, grad):
        return None


class Four(torch.autograd.Function):
    """What PyTorch itself takes for a function of four tensors with four gradients."""

    @staticmethod
    def forward(ctx, *x):
        ctx.save_for_backward(*x)
        return x[0].new_empty(())

    @staticmethod
    def backward(ctx, grad):
        return tuple([torch.empty_like(x) for x in ctx.saved_tensors])


class Projection(torch.autograd.Function):
    """The same with the projection by PyTorch."""

    @staticmethod
    def forward(ctx, features, *projected):
        G, g0 = fold_projection(*projected)
        ctx.save_for_backward(features, G, g0, *projected)
        return features.new_empty(())

    @staticmethod
    def backward(ctx, grad):
        features, G, g0, *projected = ctx.saved_tensors
        return torch.empty_like(features), *fold_projection_gradient(G, g0, *projected)


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
        "one with four gradients": both(lambda *x, backend: Four.apply(*x)),
        "one with the projection by PyTorch": both(lambda *x, backend: Projection.apply(*x)),
        "loss, 1 negative": both(mutual_information_loss),
        "loss, infonce, all negatives": both(mutual_information_loss, estimator="infonce", num_negatives="all"),
        "appearance term": both(appearance_term, images=images, smooth=1),
    }


def allocations(call: Callable[[], object]) -> int:
    """How often `call` allocates by torch.empty, torch.empty_like or torch.empty_strided."""
    number = 0

    def counted(function):
        def count(*arguments, **keywords):
            nonlocal number
            number += 1
            return function(*arguments, **keywords)

        return count

    with (
        patch.object(torch, "empty", counted(torch.empty)),
        patch.object(torch, "empty_like", counted(torch.empty_like)),
        patch.object(torch, "empty_strided", counted(torch.empty_strided)),
    ):
        call()
    return number


class Operations(TorchDispatchMode):
    """Counts the operations of PyTorch that read or write elements, without the ops' own."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        view = any(x.alias_info is not None and not x.alias_info.is_write for x in function._schema.returns)
        own = function.namespace == "infoseg_fast"
        self.number += not (own or view or "empty" in function.name() or "detach" in function.name())
        return function(*arguments, **(keywords or {}))


def step_launches(recipe: str, started: list[Started]) -> tuple[int, int]:
    """Launches of Triton, and operations of PyTorch, of the loss of a recipe with its gradient."""
    settings = Settings.create({"data": "random", "classes": CLASSES, "recipe": recipe})
    made = recipe_class(recipe)(settings, DataInfo(3, CLASSES, None, [0.5] * 3, [0.3] * 3)).train()
    images = torch.rand(4, 3, 32, 32)
    started.clear()
    made.loss(0, images, None).backward()
    launches = len(started)
    # The mode would lead to the custom ops, around which PyTorch folds the projection.
    direct = patch.object(dispatch, "plain", lambda *tensors: True), patch.object(dispatch, "direct", lambda *x: True)
    with Operations() as operations, direct[0], direct[1]:
        made.loss(1, images, None).backward()
    return launches, operations.number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--docs", type=Path, metavar="FILE", help="write the tables into FILE (docs/gpu_kernels.md)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = calls()
    times = {name: [] for name in cases}
    rows = [["forward and backward", "launches", "allocations", "host, us", "by the first line"]]
    with mocked() as started:
        counts = {}
        for name, call in cases.items():
            call()  # compiles
            started.clear()
            allocated = allocations(call)
            counts[name] = len(started), allocated
    with mocked(keep=False):
        for _ in range(arguments.rounds):
            for name, call in cases.items():
                call()  # brings the call's code and data into the caches
                before = time.process_time()
                call()
                times[name].append(time.process_time() - before)
    least = {name: 1e6 * min(seconds) for name, seconds in times.items()}
    for name, us in least.items():
        rows.append([name, *counts[name], round(us), f"{us / next(iter(least.values())):.1f}"])
    tables = [as_markdown(rows)]
    with mocked(compiles=False) as started:
        found = [[recipe, *step_launches(recipe, started)] for recipe in ("paper", "default")]
    tables.append(
        as_markdown([["loss of a recipe, with gradient", "launches of Triton", "operations of PyTorch"], *found])
    )
    print("\n\n".join(tables))
    if arguments.docs is not None:
        write(arguments.docs, "host", "\n\n".join(tables))


def as_markdown(rows: list[list]) -> str:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


if __name__ == "__main__":
    main()
