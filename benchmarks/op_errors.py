"""The errors of every op in each dtype, beside those of plain PyTorch, for the pages of docs/ops.

    python benchmarks/op_errors.py [--op assign] [--docs docs/ops]

Truth is the same algebra in float64 on the same rounded inputs. The numbers are relative 2-norms;
of labels and counts, the share that differs.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from infoseg_fast.bench import cpu, providers, tables
from infoseg_fast.env import processor
from infoseg_fast.ops import OPS

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SMALL = {"B": 4, "K": 15, "D": 256, "h": 16, "w": 16, "size": (64, 64)}
FEWER = {  # dtypes of the ops that take fewer
    "appearance_statistics": DTYPES[:2], "information_of_moments": DTYPES[:2], "refined_labels": DTYPES[:2],
    "local_appearance": DTYPES[1:2],
}  # fmt: skip
EXACT = ("confusion_matrix", "linear_sum_assignment")  # their pages have no table


def table(name: str) -> str:
    """The Markdown table of an op."""
    op = OPS[name]
    gradient = providers.differentiated(op.cases_for("cpu")[0])
    header = ["dtype", "value", "PyTorch's value"] + ["largest of the gradients", "PyTorch's gradients"] * gradient
    rows = []
    for dtype in FEWER.get(name, DTYPES):
        case = replace(op.cases_for("cpu")[0], dtype=dtype, **SMALL)
        tensors, keywords = providers.arguments(case, cpu.CPU)
        exact, exact_keywords = providers.arguments(case, cpu.CPU, torch.float64)
        functions = providers.providers(case, keywords)
        values, gradients = [], []
        for provider in ("infoseg_fast", "eager"):
            mode, step = list(providers.steps(case, functions[provider], tensors).items())[-1]
            truth = providers.steps(case, providers.providers(case, exact_keywords)["eager"], exact)[mode]()
            value, *others = providers.relative_errors(step(), truth)
            values.append(f"{value:.0e}")
            gradients += [f"{max(others):.0e}"] if others else []
        rows.append([str(dtype).removeprefix("torch."), *values, *gradients])
    return "\n".join(["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [name for name in OPS if name not in EXACT]
    parser.add_argument("--op", nargs="+", choices=names, default=names)
    parser.add_argument("--docs", type=Path, metavar="DIR", help="write the tables into DIR/OP.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(processor())
    for name in args.op:
        found = table(name)
        print(f"\n{name}\n\n{found}", flush=True)
        if args.docs is not None:
            tables.write(args.docs / f"{name}.md", "errors", found)


if __name__ == "__main__":
    main()
