"""Checks of the Triton kernels on the device. `infoseg bench --device cuda` runs them before it
times: values and gradients of every op with a Triton kernel (`cuda_values`), and its behaviour
under reruns, torch.compile, autocast, CUDA graphs, streams and large tensors.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..ops import OPS
from ..ops.record import Case
from ..scores.metrics import ClusterMetrics
from . import cuda_values
from .cuda_values import SMALL, Check, distance, triton, variants
from .providers import arguments, differentiated


def calls(device: torch.device, shape: dict, losses: bool = True) -> list[tuple[Case, list[Tensor], dict]]:
    """Arguments of `triton` for every op and, with `losses`, every variant of the loss."""
    cases = [variants(op, shape)[0] for op in cuda_values.triton_ops()]
    cases += variants("mutual_information_loss", shape)[1:] if losses else []
    return [(case, *arguments(case, device)) for case in cases]


def reruns(device: torch.device, shape: dict) -> None:
    for call in calls(device, shape):
        first, second = triton(*call), triton(*call)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), f"{call[0]}"


def compiled(device: torch.device, shape: dict) -> None:
    """One graph of all ops and their gradients gives the same results."""
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
    assert distance(found[0], ops.assign(*x, backend="reference")) < cuda_values.FLOORS[torch.bfloat16]


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
    """A CUDA graph of all ops, forward and backward, gives the eager bits on other input."""
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
    """Kernels run on the current stream, after the work that is queued there."""
    x = [t.detach() for t in arguments(variants("assign", cuda_values.COCO)[0], device)[0]]
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
    """The last image of a batch of more than 2^31 elements has the same labels as alone."""
    f = torch.empty(33, 256, 512, 512, dtype=torch.float16, device=device)
    f[-1].normal_()
    H = torch.randn(33, 3, 256, device=device, dtype=torch.float16) / 16
    labels = ops.segment(f, H, backend="triton")
    assert f.numel() > 2**31
    assert torch.equal(labels[-1:], ops.segment(f[-1:].clone(), H[-1:], backend="triton"))


def checks(device: torch.device, small: dict) -> Iterator[Check]:
    """Names of checks, and functions that raise if a check fails.

    Compiling for each dtype, layout, C and K takes most of the time. So all settings are checked at
    one small shape, and the default settings at the paper's shapes.
    """
    yield from cuda_values.value_checks(device, small, tuple(cuda_values.FLOORS), True)
    yield from cuda_values.layout_checks(device, small)
    yield from cuda_values.label_checks(device, small)
    yield 'tf32 with the matmul precision "high"', partial(cuda_values.tf32, device, small)
    yield "reruns give the same bits", partial(reruns, device, small)
    yield "torch.compile(fullgraph=True)", partial(compiled, device, small)
    yield "autocast", partial(autocast, device, small)
    if device.type != "cuda":
        return
    for shape in (cuda_values.COCO, cuda_values.POTSDAM):
        yield from cuda_values.value_checks(device, shape, (torch.float32, torch.bfloat16), False)
        large = Case("", **shape)
        yield f"segment to {shape['size']}", partial(cuda_values.segmentation, large, device, "probs")
        refined = replace(large, op="refined_labels", C=3)
        yield f"refined_labels {shape['size']}", partial(cuda_values.refinement, refined, device)
    yield "nothing waits for the device", partial(nothing_waits, device, small)
    yield "captured in a CUDA graph", partial(captured, device, small)
    yield "on a side stream", partial(on_a_side_stream, device)
    if torch.cuda.device_count() > 1:
        yield "on another GPU than the current one", partial(on_another_gpu, device)
    # The total and not the free memory: processes that run single checks must have the same list.
    if torch.cuda.get_device_properties(device).total_memory > 20e9:
        yield "more than 2^31 elements", partial(beyond_32_bits, device)


def run(device: torch.device, small: dict = SMALL) -> tuple[int, list[str]]:
    """Run all checks. Returns their number, and a line for each that failed."""
    number, failed = 0, []
    for name, check in checks(device, small):
        number += 1
        try:
            check()
        except Exception as error:  # any error on a device is a failure of this check
            failed.append(f"{name}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
    return number, failed
