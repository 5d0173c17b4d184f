"""`segment` and `segment_and_count`: labels of one byte a pixel, and their joint counts with a
target.

At the size of the features, the labels come straight from the scores in registers. At any other
size, `similarity_forward` writes its probabilities (or similarities) at low resolution, [B, K, P],
and `upsampled_labels` interpolates them, takes the argmax and counts. Only labels are in memory at
image resolution.

Why the volume is written: writing and reading it costs at most 13 % more bytes than the floor of
features and labels (float32, C = 256, K = 15; `python -m infoseg_fast.bench.roofline`), less when
it stays in the L2 cache. A kernel without it must recompute the scores of the rows around its own.
Of R rows of positions it can upsample R - 1 intervals, so it reads f 1 / (R - 1) times more: 14 %
at R = 8, where the scores alone take 32 registers a thread. And in Triton a thread reaches the
scores of other threads only through a product with the [pixels, R w] interpolation matrix, which at
four times the size is 14 times the operations of the scores themselves.
"""

import torch
import triton
import triton.language as tl

from ..reference.confusion_matrix import raise_out_of_range
from . import configs
from .launch import Cost, Launch, kernel, launch, num_bytes
from .local_global_similarity import scores
from .plans import planned
from .projection import FeatureKernel
from .tiles import alignment, divided
from .upsampling import sources, upsampled

# Each program counts its own pixels in a histogram in registers, if the bins (a power of two) are
# at most MAX_BINS.
MAX_BINS = 1024
MIN_BINS = 128


def _upsampled_cost(started: Launch) -> Cost:
    a = started.arguments
    volume, labels, target = a["volume"], a["labels"], a["target"]
    K, BLOCK = started.constexprs["K"], started.constexprs["BLOCK"]
    max_atomics = 0 if target is None else 1 + min(a["counts"].numel(), BLOCK)  # of one program
    return Cost(
        # The pixels of the last tile beyond the image are interpolated too, from positions within
        # the volume.
        loads=num_bytes(target) + started.programs * BLOCK * K * 4 * volume.element_size(),
        stores=num_bytes(labels),
        distinct_loads=num_bytes(target, volume),
        atomics=started.programs * max_atomics,
    )


@kernel(cost=_upsampled_cost)
def upsampled_labels(
    volume,  # [B, K, h, w] probabilities or similarities
    labels,  # [B, rows, columns] uint8, or None: only the counts are wanted
    target,  # [B, rows, columns] uint8, or None: nothing is counted
    counts,  # [K, num_classes] int64, added to
    outside,  # [] int64, added to: pixels whose target is out of range and not ignored
    h: tl.int32, w: tl.int32, rows: tl.int32, columns: tl.int32,
    scale_y: tl.float64,  # h / rows
    scale_x: tl.float64, num_classes: tl.int32,
    ignore_index: tl.int32,  # -1 for none
    K: tl.constexpr,
    ALIGN: tl.constexpr,  # divisor of rows * columns
    BINS: tl.constexpr,  # power of two >= K * num_classes; 0: too many, every pixel is counted by an atomic
    BLOCK: tl.constexpr,
):  # fmt: skip
    pixels = divided(rows * columns, ALIGN)
    tiles = tl.cdiv(pixels, BLOCK)
    b = (tl.program_id(0) // tiles).to(tl.int64)
    i = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    inside = i < pixels
    dtype: tl.constexpr = volume.dtype.element_ty
    at = sources(i, columns, h, w, scale_y, scale_x, dtype)
    image = volume + b * K * (h * w)

    best = tl.full((BLOCK,), float("-inf"), dtype)
    label = tl.zeros((BLOCK,), tl.int32)
    for k in range(K):
        value = upsampled(image, at)
        # The lowest of equal classes. NaN never wins.
        better = value > best
        best = tl.where(better, value, best)
        label = tl.where(better, k, label)
        image += h * w

    if labels is not None:
        tl.store(labels + b * pixels + i, label.to(tl.uint8), mask=inside)
    if target is not None:
        truth = tl.load(target + b * pixels + i, mask=inside, other=0).to(tl.int32)
        counted = inside & (truth != ignore_index)
        legal = truth < num_classes
        number = tl.sum((counted & ~legal).to(tl.int32), axis=0)
        tl.atomic_add(outside, number.to(tl.int64), mask=number > 0, sem="relaxed")
        cell = label * num_classes + truth
        # Sums of integers: the order of the additions does not matter.
        if BINS > 0:
            seen = tl.histogram(cell, BINS, mask=counted & legal)
            tl.atomic_add(counts + tl.arange(0, BINS), seen.to(tl.int64), mask=seen > 0, sem="relaxed")
        else:
            tl.atomic_add(counts + cell, tl.full((BLOCK,), 1, tl.int64), mask=counted & legal, sem="relaxed")


def upsample(volume, labels, target, counts, outside, size: tuple[int, int], ignore_index: int | None) -> None:
    """Fill `labels`, add to `counts` and `outside`. `labels` may be None, and so may the other
    three together.
    """
    B, K, h, w = volume.shape
    rows, columns = size
    num_classes = 0 if counts is None else counts.shape[1]
    bins = max(triton.next_power_of_2(K * num_classes), MIN_BINS)
    # A value that no byte has ignores nothing.
    ignore_index = ignore_index if ignore_index is not None and 0 <= ignore_index <= 255 else -1
    # Without configs.run: counts are added to, so the kernel may run only once.
    config = configs.rows("upsampled_labels", configs.Key(volume.element_size(), 0, K))[0]
    launch(
        upsampled_labels,
        (triton.cdiv(rows * columns, config.blocks["BLOCK"]) * B,),
        {"volume": volume, "labels": labels, "target": target, "counts": counts, "outside": outside}
        | {"h": h, "w": w, "rows": rows, "columns": columns, "scale_y": h / rows, "scale_x": w / columns}
        | {"num_classes": num_classes, "ignore_index": ignore_index},
        {"K": K, "ALIGN": alignment(rows * columns), "BINS": bins if bins <= MAX_BINS else 0},
        config,
    )


class SegmentKernel(FeatureKernel, op="segment"):
    def forward(self, features, G, g0, temperature, size, interpolate):
        return _labels(features, G, g0, temperature, tuple(size), interpolate)[0]


@planned
def _labels(features, G, g0, temperature, size, interpolate):
    labels = features.new_empty(len(features), *size, dtype=torch.uint8)
    if size == tuple(features.shape[2:]):
        return (scores(features, G, g0, labels, "argmax", temperature),)
    upsample(_volume(features, G, g0, temperature, interpolate), labels, None, None, None, size, None)
    return (labels,)


class SegmentAndCountKernel(FeatureKernel, op="segment_and_count"):
    """Targets out of range are counted in `outside`, because raising would wait for the GPU."""

    def forward(self, features, G, g0, target, temperature, interpolate, num_classes, ignore_index, labels_wanted):
        counts = G.new_zeros(G.shape[1], num_classes, dtype=torch.int64)
        outside = G.new_zeros((), dtype=torch.int64)
        (labels,) = _count(
            features, G, g0, target, counts, outside, temperature, interpolate, ignore_index, labels_wanted
        )
        if target.device.type == "cpu" and outside:  # in the interpreter nothing has to wait
            raise_out_of_range(torch.zeros_like(target), target, *counts.shape, ignore_index)
        return counts, outside, labels


@planned
def _count(features, G, g0, target, counts, outside, temperature, interpolate, ignore_index, labels_wanted):
    """Add to `counts` and `outside`; the labels, without elements if they are not wanted."""
    labels = torch.empty_like(target) if labels_wanted else None
    volume = _volume(features, G, g0, temperature, interpolate)
    upsample(volume, labels, target, counts, outside, tuple(target.shape[1:]), ignore_index)
    return (target.new_empty(0) if labels is None else labels,)


def _volume(features, G, g0, temperature, interpolate):
    """Probabilities or similarities [B, K, h, w] in the accumulation dtype."""
    B, _, h, w = features.shape
    volume = G.new_empty(B, G.shape[1], h, w)
    return scores(features, G, g0, volume, "softmax" if interpolate == "probs" else "similarity", temperature)
