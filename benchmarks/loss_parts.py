"""Where the time of a step of the loss goes: the kernel, what it waits for, the fold of the projection, Python.

    python benchmarks/loss_parts.py [--rounds 80] [--only TEXT] [CASE ...]

One thread, medians by the clock, each part by itself; cases as `infoseg bench` names them. What a part does inside:
`perf record python benchmarks/loss_parts.py --only "at one place" --rounds 2000`, then `perf report`.
"""

import argparse
import statistics
import time

import torch

from infoseg_fast.bench import cpu as bench
from infoseg_fast.ops import cpp
from infoseg_fast.ops.protocol import LossSettings, Needs
from infoseg_fast.reference import fold_projection, fold_projection_gradient

TINY = bench.Case("loss", "tiny", B=2, C=8, D=8, K=3, side=4)


def parts(case: bench.Case) -> dict:
    """Name -> function, of a jsd case without further settings."""
    x, _ = bench.inputs(case)
    tiny, _ = bench.inputs(TINY)
    features, H, weight, bias = (t.detach() for t in x)
    G, g0 = fold_projection(H, weight, bias)
    settings = LossSettings(temperature=1.0, estimator="jsd", negatives="same_position", num_negatives=1, balance=0.0)
    kernel = cpp.KERNELS["mutual_information_loss"]
    df, dG, dg0, none = torch.empty_like(features), torch.empty_like(G), torch.empty_like(g0), features.new_empty(0)

    def run(*gradients, f=features):
        return lambda: kernel._run(f, G, g0, None, settings, gradients)

    def op_of(case, x):
        return bench.step_of(case, bench.providers(case, False)["infoseg_fast"], x, None)

    return {
        "the whole step": op_of(case, x),
        "kernel, into memory written before": run(df, dG, dg0),
        "kernel, into fresh memory": lambda: kernel.forward(features, G, g0, None, settings, Needs(True, True, True)),
        "kernel, all images and their gradients at one place, which stays in cache": run(
            df[:1].expand_as(df), dG, dg0, f=features[:1].expand_as(features)
        ),
        "kernel, no gradient": run(none, none, none),
        "kernel, df alone": run(df, none, none),
        "kernel, dG and dg0 alone": run(none, dG, dg0),
        "fold": lambda: fold_projection(H, weight, bias),
        "gradient of the fold": lambda: fold_projection_gradient(dG, dg0, H, weight, bias, (True, True, True)),
        "a step of tiny tensors": op_of(TINY, tiny),
        "a step of tiny tensors, eager PyTorch": bench.step_of(TINY, bench.providers(TINY, False)["eager"], tiny, None),
    }


def median_ms(function, rounds: int) -> float:
    times = []
    for _ in range(rounds + 5):
        start = time.perf_counter()
        function()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[5:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    plain = [c.name for c in bench.CASES if c.op == "loss" and not (c.settings or c.masked)]
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(plain)}", default=["jsd"])
    parser.add_argument("--rounds", type=int, default=80)
    parser.add_argument("--only", metavar="TEXT", default="", help="parts whose name contains it")
    args = parser.parse_args()
    for name in set(args.cases) - set(plain):
        parser.error(f"{name!r} is none of {', '.join(plain)}")
    torch.set_num_threads(1)
    for case in bench.CASES:
        if case.name in args.cases:
            print(f"\n| {case.name} | ms |\n|---|---|")
            for name, function in parts(case).items():
                if args.only in name:
                    print(f"| {name} | {median_ms(function, args.rounds):.3f} |", flush=True)


if __name__ == "__main__":
    main()
