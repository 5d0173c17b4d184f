"""How much faster two threads are than one: medians by the clock, taken in turns.

    python benchmarks/thread_scaling.py [--rounds 60]

For a machine with two idle cores: what else runs is taken from the second thread first.
"""

import argparse
import statistics
import time

import torch

from infoseg_fast.allocator import keep_freed_memory
from infoseg_fast.bench import cpu as bench


def main() -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args().rounds
    print("| case | one thread, ms | two, ms | times as fast |\n|---|---|---|---|")
    for case in bench.CASES:
        x, mask = bench.inputs(case)
        step = bench.step_of(case, bench.providers(case, False)["infoseg_fast"], x, mask)
        times = {1: [], 2: []}
        for _ in range(rounds):
            for threads, taken in times.items():
                torch.set_num_threads(threads)
                step()  # wakes the threads
                start = time.perf_counter()
                step()
                taken.append(1e3 * (time.perf_counter() - start))
        one, two = (statistics.median(taken) for taken in times.values())
        print(f"| {case.name} | {one:.3f} | {two:.3f} | {one / two:.2f} |", flush=True)


if __name__ == "__main__":
    main()
