"""The speed-up of two threads over one, for every op: medians of wall-clock times, measured in
turns.

    python benchmarks/thread_scaling.py [--rounds 60]

It needs two idle cores, since other programs slow down the second thread first.
"""

import argparse
import statistics
import time

import torch

from infoseg_fast.allocator import keep_freed_memory
from infoseg_fast.bench import cpu, providers


def main() -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args().rounds
    print("| op | case | one thread, ms | two, ms | speed-up |\n|---|---|---|---|---|")
    for case in providers.chosen_cases("cpu", ()):
        tensors, keywords = providers.arguments(case, cpu.CPU)
        *_, step = providers.steps(case, providers.providers(case, keywords)["infoseg_fast"], tensors).values()
        times = {1: [], 2: []}
        for _ in range(rounds):
            for threads, taken in times.items():
                torch.set_num_threads(threads)
                step()  # wakes the threads
                start = time.perf_counter()
                step()
                taken.append(1e3 * (time.perf_counter() - start))
        one, two = (statistics.median(taken) for taken in times.values())
        print(f"| {case.op} | {case.name} | {one:.3f} | {two:.3f} | {one / two:.2f} |", flush=True)


if __name__ == "__main__":
    main()
