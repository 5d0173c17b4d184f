"""Correctness of the Triton kernels on the device they run on: what `infoseg bench --device cuda` does before it times.

Truth is the reference in float64 on the same device. An error may be twice that of the reference in the kernel's own
dtype, and a floor for what a kernel rounds and the reference does not.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..model import STRIDE
from ..ops.dispatch import kernel
from ..recipe.appearance import appearance_statistics, appearance_term, information_of_moments, local_appearance
from ..recipe.refinement import Colours, Refinement, pixel_labels, refined_labels, refined_probs
from ..reference import refined_scores
from ..scores.metrics import ClusterMetrics

# Of relative 2-norms: global features and coefficients are rounded to 16 bits before their products.
FLOORS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}
TF32_FLOOR = 4e-3
# The logarithms of determinants carry up to 1 / r^2 = 100 times the rounding of the moments.
TERM_FLOORS = {torch.float32: 1e-4, torch.bfloat16: 0.1}
NAMES = ("features", "global_features", "weight", "bias")
SMALL = {"B": 4, "C": 70, "D": 9, "K": 5, "h": 9, "w": 13}  # ragged in every direction
COCO = {"B": 16, "C": 256, "D": 64, "K": 15, "h": 32, "w": 32}
POTSDAM = {"B": 8, "C": 128, "D": 64, "K": 6, "h": 50, "w": 50}
LOSSES = [
    {"estimator": "jsd", "negatives": "same_position", "num_negatives": 1},
    {"estimator": "jsd", "negatives": "same_position", "num_negatives": 2},
    {"estimator": "jsd", "negatives": "reassigned", "num_negatives": 1},
    {"estimator": "jsd", "negatives": "reassigned", "num_negatives": 2},
    {"estimator": "jsd", "negatives": "same_position", "num_negatives": "all", "balance": 0.5},
    {"estimator": "infonce", "num_negatives": 1},
    {"estimator": "infonce", "num_negatives": "all", "balance": 2.0},
]


def inputs(shape: dict, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """features, global_features, weight and bias whose similarities are of order 1."""
    B, C, D, K, h, w = (shape[name] for name in ("B", "C", "D", "K", "h", "w"))
    sizes = ((B, C, h, w), 1.0), ((B, K, D), 0.5), ((D, C), C**-0.5), ((D,), 0.1)
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, generator=generator).mul_(scale).to(device, dtype) for size, scale in sizes]


def results(op: Callable, x: list[Tensor], upstream: Tensor | None, **how) -> list[Tensor]:
    """The value and its gradients."""
    x = [t.detach().requires_grad_() for t in x]
    out = op(*x, **how)
    upstream = torch.ones_like(out) if upstream is None else upstream.to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, x, upstream)]


def distance(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30)).item()


def close(op: Callable, x: list[Tensor], upstream: Tensor | None, floor: float, **how) -> None:
    found = results(op, x, upstream, backend="triton", **how)
    eager = results(op, x, upstream, backend="reference", **how)
    exact = results(op, [t.double() for t in x], upstream, backend="reference", **how)
    for name, a, e, b in zip(("value", *NAMES), found, eager, exact, strict=True):
        error, allowed = distance(a, b), 2 * distance(e, b) + floor
        assert error <= allowed, f"{name}: error {error:.2e}, allowed {allowed:.2e}"


@contextlib.contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def loss_mask(x: list[Tensor]) -> Tensor:
    f = x[0]
    return torch.rand(f.shape[0], *f.shape[2:], generator=torch.Generator().manual_seed(1)).to(f.device) < 0.7


def statistics(x: list[Tensor]) -> Tensor:
    """Three of them for every position."""
    f = x[0]
    generator = torch.Generator().manual_seed(3)
    return torch.randn(len(f), 3, *f.shape[2:], generator=generator, dtype=torch.float64).to(f.device)


def images(shape: dict, device: torch.device) -> Tensor:
    """Three channels, smooth and grainy, that features of this shape cover."""
    B, h, w = (shape[name] for name in ("B", "h", "w"))
    generator = torch.Generator().manual_seed(4)
    smooth = F.interpolate(torch.rand(B, 3, h, w, generator=generator), scale_factor=STRIDE, mode="bilinear")
    return (0.8 * smooth + 0.2 * torch.rand(smooth.shape, generator=generator)).to(device)


def appearance(device: torch.device, shape: dict) -> None:
    """Of images in every layout, in cells of whole pixels."""
    x = images(shape, device)
    size, one = (shape["h"], shape["w"]), (1, shape["w"])
    expected = {cells: local_appearance(x, cells, backend="reference") for cells in (size, one)}
    for given in (x, x.to(memory_format=torch.channels_last), x.mT.contiguous().mT):
        for cells, truth in expected.items():
            torch.testing.assert_close(local_appearance(given, cells, backend="triton"), truth, rtol=1e-5, atol=1e-5)


def statistics_of_appearance(device: torch.device, shape: dict, dtype: torch.dtype) -> None:
    y = local_appearance(images(shape, device), (shape["h"], shape["w"]), backend="reference").to(dtype)
    mask = torch.rand(y[:, 0].shape, generator=torch.Generator().manual_seed(5)).to(device) < 0.7
    for radius, valid in ((0, mask), (1, None), (3, mask)):
        found, eager = (appearance_statistics(y, valid, radius, backend=name) for name in ("triton", "reference"))
        exact = appearance_statistics(y.double(), valid, radius, backend="reference")
        assert distance(found, exact) <= 2 * distance(eager, exact) + FLOORS[dtype], f"radius {radius}"


def information(device: torch.device, shape: dict, dtype: torch.dtype) -> None:
    """With the gradient by the moments; both backends form it in float64 from the same numbers."""
    x = inputs(shape, dtype, device)
    y = local_appearance(images(shape, device), (shape["h"], shape["w"]), backend="reference").to(dtype)
    Y = appearance_statistics(y, backend="reference")
    moments, total = ops.class_moments(*x, statistics=Y, backend="reference"), Y.sum(dim=(0, 2, 3))
    found, expected = (
        # The interpreter hands numbers to a kernel in float32, which holds this one.
        results(lambda M, name=name: information_of_moments(M, total, 0.125, backend=name), [moments], None)
        for name in ("triton", "reference")
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=10 * torch.finfo(dtype).eps, atol=1e3 * torch.finfo(dtype).eps)


def appearance_checks(device: torch.device, shape: dict) -> Iterator[tuple[str, Callable[[], None]]]:
    """Each part of the term of the default recipe, then the whole of it with its gradients."""
    where = f"{shape['h']}x{shape['w']}"
    yield f"local_appearance {where}", lambda: appearance(device, shape)
    for dtype in (torch.float32, torch.float64):
        if dtype in FLOORS:
            told = f"{str(dtype)[6:]} {where}"
            yield f"appearance_statistics {told}", lambda d=dtype: statistics_of_appearance(device, shape, d)
            yield f"information_of_moments {told}", lambda d=dtype: information(device, shape, d)
    for dtype, smooth in ((torch.float32, 0), (torch.float32, 1), (torch.bfloat16, 1)):
        x = inputs(shape, dtype, device)
        how = {"images": images(shape, device), "smooth": smooth} | ({"mask": loss_mask(x)} if smooth else {})
        name = f"appearance_term {str(dtype)[6:]} {where} smooth {smooth}"
        yield name, lambda x=x, how=how, d=dtype: close(appearance_term, x, None, TERM_FLOORS[d], **how)


def value_checks(
    device: torch.device, shape: dict, dtype: torch.dtype, losses: list[dict], channels_last: bool = False
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Every differentiable op with its gradients; every second loss with a mask."""
    x = inputs(shape, dtype, device)
    if channels_last:
        x[0] = x[0].to(memory_format=torch.channels_last)
    f, K, floor = x[0], shape["K"], FLOORS[dtype]
    upstream = torch.randn(len(f), K, *f.shape[2:], generator=torch.Generator().manual_seed(2)).to(device)
    where = f"{str(dtype)[6:]} {shape['h']}x{shape['w']}{' channels last' if channels_last else ''}"
    for op in (ops.local_global_similarity, ops.assign):
        yield f"{op.__name__} {where}", lambda op=op: close(op, x, upstream, floor)
    Y = statistics(x)
    yield f"class_moments {where}", lambda: close(ops.class_moments, x, upstream[0, :, :3, 0], floor, statistics=Y)
    if kernel("mutual_information_loss", "triton").unsupported(device.type, dtype):
        return
    for how, masked in zip(losses, itertools.cycle((False, True))):
        told = " ".join(map(str, how.values())) + (" mask" if masked else "")
        how = how | ({"mask": loss_mask(x)} if masked else {})
        name = f"mutual_information_loss {told} {where}"
        yield name, lambda how=how: close(ops.mutual_information_loss, x, None, floor, **how)


def tf32(device: torch.device, shape: dict) -> None:
    x = inputs(shape, torch.float32, device)
    with matmul_precision("high"):
        close(ops.mutual_information_loss, x, None, TF32_FLOOR)


def none_short(scores: Tensor, labels: Tensor, dtype: torch.dtype) -> None:
    """No label's score, of [B, K, H, W], is below the highest by more than what rounding in `dtype` may leave."""
    short = scores.amax(dim=1) - scores.gather(1, labels.long()[:, None])[:, 0]
    allowed = 16 * torch.finfo(dtype).eps * scores.abs().max().item()
    assert short.max().item() <= allowed, f"a label is {short.max().item():.2e} short of the best class"


def segmentation(
    device: torch.device, dtype: torch.dtype, shape: dict, size: tuple[int, int], interpolate: str
) -> None:
    x = inputs(shape, dtype, device)
    labels = ops.segment(*x, size=size, interpolate=interpolate, backend="triton")
    volume = ops.local_global_similarity(*(t.double() for t in x), backend="reference")
    if interpolate == "probs":
        volume = volume.softmax(dim=1)
    volume = F.interpolate(volume, size=size, mode="bilinear", align_corners=False)
    none_short(volume, labels, dtype)

    target = torch.randint(0, 7, (len(x[0]), *size), generator=torch.Generator().manual_seed(3)).to(device).byte()
    target[0, 0] = 255
    how = {"num_classes": 7, "interpolate": interpolate, "backend": "triton"}
    counts, again = ops.segment_and_count(*x[:2], target, *x[2:], return_labels=True, **how)
    assert torch.equal(again, labels)
    K = shape["K"]
    cells = (labels.long() * 7 + target.long())[target != 255]
    assert torch.equal(counts, torch.bincount(cells, minlength=7 * K).view(K, 7))
    assert torch.equal(ops.segment_and_count(*x[:2], target, *x[2:], **how), counts)


def pixel_labels_inputs(
    shape: dict, size: tuple[int, int], dtype: torch.dtype, device: torch.device, colours: int = 3
) -> list[Tensor]:
    """prior, colour, around, residual and log_scale, of so many colours."""
    B, K, h, w = (shape[name] for name in ("B", "K", "h", "w"))
    sizes = (B, K, h, w), (B, colours, *size), (B, colours, h, w), (K, colours, 2 * colours + 1), (K,)
    generator = torch.Generator().manual_seed(6)
    prior, *others = (torch.randn(size, generator=generator) for size in sizes)
    return [x.to(device, dtype) for x in (torch.softmax(2 * prior, dim=1), *others)]


def refined_labels_inputs(shape: dict, device: torch.device) -> tuple[Tensor, Colours, Refinement, tuple[int, int]]:
    """Probabilities, colours, refinement and size of `refined_labels`."""
    size = (20, 20)
    probs, colour, around, residual, log_scale = pixel_labels_inputs(shape, size, torch.float32, device)
    return probs, Colours(colour, around), Refinement(residual, log_scale, 0, passes=1), size


def refinement(device: torch.device, dtype: torch.dtype, shape: dict, size: tuple[int, int], colours: int = 3) -> None:
    x = pixel_labels_inputs(shape, size, dtype, device, colours)
    found = pixel_labels(*x, backend="triton")
    prior, colour, around, *classes = (t.double() for t in x)
    scores = [refined_scores(*of_image, *classes) for of_image in zip(prior, colour, around, strict=True)]
    none_short(torch.stack(scores), found, dtype)
    strided = [t.mT.contiguous().mT if t.dim() > 1 else t for t in x]
    assert torch.equal(pixel_labels(*strided, backend="triton"), found)
    if any(m % n for n, m in zip(prior.shape[2:], size, strict=True)):
        return
    probs = refined_probs(*x, backend="triton")
    truth = torch.stack([F.adaptive_avg_pool2d(of.softmax(dim=0), prior.shape[2:]) for of in scores])
    torch.testing.assert_close(probs.double(), truth, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)
    assert torch.equal(refined_probs(*strided, backend="triton"), probs)


def reruns(device: torch.device, shape: dict) -> None:
    x = inputs(shape, torch.float32, device)
    moments = partial(ops.class_moments, statistics=statistics(x))
    term = partial(appearance_term, images=images(shape, device), smooth=1)
    for op, how in [
        (ops.assign, {}),
        (moments, {}),
        (term, {}),
        *((ops.mutual_information_loss, how) for how in LOSSES),
    ]:
        first, second = (results(op, x, None, backend="triton", **how) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), f"{op} {how}"


def compiled(device: torch.device, shape: dict) -> None:
    x = inputs(shape, torch.float32, device)
    Y = statistics(x)

    def step(*x):
        moments = ops.class_moments(*x, statistics=Y, backend="triton")
        loss = ops.mutual_information_loss(*x, backend="triton") + moments.square().mean()
        return loss + ops.assign(*x, backend="triton").square().mean()

    backend = "inductor" if device.type == "cuda" else "aot_eager"
    found = results(torch.compile(step, fullgraph=True, backend=backend), x, None)
    for a, b in zip(found, results(step, x, None), strict=True):
        assert distance(a, b) < 1e-5


def autocast(device: torch.device, shape: dict) -> None:
    x = inputs(shape, torch.float32, device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        found = results(ops.assign, x, None, backend="triton")
    assert found[0].dtype == torch.bfloat16 and found[1].dtype == torch.float32
    assert distance(found[0], ops.assign(*x, backend="reference")) < FLOORS[torch.bfloat16]


def nothing_waits(device: torch.device, shape: dict) -> None:
    """No op waits for the device, and a target out of range raises when the counts are looked at."""
    x = [t.requires_grad_() for t in inputs(shape, torch.float32, device)]
    target = torch.zeros(shape["B"], 20, 20, dtype=torch.uint8, device=device)
    target[1, 2, 3] = 9
    Y, pixels = statistics(x), images(shape, device)
    seen = refined_labels_inputs(shape, device)
    metrics = ClusterMetrics(shape["K"], 3)
    metrics.add(torch.zeros(shape["K"], 3, dtype=torch.int64, device=device), torch.zeros((), device=device).long())
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for how in LOSSES:
            ops.mutual_information_loss(*x, backend="triton", **how).backward()
        ops.assign(*x, backend="triton").sum().backward()
        ops.class_moments(*x, statistics=Y, backend="triton").sum().backward()
        appearance_term(*x, images=pixels, smooth=1, backend="triton").backward()
        ops.segment(*x, size=(20, 20), backend="triton")
        refined_labels(*seen, backend="triton")
        found = ops.segment_and_count(*x[:2], target, *x[2:], num_classes=3, return_outside=True, backend="triton")
        metrics.add(*found)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found[1] == 1 and found[0].sum() == target.numel() - 1
    for act in (
        metrics.compute,
        lambda: ops.segment_and_count(*x[:2], target, *x[2:], num_classes=3, check=True, backend="triton"),
    ):
        try:
            act()
        except ValueError as error:
            assert "1 positions" in str(error) or "target holds 9" in str(error)
        else:
            raise AssertionError("a target out of range raised nowhere")


def captured(device: torch.device, shape: dict) -> None:
    """A CUDA graph of a training step replays to the same bits on other input."""
    x = [t.requires_grad_() for t in inputs(shape, torch.float32, device)]
    target = torch.zeros(shape["B"], 20, 20, dtype=torch.uint8, device=device)

    Y, pixels = statistics(x), images(shape, device)
    seen = refined_labels_inputs(shape, device)

    def step():
        loss = ops.class_moments(*x, statistics=Y, backend="triton").square().sum()
        loss = loss + appearance_term(*x, images=pixels, smooth=1, backend="triton")
        loss = loss + sum(ops.mutual_information_loss(*x, backend="triton", **how) for how in LOSSES)
        gradients = torch.autograd.grad(loss + ops.assign(*x, backend="triton").square().sum(), x)
        counts = ops.segment_and_count(*x[:2], target, *x[2:], num_classes=3, backend="triton")
        return [loss, *gradients, counts, refined_labels(*seen, backend="triton")]

    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = step()
    with torch.no_grad():
        x[0].mul_(0.5)
        seen[1].pixels.mul_(0.5)
    graph.replay()
    torch.cuda.synchronize(device)
    assert all(torch.equal(a, b) for a, b in zip(kept, step(), strict=True))


def on_a_side_stream(device: torch.device) -> None:
    """Kernels run on the current stream: after what is queued there, whatever the default stream does."""
    x = inputs(COCO, torch.float32, device)
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
    x = inputs(SMALL, torch.float32, device)
    there = [t.to(other) for t in x]
    assert torch.equal(ops.assign(*there, backend="triton").cpu(), ops.assign(*x, backend="triton").cpu())


def beyond_32_bits(device: torch.device) -> None:
    """The last image of a map of more than 2^31 elements is as it is alone."""
    f = torch.empty(33, 256, 512, 512, dtype=torch.float16, device=device)
    f[-1].normal_()
    H = torch.randn(33, 3, 256, device=device, dtype=torch.float16) / 16
    labels = ops.segment(f, H, backend="triton")
    assert f.numel() > 2**31
    assert torch.equal(labels[-1:], ops.segment(f[-1:].clone(), H[-1:], backend="triton"))


def checks(device: torch.device, small: dict) -> Iterator[tuple[str, Callable[[], None]]]:
    """Names and functions that raise when something is wrong.

    Most of the time goes into compiling, for each dtype, layout, C and K anew: so all settings at one small shape, and
    at the paper's shapes those that are timed.
    """
    for dtype in FLOORS:
        yield from value_checks(device, small, dtype, LOSSES)
    yield from value_checks(device, small, torch.float32, [LOSSES[0], LOSSES[-1]], channels_last=True)
    yield from appearance_checks(device, small)
    yield "tf32 when PyTorch is told so", lambda: tf32(device, small)
    sizes = ((small["h"], small["w"]), (4 * small["h"], 4 * small["w"]), (20, 17))
    for dtype, size, interpolate in itertools.product(FLOORS, sizes, ("probs", "logits")):
        name = f"segment and segment_and_count {str(dtype)[6:]} {size[0]}x{size[1]} {interpolate}"
        yield name, lambda d=dtype, s=size, i=interpolate: segmentation(device, d, small, s, i)
    for dtype, size, colours in itertools.product((torch.float32, torch.float64), sizes, (3, 1)):
        if dtype in FLOORS:
            name = f"refined_labels {str(dtype)[6:]} {size[0]}x{size[1]}, {colours} colours"
            yield name, lambda d=dtype, s=size, c=colours: refinement(device, d, small, s, c)
    yield "reruns give the same bits", lambda: reruns(device, small)
    yield "torch.compile(fullgraph=True)", lambda: compiled(device, small)
    yield "autocast", lambda: autocast(device, small)
    if device.type != "cuda":
        return
    for shape, dtype in itertools.product((COCO, POTSDAM), (torch.float32, torch.bfloat16)):
        yield from value_checks(device, shape, dtype, [LOSSES[0], LOSSES[-1]])
    for shape in (COCO, POTSDAM):
        yield from appearance_checks(device, shape)
    yield "segment COCO-Stuff to 128x128", lambda: segmentation(device, torch.float32, COCO, (128, 128), "probs")
    yield "refined_labels COCO-Stuff 128x128", lambda: refinement(device, torch.float32, COCO, (128, 128))
    yield "nothing waits for the device", lambda: nothing_waits(device, small)
    yield "captured in a CUDA graph", lambda: captured(device, small)
    yield "on a side stream", lambda: on_a_side_stream(device)
    if torch.cuda.device_count() > 1:
        yield "on another GPU than the current one", lambda: on_another_gpu(device)
    if torch.cuda.mem_get_info(device)[0] > 12e9:
        yield "more than 2^31 elements", lambda: beyond_32_bits(device)


def run(device: torch.device, small: dict = SMALL) -> tuple[int, list[str]]:
    """Run every check, whatever the others do: their number, and a line for each that failed."""
    number, failed = 0, []
    for name, check in checks(device, small):
        number += 1
        try:
            check()
        except Exception as error:  # whatever goes wrong on a device is this check's failure, told with its name
            failed.append(f"{name}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
    return number, failed
