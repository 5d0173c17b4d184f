"""Values and gradients of the Triton kernels on the device, against the references in float64 on the
same device.

The allowed error is twice that of the reference in the dtype of the kernel, plus a floor for the
values that the kernel rounds and the reference does not.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..ops import OPS
from ..ops.dispatch import kernel
from ..ops.record import Case
from ..reference.refined_labels import batch_scores
from .providers import arguments, differentiated, upstream_of

# Relative 2-norms: global features and coefficients are rounded to 16 bits before their products.
FLOORS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}
TF32_FLOOR = 4e-3
LOGARITHM_FLOOR = 1e-5  # floor of local_appearance: the device computes logarithms
MAX_DIFFERING_SHARE = 1e-3  # share of integer results that may differ
SMALL = {"B": 4, "C": 70, "D": 9, "K": 5, "h": 9, "w": 13, "size": (36, 52)}  # ragged in every direction
COCO = {"B": 16, "C": 256, "D": 64, "K": 15, "h": 32, "w": 32, "size": (128, 128)}
POTSDAM = {"B": 8, "C": 128, "D": 64, "K": 6, "h": 50, "w": 50, "size": (200, 200)}
LOSSES: list[dict[str, Any]] = [  # None: all other images
    {},
    {"negatives": "same_position", "num_negatives": 2},
    {"negatives": "reassigned", "num_negatives": 1},
    {"negatives": "reassigned", "num_negatives": 2},
    {"negatives": "same_position", "num_negatives": None, "balance": 0.5},
    {"estimator": "infonce", "num_negatives": 1},
    {"estimator": "infonce", "num_negatives": None, "balance": 2.0},
]
Check = tuple[str, Callable[[], None]]


def triton_ops() -> list[str]:
    return [name for name, op in OPS.items() if "triton" in op.backends]


def variants(op: str, shape: dict) -> list[Case]:
    """Cases of an op at a shape: one for each distinct choice of settings, mask and gradient in its
    record. The C of `shape` is an upper bound.
    """
    if op == "mutual_information_loss":  # every second case has a mask
        losses = [{name: shape["B"] - 1 if x is None else x for name, x in how.items()} for how in LOSSES]
        found = [Case("", settings=how, masked=i % 2 == 1, op=op) for i, how in enumerate(losses)]
    else:
        found = OPS[op].cases
    distinct = {(str(case.settings), case.masked, case.gradient): case for case in found}
    more = {"dtype": torch.float32, "channels_last": False, "bias": True}
    return [replace(case, **shape | {"C": min(case.C, shape["C"])}, **more) for case in distinct.values()]


def results(case: Case, function: Callable, tensors: list[Tensor], keywords: dict) -> list[Tensor]:
    """The results of a call and, if the case has gradients, the gradients of all tensors."""
    if not differentiated(case):
        out = function(*tensors, **keywords)
        return list(out) if isinstance(out, tuple) else [out]
    tensors = [x.detach().requires_grad_() for x in tensors]
    out = function(*tensors, **keywords)
    return [out.detach(), *torch.autograd.grad(out, tensors, upstream_of(out))]


def triton(case: Case, tensors: list[Tensor], keywords: dict) -> list[Tensor]:
    return results(case, OPS[case.op].function, tensors, keywords | {"backend": "triton"})


def distance(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30)).item()


def close(case: Case, device: torch.device, floor: float, layout: Callable[[Tensor], Tensor] | None = None) -> None:
    """Assert that the results of the kernel are close to the reference in float64. `layout` changes
    the memory layout of the first tensor.
    """
    reference = OPS[case.op].reference
    tensors, keywords = arguments(case, device)
    if layout is not None:
        tensors = [layout(tensors[0].detach()), *tensors[1:]]
    found = triton(case, tensors, keywords)
    eager = results(case, reference, tensors, keywords)
    exact = results(case, reference, *arguments(case, device, torch.float64))
    for i, (a, e, b) in enumerate(zip(found, eager, exact, strict=True)):
        name = "value" if i == 0 else f"gradient {i}"
        if a.is_floating_point():
            error, allowed = distance(a, b), 2 * distance(e, b) + floor
            assert error <= allowed, f"{name}: error {error:.2e}, allowed {allowed:.2e}"
        else:
            share = (a != b).double().mean().item()
            allowed = 2 * (e != b).double().mean().item() + MAX_DIFFERING_SHARE
            assert share <= allowed, f"{name}: {share:.2%} differ, allowed {allowed:.2%}"


@contextlib.contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def none_short(scores: Tensor, labels: Tensor, dtype: torch.dtype) -> None:
    """Assert that every label has the largest of its scores [B, K, H, W] up to rounding in
    `dtype`.
    """
    short = scores.amax(dim=1) - scores.gather(1, labels.long()[:, None])[:, 0]
    allowed = 16 * torch.finfo(dtype).eps * scores.abs().max().item()
    assert short.max().item() <= allowed, f"a label is {short.max().item():.2e} short of the best class"


def segmentation(case: Case, device: torch.device, interpolate: str) -> None:
    """Assert that `segment` is the argmax of the upsampled volume, and that `segment_and_count`
    counts its labels.
    """
    x, size = arguments(replace(case, op="assign", settings={}, gradient=False), device)[0], case.size
    labels = ops.segment(*x, size=size, interpolate=interpolate, backend="triton")
    volume = ops.local_global_similarity(*(t.double() for t in x), backend="reference")
    if interpolate == "probs":
        volume = volume.softmax(dim=1)
    volume = F.interpolate(volume, size=size, mode="bilinear", align_corners=False)
    none_short(volume, labels, case.dtype)

    target = torch.randint(0, 7, labels.shape, generator=torch.Generator().manual_seed(3)).to(device).byte()
    target[0, 0] = 255
    how = {"num_classes": 7, "interpolate": interpolate, "backend": "triton"}
    counts, again = ops.segment_and_count(*x[:2], target, *x[2:], return_labels=True, **how)
    assert torch.equal(again, labels)
    cells = (labels.long() * 7 + target.long())[target != 255]
    assert torch.equal(counts, torch.bincount(cells, minlength=7 * case.K).view(case.K, 7))
    assert torch.equal(ops.segment_and_count(*x[:2], target, *x[2:], **how), counts)


def refinement(case: Case, device: torch.device) -> None:
    """Assert that `refined_labels` is the argmax of the scores, also with strided input."""
    x, keywords = arguments(case, device)
    (found,) = triton(case, x, keywords)
    none_short(batch_scores(*(t.double() for t in x)), found, case.dtype)
    assert torch.equal(triton(case, [t.mT.contiguous().mT if t.dim() > 1 else t for t in x], keywords)[0], found)


LABELS = ("segment", "segment_and_count", "refined_labels")  # checked by `segmentation` and `refinement`
LAYOUTS = {
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "strided": lambda x: x.mT.contiguous().mT,
}


def value_checks(device: torch.device, shape: dict, dtypes: tuple, all_variants: bool) -> Iterator[Check]:
    """Checks of every op that gives no labels, with its gradients, in the dtypes that its kernel
    takes.

    Args:
        all_variants: check all `variants` of an op, otherwise the first and the last.
    """
    for op, dtype in itertools.product(triton_ops(), dtypes):
        if op in LABELS or dtype not in FLOORS or kernel(op, "triton").unsupported(device.type, dtype):
            continue
        cases = variants(op, shape)
        floor = LOGARITHM_FLOOR if op == "local_appearance" else FLOORS[dtype]
        for case in cases if all_variants else cases[:1] + cases[1:][-1:]:
            how = " ".join(map(str, case.settings.values())) + " mask" * case.masked
            name = f"{op} {str(dtype)[6:]} {case.h}x{case.w} {how}".rstrip()
            yield name, partial(close, replace(case, dtype=dtype), device, floor)


def layout_checks(device: torch.device, shape: dict) -> Iterator[Check]:
    for op in triton_ops():
        case = variants(op, shape)[0]
        if op not in LABELS and arguments(case, device)[0][0].dim() == 4:
            for name, layout in LAYOUTS.items():
                yield f"{op} {name}", partial(close, case, device, LOGARITHM_FLOOR, layout)


def label_checks(device: torch.device, shape: dict) -> Iterator[Check]:
    h, w = shape["h"], shape["w"]
    case = Case("", **shape)
    for dtype, size in itertools.product(FLOORS, ((h, w), (4 * h, 4 * w), (20, 17))):
        sized, what = replace(case, dtype=dtype, size=size), f"{str(dtype)[6:]} {size[0]}x{size[1]}"
        for interpolate in ("probs", "logits"):
            name = f"segment and segment_and_count {what} {interpolate}"
            yield name, partial(segmentation, sized, device, interpolate)
        if kernel("refined_labels", "triton").unsupported(device.type, dtype) is None:
            for C in (3, 1):
                name = f"refined_labels {what}, {C} channels"
                yield name, partial(refinement, replace(sized, op="refined_labels", C=C), device)


def tf32(device: torch.device, shape: dict) -> None:
    with matmul_precision("high"):
        close(variants("mutual_information_loss", shape)[0], device, TF32_FLOOR)
