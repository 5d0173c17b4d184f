"""The parts of the time of a loss step: the kernel, its memory, the fold of the projection, Python.

    python benchmarks/loss_parts.py [--rounds 80] [--only TEXT] [CASE ...]

One thread, medians of wall-clock times, each part by itself. Cases are those of `infoseg bench
mutual_information_loss`. To see inside a part: `perf record python benchmarks/loss_parts.py --only
"at one place" --rounds 2000`, then `perf report`.
"""

import argparse
import statistics
import time
from dataclasses import replace

import torch

from infoseg_fast.bench import cpu, providers
from infoseg_fast.ops import cpp
from infoseg_fast.ops.protocol import LossSettings, Needs
from infoseg_fast.ops.record import Case
from infoseg_fast.reference import fold_projection, fold_projection_gradient


def step_of(case: Case, provider: str):
    tensors, keywords = providers.arguments(case, cpu.CPU)
    return providers.steps(case, providers.providers(case, keywords)[provider], tensors)["forward + backward"]


def parts(case: Case) -> dict:
    """Functions to time by name, of a jsd case without settings."""
    tensors, _ = providers.arguments(case, cpu.CPU)
    tiny = replace(case, B=2, C=8, D=8, K=3, h=4, w=4)
    features, H, weight, bias = (x.detach() for x in tensors)
    G, g0 = fold_projection(H, weight, bias)
    settings = LossSettings(temperature=1.0, estimator="jsd", negatives="same_position", num_negatives=1, balance=0.0)
    kernel = cpp.KERNELS["mutual_information_loss"]
    df, dG, dg0, none = torch.empty_like(features), torch.empty_like(G), torch.empty_like(g0), features.new_empty(0)

    def run(*gradients, f=features):
        return lambda: kernel._run(f, G, g0, None, settings, gradients)

    return {
        "the whole step": step_of(case, "infoseg_fast"),
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
        "a step of tiny tensors": step_of(tiny, "infoseg_fast"),
        "a step of tiny tensors, eager PyTorch": step_of(tiny, "eager"),
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
    cases = providers.chosen_cases("cpu", ["mutual_information_loss"])
    plain = {case.name: case for case in cases if not (case.settings or case.masked)}
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(plain)}", default=["jsd"])
    parser.add_argument("--rounds", type=int, default=80)
    parser.add_argument("--only", metavar="TEXT", default="", help="only parts whose name contains TEXT")
    args = parser.parse_args()
    for name in set(args.cases) - set(plain):
        parser.error(f"{name!r} is none of {', '.join(plain)}")
    torch.set_num_threads(1)
    for case in args.cases:
        print(f"\n| {case} | ms |\n|---|---|")
        for name, function in parts(plain[case]).items():
            if args.only in name:
                print(f"| {name} | {median_ms(function, args.rounds):.3f} |", flush=True)


if __name__ == "__main__":
    main()
