"""Print the tables of docs/matching-and-scores.md: the matcher and the scorer, and the functions
that they replace.

    python benchmarks/scoring_ratios.py [matcher] [structured] [batches] [counts] [fused] [nmi]
        [bootstrap] [rehearsal]

Every figure is a ratio of medians; competitor and package run in turns in one process. One thread
is measured in processor time, which other processes disturb little. Two threads are measured in
wall-clock time, so the machine should be idle. lapx is compared if it is installed (`pip install
lapx`).
"""

import argparse
import os
import resource
import statistics
import time
from functools import partial

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import scipy.optimize
import torch

import infoseg_fast as isf
from infoseg_fast.bench import baselines, cpu, providers

try:
    import lap
except ImportError:
    lap = None

RNG = np.random.default_rng(0)


def medians(functions, seconds: float = 1.0, clock=time.thread_time) -> list[float]:
    """Median seconds of each function, over rounds in which each function runs once."""
    once = []
    for function in functions:
        function()
        start = clock()
        function()
        once.append(max(clock() - start, 1e-7))
    repeats = [max(1, round(0.005 / t)) for t in once]
    rounds = max(5, round(seconds / sum(t * n for t, n in zip(once, repeats, strict=True))))
    times = [[] for _ in functions]
    for _ in range(rounds):
        for function, repeat, taken in zip(functions, repeats, times, strict=True):
            start = clock()
            for _ in range(repeat):
                function()
            taken.append((clock() - start) / repeat)
    return [statistics.median(taken) for taken in times]


def table(*header):
    print("\n| " + " | ".join(header) + " |\n|" + "---|" * len(header), flush=True)


def row(*cells):
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def every(function, arguments):
    return lambda: [function(argument) for argument in arguments]


def with_threads(threads, function, *arguments):
    return lambda: (torch.set_num_threads(threads), function(*arguments))


def matcher():
    print("\nOne random float64 matrix per call, one thread: speed-up over scipy.")
    names = [name for name in ("lapjvx", "lapjvs", "lapjvc", "lapjvxa", "lapjvsa") if hasattr(lap, name)]
    table("N", "this package", "best of lapx", "microseconds a call")
    for n in (5, 10, 16, 32, 64, 128, 256, 512, 1000):
        # Several matrices in turn: the branch predictor would learn the branches of a single one.
        costs = RNG.random((8 if n < 500 else 2, n, n))
        solvers = [scipy.optimize.linear_sum_assignment, isf.linear_sum_assignment]
        solvers += [getattr(lap, name) for name in names]
        scipys, ours, *others = (t / len(costs) for t in medians([every(solver, costs) for solver in solvers]))
        best = f"{scipys / min(others):.2f}" if others else "-"
        row(n, f"{scipys / ours:.2f}", best, f"{ours * 1e6:.1f}")


def structured():
    print("\nStructured matrices, one per call, one thread: speed-up over scipy.")
    sizes = (27, 64, 256, 600)
    table("costs", *[f"N = {n}" for n in sizes])
    kinds = {
        "products i * j": lambda n: np.outer(np.arange(1.0, n + 1), np.arange(1.0, n + 1)),
        "products, noisy": lambda n: np.outer(np.arange(1.0, n + 1), np.arange(1.0, n + 1)) + RNG.random((n, n)),
        "integers 0 to 9": lambda n: RNG.integers(0, 10, (n, n)),
        "zeros and ones": lambda n: RNG.integers(0, 2, (n, n)),
        "constant": lambda n: np.ones((n, n)),
        "Cauchy": lambda n: RNG.standard_cauchy((n, n)),
        "near-diagonal counts": lambda n: -np.where(np.eye(n) > 0, 10**5, RNG.integers(0, 1000, (n, n))),
        "distances in a plane": lambda n: np.hypot(*(RNG.random((2, n, 1)) - RNG.random((2, 1, n)))),
        "half forbidden": lambda n: np.where(RNG.random((n, n)) < 0.5, np.inf, RNG.random((n, n))),
    }
    for name, make in kinds.items():
        ratios = []
        for n in sizes:
            cost = make(n)
            solvers = (scipy.optimize.linear_sum_assignment, isf.linear_sum_assignment)
            scipys, ours = medians([lambda s=solver, c=cost: s(c) for solver in solvers], 0.5)
            ratios.append(f"{scipys / ours:.2f}")
        row(name, *ratios)


def batches():
    print("\nBatches in one call: speed-up over a loop of scipy.")
    table("batch", "one thread", "two threads", "best of lapx's batches, one thread", "microseconds a problem")
    for shape in ((4000, 27, 27), (4000, 15, 15), (4000, 15, 27), (4000, 45, 15), (500, 64, 64), (20, 256, 256)):
        costs = RNG.random(shape)
        solve = [with_threads(threads, isf.linear_sum_assignment, costs) for threads in (1, 2)]
        functions = [every(scipy.optimize.linear_sum_assignment, costs), solve[0]]
        if lap is not None:
            for solver in (lap.lapjvx_batch, lap.lapjvs_batch):
                functions.append(partial(solver, costs, extend_cost=True, n_threads=1))
        scipys, one, *others = medians(functions, clock=time.process_time)
        slow, two = medians([functions[0], solve[1]], clock=time.perf_counter)
        torch.set_num_threads(1)
        best = f"{scipys / min(others):.2f}" if others else "-"
        row("x".join(map(str, shape)), f"{scipys / one:.2f}", f"{slow / two:.2f}", best, f"{one / shape[0] * 1e6:.2f}")


def label_maps(size: int, values: int, block: int, dtype) -> np.ndarray:
    """Labels [side, side] in squares of `block` pixels; with 1 they are noise."""
    side = int(size**0.5)
    coarse = RNG.integers(0, values, (side // block + 1,) * 2)
    return np.kron(coarse, np.ones((block, block), int))[:side, :side].astype(dtype)


def counts():
    print("\n4 million pixels, 27 clusters and classes, a tenth ignored: speed-up over masked np.bincount.")
    table("labels", "one thread", "two threads", "nanoseconds a pixel")
    for name, block, dtype in (
        ("uint8, noise", 1, np.uint8),
        ("uint8, squares of 16", 16, np.uint8),
        ("uint8, squares of 100", 100, np.uint8),
        ("int64, noise", 1, np.int64),
        ("int64, squares of 16", 16, np.int64),
    ):
        pred, target = (label_maps(4_000_000, 27, block, dtype) for _ in range(2))
        target[label_maps(4_000_000, 10, block, dtype) == 0] = 255
        tensors = torch.from_numpy(pred), torch.from_numpy(target)
        plain = partial(baselines.confusion_matrix, *tensors, 27, 27)
        counted = [with_threads(threads, isf.confusion_matrix, pred, target, 27, 27) for threads in (1, 2)]
        theirs, one = medians([plain, counted[0]], 2.0)
        slow, two = medians([plain, counted[1]], 2.0, time.perf_counter)
        torch.set_num_threads(1)
        row(name, f"{theirs / one:.1f}", f"{slow / two:.1f}", f"{one / pred.size * 1e9:.2f}")


def fused():
    print("\nFrom features to counts: B=16 C=64 D=256 K=15, 32x32 to 128x128, a tenth ignored, one thread.")
    table("way", "milliseconds", "speed-up")
    (case,) = providers.chosen_cases("cpu", ["segment"])
    x, _ = providers.arguments(case, cpu.CPU)
    features, global_features, weight, bias = x
    target = torch.from_numpy(RNG.integers(0, 15, (16, 128, 128)).astype(np.uint8))
    target[torch.rand(target.shape) < 0.1] = 255

    def pytorch():
        labels = baselines.segment(*x, size=(128, 128))
        counted = target != 255
        torch.bincount(labels[counted].long() * 15 + target[counted], minlength=15 * 15)

    def op():
        isf.segment_and_count(features, global_features, target, weight, bias, num_classes=15)

    theirs, ours = medians([pytorch, op], 5.0)
    row("conv, einsum, interpolate, argmax, masked bincount", f"{1e3 * theirs:.1f}", "")
    row("segment_and_count", f"{1e3 * ours:.2f}", f"{theirs / ours:.1f}")


def nmi():
    """Scores of whole label maps: what scikit-learn and torchmetrics need, and `ClusterMetrics`."""
    from sklearn.metrics import normalized_mutual_info_score
    from torchmetrics.functional.clustering import normalized_mutual_info_score as of_torchmetrics

    print("\nNormalised mutual information, 27 clusters and classes, uint8: one thread.")
    table("pixels", "scikit-learn, ms", "torchmetrics, ms", "ClusterMetrics, with all other scores, ms", "difference")
    for size in (10_000, 250_000, 1_000_000):
        pred, target = (label_maps(size, 27, 4, np.uint8) for _ in range(2))
        flat = [torch.from_numpy(x.ravel()).long() for x in (pred, target)]
        arrays = [x.numpy() for x in reversed(flat)]

        def ours(pred=pred, target=target):
            metrics = isf.ClusterMetrics(27, 27)
            metrics.update(pred, target)
            return metrics.compute()["nmi"]

        functions = (
            lambda x=arrays: normalized_mutual_info_score(*x),
            lambda x=flat: of_torchmetrics(*x, "arithmetic"),
            ours,
        )
        difference = max(abs(float(function()) - functions[0]()) for function in functions)
        row(pred.size, *[f"{t * 1e3:.2f}" for t in medians(functions)], f"{difference:.0e}")


def bootstrap():
    print("\nPoisson bootstrap with 1,000 replicates, 15 clusters and classes.")
    table("step", "microseconds")
    pred, target = (torch.randint(0, 15, (64, 128, 128), dtype=torch.uint8) for _ in range(2))
    metrics = isf.ClusterMetrics(15, 15, bootstrap=1000)
    plain = isf.ClusterMetrics(15, 15)
    update, without = medians([lambda: metrics.update(pred, target), lambda: plain.update(pred, target)])
    replicates = metrics._bootstrap.counts.numpy()
    scipys, ours = medians(
        [every(lambda c: scipy.optimize.linear_sum_assignment(c, True), replicates),
         lambda: isf.linear_sum_assignment(replicates, maximize=True)]
    )  # fmt: skip
    row("update, a 128x128 image, no bootstrap", f"{without / 64 * 1e6:.1f}")
    row("update, a 128x128 image", f"{update / 64 * 1e6:.1f}")
    row("matching all 1,000 replicates", f"{ours * 1e6:.0f}")
    row("the same, a loop over scipy", f"{scipys * 1e6:.0f}")


def rehearsal():
    print("\nA rehearsal of an evaluation: 50,000 synthetic 128x128 images, 15 clusters, batches of 60, one thread.")
    batch, batches = 60, 834
    model = isf.InfoSegNet(num_classes=15).eval()
    projection = model.local_projection
    images = torch.rand(batch, 3, 128, 128)
    target = torch.randint(0, 15, (batch, 128, 128), dtype=torch.uint8)
    metrics = isf.ClusterMetrics(15, 15)

    def count():
        metrics.add(
            isf.segment_and_count(features, global_features, target, projection.weight, projection.bias, num_classes=15)
        )

    with torch.inference_mode():
        features, global_features = model(images)
        network, counting = medians([lambda: model(images), count], 10.0)
        metrics.reset()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(batches):
            count()
        start = time.thread_time()
        scores = metrics.compute()
        scoring = time.thread_time() - start
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    table("part", "microseconds an image", "of the network's time")
    row("network (width 64)", f"{network / batch * 1e6:.0f}", "")
    row("segmenting and counting", f"{counting / batch * 1e6:.1f}", f"{counting / network:.2%}")
    shared = scoring / batches / batch
    row("scores at the end", f"{shared * 1e6:.3f}", f"{shared / (network / batch):.4%}")
    print(f"\n{scores['num_pixels']:,} pixels counted; peak memory grew by {grown / 1024:.1f} MiB over them.")


PARTS = {part.__name__: part for part in (matcher, structured, batches, counts, fused, nmi, bootstrap, rehearsal)}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all when none is named")
    chosen = parser.parse_args().parts or list(PARTS)
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    torch.set_num_threads(1)
    for part in chosen:
        PARTS[part]()
