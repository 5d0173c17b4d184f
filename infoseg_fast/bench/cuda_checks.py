"""Correctness of the Triton kernels on the device: `infoseg bench --device cuda` runs these checks
before it times.

Every op of `infoseg_fast.ops.OPS` that has a Triton kernel is checked. The truth is its reference
in float64 on the same device. The allowed error is twice that of the reference in the dtype of the
kernel, plus a floor for what the kernel rounds and the reference does not.
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
from ..scores.metrics import ClusterMetrics
from .providers import arguments, differentiated, upstream_of

# Relative 2-norms: global features and coefficients are rounded to 16 bits before their products.
FLOORS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}
TF32_FLOOR = 4e-3
LOGARITHM_FLOOR = 1e-5  # of local_appearance: the logarithms of the device
MAX_DIFFERING_SHARE = 1e-3  # of integer results
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
    record.

    The sizes of `shape` are upper bounds of C, the number of channels.
    """
    if op == "mutual_information_loss":  # every second one has a mask
        losses = [{name: shape["B"] - 1 if x is None else x for name, x in how.items()} for how in LOSSES]
        found = [Case("", settings=how, masked=i % 2 == 1, op=op) for i, how in enumerate(losses)]
    else:
        found = OPS[op].cases
    distinct = {(str(case.settings), case.masked, case.gradient): case for case in found}
    more = {"dtype": torch.float32, "channels_last": False, "bias": True}
    return [replace(case, **shape | {"C": min(case.C, shape["C"])}, **more) for case in distinct.values()]


def results(case: Case, function: Callable, tensors: list[Tensor], keywords: dict) -> list[Tensor]:
    """The results of a call and, if the case has gradients, the gradients by all tensors."""
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
    """The results of the kernel are close to the reference in float64. `layout` changes that of the
    first tensor.
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
    """The score of every label, of scores [B, K, H, W], is the maximum up to rounding in `dtype`."""
    short = scores.amax(dim=1) - scores.gather(1, labels.long()[:, None])[:, 0]
    allowed = 16 * torch.finfo(dtype).eps * scores.abs().max().item()
    assert short.max().item() <= allowed, f"a label is {short.max().item():.2e} short of the best class"


def segmentation(case: Case, device: torch.device, interpolate: str) -> None:
    """`segment` is the argmax of the upsampled volume, and `segment_and_count` counts its labels."""
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
    """`refined_labels` is the argmax of the scores, also with strided input."""
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
    """Every op with its gradients, except labels, in the dtypes that its kernel takes.

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


def calls(device: torch.device, shape: dict, losses: bool = True) -> list[tuple[Case, list[Tensor], dict]]:
    """Arguments of `triton` for every op and, with `losses`, for every variant of the loss."""
    cases = [variants(op, shape)[0] for op in triton_ops()]
    cases += variants("mutual_information_loss", shape)[1:] if losses else []
    return [(case, *arguments(case, device)) for case in cases]


def reruns(device: torch.device, shape: dict) -> None:
    for call in calls(device, shape):
        first, second = triton(*call), triton(*call)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), f"{call[0]}"


def compiled(device: torch.device, shape: dict) -> None:
    """One graph of all ops, with the gradients."""
    made: list[Any] = [(case, OPS[case.op].function, *rest) for case, *rest in calls(device, shape, losses=False)]

    def step() -> list[Tensor]:
        found = [function(*x, **keywords, backend="triton") for _, function, x, keywords in made]
        return [out for each in found for out in (each if isinstance(each, tuple) else [each])]

    backend = "inductor" if device.type == "cuda" else "aot_eager"
    wanted = [x for case, _, tensors, _ in made if differentiated(case) for x in tensors]
    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend=backend)):
        found = function()
        total = sum(x.square().mean() for x in found if x.requires_grad)
        results.append([*found, *torch.autograd.grad(total, wanted)])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b) or distance(a, b) < 1e-5


def autocast(device: torch.device, shape: dict) -> None:
    case = variants("assign", shape)[0]
    x, keywords = arguments(case, device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        found = triton(case, x, keywords)
    assert found[0].dtype == torch.bfloat16 and found[1].dtype == torch.float32
    assert distance(found[0], ops.assign(*x, backend="reference")) < FLOORS[torch.bfloat16]


def nothing_waits(device: torch.device, shape: dict) -> None:
    """No op waits for the device. A target out of range raises only when the counts are read."""
    made = calls(device, shape)
    x = arguments(variants("assign", shape)[0], device)[0]
    target = torch.zeros(shape["B"], 20, 20, dtype=torch.uint8, device=device)
    target[1, 2, 3] = 9
    count = partial(ops.segment_and_count, *x[:2], target, *x[2:], num_classes=3, backend="triton")
    metrics = ClusterMetrics(shape["K"], 3)
    metrics.add(torch.zeros(shape["K"], 3, dtype=torch.int64, device=device), torch.zeros((), device=device).long())
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for call in made:
            triton(*call)
        found = count(return_outside=True)
        metrics.add(*found)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found[1] == 1 and found[0].sum() == target.numel() - 1
    for act in (metrics.compute, partial(count, check=True)):
        try:
            act()
        except ValueError as error:
            assert "1 positions" in str(error) or "target holds 9" in str(error)
        else:
            raise AssertionError("a target out of range did not raise")


def captured(device: torch.device, shape: dict) -> None:
    """A CUDA graph of all ops, forward and backward, replays to the same bits on other input."""
    made = calls(device, shape)

    def step() -> list[Tensor]:
        return [result for call in made for result in triton(*call)]

    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = step()
    with torch.no_grad():
        for _, tensors, _ in made:
            tensors[0].mul_(0.5)
    graph.replay()
    torch.cuda.synchronize(device)
    assert all(torch.equal(a, b) for a, b in zip(kept, step(), strict=True))


def on_a_side_stream(device: torch.device) -> None:
    """Kernels run on the current stream, after what is queued there."""
    x = [t.detach() for t in arguments(variants("assign", COCO)[0], device)[0]]
    expected = ops.assign(*x, backend="triton")
    busy = torch.zeros(2**26, device=device)
    late = torch.zeros_like(x[0])
    side = torch.cuda.Stream(device)
    torch.cuda.synchronize(device)
    with torch.cuda.stream(side):
        for _ in range(50):
            busy.add_(1)
        late.copy_(x[0])
        found = ops.assign(late, *x[1:], backend="triton")
    torch.cuda.synchronize(device)
    assert torch.equal(found, expected)


def on_another_gpu(device: torch.device) -> None:
    other = torch.device("cuda", (torch.cuda.current_device() + 1) % torch.cuda.device_count())
    x = arguments(variants("assign", SMALL)[0], device)[0]
    there = [t.detach().to(other) for t in x]
    assert torch.equal(ops.assign(*there, backend="triton").cpu(), ops.assign(*x, backend="triton").cpu())


def beyond_32_bits(device: torch.device) -> None:
    """The last image of a map of more than 2^31 elements has the same labels as alone."""
    f = torch.empty(33, 256, 512, 512, dtype=torch.float16, device=device)
    f[-1].normal_()
    H = torch.randn(33, 3, 256, device=device, dtype=torch.float16) / 16
    labels = ops.segment(f, H, backend="triton")
    assert f.numel() > 2**31
    assert torch.equal(labels[-1:], ops.segment(f[-1:].clone(), H[-1:], backend="triton"))


def checks(device: torch.device, small: dict) -> Iterator[Check]:
    """Names, and functions that raise if something is wrong.

    Most of the time goes into compiling for each dtype, layout, C and K. So all settings are
    checked at one small shape, and the default settings at the paper's shapes.
    """
    yield from value_checks(device, small, tuple(FLOORS), True)
    yield from layout_checks(device, small)
    yield from label_checks(device, small)
    yield 'tf32 with the matmul precision "high"', partial(tf32, device, small)
    yield "reruns give the same bits", partial(reruns, device, small)
    yield "torch.compile(fullgraph=True)", partial(compiled, device, small)
    yield "autocast", partial(autocast, device, small)
    if device.type != "cuda":
        return
    for shape in (COCO, POTSDAM):
        yield from value_checks(device, shape, (torch.float32, torch.bfloat16), False)
        large = Case("", **shape)
        yield f"segment to {shape['size']}", partial(segmentation, large, device, "probs")
        yield f"refined_labels {shape['size']}", partial(refinement, replace(large, op="refined_labels", C=3), device)
    yield "nothing waits for the device", partial(nothing_waits, device, small)
    yield "captured in a CUDA graph", partial(captured, device, small)
    yield "on a side stream", partial(on_a_side_stream, device)
    if torch.cuda.device_count() > 1:
        yield "on another GPU than the current one", partial(on_another_gpu, device)
    if torch.cuda.get_device_properties(device).total_memory > 20e9:  # not what is free: the list is always the same
        yield "more than 2^31 elements", partial(beyond_32_bits, device)


def run(device: torch.device, small: dict = SMALL) -> tuple[int, list[str]]:
    """Run all checks; returns their number and a line for each that failed."""
    number, failed = 0, []
    for name, check in checks(device, small):
        number += 1
        try:
            check()
        except Exception as error:  # whatever goes wrong on a device is a failure of this check
            failed.append(f"{name}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
    return number, failed
