"""The ops at the shapes that are compiled ahead of time and costed, run on fake CUDA tensors so that launches are seen.

`record` calls a backend's kernels as `infoseg_fast.ops` does (see `infoseg_fast.ops.protocol`); nothing
is computed.
"""

import contextlib
from dataclasses import dataclass, field

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ..kernels.launch import Launch, recorded
from ..ops.protocol import LossSettings, Needs
from ..reference import accumulation_dtype

ALL_GRADIENTS = Needs(True, True, True)


@dataclass(frozen=True)
class Case:
    """An op at a shape. `settings` are the op's own: temperature, interpolate, size, num_classes, the number of
    statistics and whether V is kept, a loss's settings, the radius of a mean. The features of the appearance's ops are
    images and their appearance, those of the refined labels the colours around the positions.
    """

    op: str
    name: str
    B: int = 64
    C: int = 256
    K: int = 15
    h: int = 32
    w: int = 32
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    bias: bool = True
    masked: bool = False
    device: str = "cuda:0"
    settings: dict = field(default_factory=dict, hash=False)


def products_of(channels: int) -> int:
    """How many products (1, y) has, of so many channels of y."""
    return (channels + 1) * (channels + 2) // 2


def record(case: Case, fake: bool = True) -> dict[str, list[Launch]]:
    """The launches of an op, "forward" and, where it is differentiable, "backward".

    fake: on fake tensors on the case's device; else on true ones on the CPU, which hold nothing yet.
    """
    from ..kernels import KERNELS

    kernel, device = KERNELS[case.op], case.device if fake else "cpu"
    with FakeTensorMode() if fake else contextlib.nullcontext(), torch.no_grad():
        layout = torch.channels_last if case.channels_last else torch.contiguous_format
        f = torch.empty(case.B, case.C, case.h, case.w, dtype=case.dtype, device=device, memory_format=layout)
        G = torch.empty(case.B, case.K, case.C, dtype=accumulation_dtype(case.dtype), device=device)
        g0 = G.new_empty(case.B, case.K) if case.bias else None
        return _RUN[case.op](kernel, case, f, G, g0)


def _similarity(kernel, case, f, G, g0):
    with recorded() as forward:
        z, saved = kernel.forward(f, G, g0, ALL_GRADIENTS)
    with recorded() as backward:
        kernel.backward(z, saved, f, G, g0, ALL_GRADIENTS)
    return {"forward": forward, "backward": backward}


def _assign(kernel, case, f, G, g0):
    temperature = case.settings.get("temperature", 1.0)
    with recorded() as forward:
        V, _ = kernel.forward(f, G, g0, temperature, ALL_GRADIENTS)
    with recorded() as backward:
        kernel.backward(torch.empty_like(V), [V], f, G, g0, temperature, ALL_GRADIENTS)
    return {"forward": forward, "backward": backward}


def _class_moments(kernel, case, f, G, g0):
    Y = G.new_empty(case.B, case.settings.get("statistics", 21), case.h, case.w)
    with recorded() as forward:
        needs = ALL_GRADIENTS if case.settings.get("keep", True) else Needs(False, False, False)
        moments, saved = kernel.forward(f, G, g0, Y, 1.0, needs)
    with recorded() as backward:
        if saved:
            kernel.backward(moments, saved, f, G, g0, Y, 1.0, ALL_GRADIENTS)
    return {"forward": forward, "backward": backward}


def _segment(kernel, case, f, G, g0):
    size, interpolate = case.settings.get("size", (case.h, case.w)), case.settings.get("interpolate", "probs")
    with recorded() as forward:
        kernel.forward(f, G, g0, 1.0, size, interpolate)
    return {"forward": forward}


def _segment_and_count(kernel, case, f, G, g0):
    size, interpolate = case.settings.get("size", (case.h, case.w)), case.settings.get("interpolate", "probs")
    target = torch.empty(case.B, *size, dtype=torch.uint8, device=f.device)
    labels_wanted = case.settings.get("labels_wanted", False)
    with recorded() as forward:
        kernel.forward(f, G, g0, target, 1.0, interpolate, case.settings["num_classes"], 255, labels_wanted)
    return {"forward": forward}


def _local_appearance(kernel, case, f, G, g0):
    with recorded() as forward:
        kernel.forward(f, case.settings["size"])
    return {"forward": forward}


def _appearance_statistics(kernel, case, f, G, g0):
    mask = torch.empty(case.B, case.h, case.w, dtype=torch.bool, device=f.device) if case.masked else None
    with recorded() as forward:
        kernel.forward(f, mask, case.settings.get("smooth", 0))
    return {"forward": forward}


def _information_of_moments(kernel, case, f, G, g0):
    moments = G.new_empty(case.K, products_of(case.C))
    with recorded() as forward:
        kernel.forward(moments, moments.new_empty(moments.shape[1]), 0.1, (case.settings.get("gradient_wanted", True),))
    return {"forward": forward}


def _refinement(kernel, case, f, G, g0):
    prior, colour = f.new_empty(case.B, case.K, case.h, case.w), f.new_empty(case.B, case.C, *case.settings["size"])
    with recorded() as forward:
        kernel.forward(prior, colour, f, f.new_empty(case.K, case.C, 2 * case.C + 1), f.new_empty(case.K))
    return {"forward": forward}


def _loss(kernel, case, f, G, g0):
    settings = LossSettings(**{
        "temperature": 1.0,
        "estimator": "jsd",
        "negatives": "same_position",
        "num_negatives": 1,
        "balance": 0.0,
    } | case.settings)  # fmt: skip
    valid = torch.empty(case.B, case.h * case.w, dtype=torch.bool, device=f.device) if case.masked else None
    with recorded() as forward:
        loss, state = kernel.forward(f, G, g0, valid, settings, ALL_GRADIENTS)
    with recorded() as backward:
        kernel.backward(loss, state, f, G, g0, valid, settings, ALL_GRADIENTS)
    return {"forward": forward, "backward": backward}


_RUN = {
    "local_global_similarity": _similarity,
    "assign": _assign,
    "class_moments": _class_moments,
    "segment": _segment,
    "segment_and_count": _segment_and_count,
    "mutual_information_loss": _loss,
    "local_appearance": _local_appearance,
    "appearance_statistics": _appearance_statistics,
    "information_of_moments": _information_of_moments,
    "refined_labels": _refinement,
    "refined_probs": _refinement,
}

_HALF, _BFLOAT, _FLOAT, _DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
_UP = {"size": (128, 128)}


def _loss_case(negatives: str, number: int, name: str, **more) -> Case:
    """A case of the loss: infonce, or jsd with these negatives, with a number of them; balance, a mask and a bias."""
    estimator = "infonce" if negatives == "infonce" else "jsd"
    how = {"negatives": "same_position" if estimator == "infonce" else negatives, "num_negatives": number}
    return Case(
        "mutual_information_loss",
        name,
        masked=True,
        settings={"estimator": estimator, "balance": 1.0} | how,
        **more,
    )


def _images(name: str, channels: int, side: int, **more) -> Case:
    """A case of the appearance of square images in cells of 4 x 4 pixels."""
    size = (side // 4, side // 4)
    return Case("local_appearance", name, C=channels, h=side, w=side, settings={"size": size}, **more)


_LOSSES = ("same_position", "reassigned", "infonce")
# Compiled in CI: every kernel with every dtype, and every way through it, at the shapes that fill the registers most.
AOT_CASES = [
    *[Case("assign", "assign", K=27, dtype=dtype) for dtype in (_FLOAT, _BFLOAT, _HALF, _DOUBLE)],
    Case("local_global_similarity", "similarity", K=27),
    *[Case("class_moments", "class moments", K=27, dtype=dtype) for dtype in (_FLOAT, _BFLOAT, _HALF, _DOUBLE)],
    Case("segment", "segment", K=27),
    Case("segment_and_count", "segment and count", K=27, settings=_UP | {"num_classes": 27}),
    Case("segment_and_count", "segment and count, float64", K=27, dtype=_DOUBLE, settings=_UP | {"num_classes": 27}),
    _loss_case("same_position", 1, "one partner, scores kept"),
    _loss_case("same_position", 1, "one partner, scores formed anew", C=128, dtype=_BFLOAT),
    *[_loss_case("infonce", 63, "all partners", C=128, dtype=dtype) for dtype in (_FLOAT, _BFLOAT, _HALF)],
    _loss_case("same_position", 63, "all partners"),
    _images("appearance", 3, 128),
    *[
        Case("appearance_statistics", "statistics", C=5, dtype=dtype, masked=dtype == _FLOAT)
        for dtype in (_FLOAT, _DOUBLE)
    ],
    *[Case("information_of_moments", "information", C=5, dtype=dtype) for dtype in (_FLOAT, _DOUBLE)],
    *[Case("refined_labels", "refined labels", C=3, dtype=dtype, settings=_UP) for dtype in (_FLOAT, _DOUBLE)],
    *[Case("refined_probs", "refined probs", C=3, dtype=dtype, settings=_UP) for dtype in (_FLOAT, _DOUBLE)],
]
# Compiled by the command besides: layouts, ragged sizes, more classes.
MORE_AOT_CASES = [
    *[Case("assign", "channels last", dtype=dtype, channels_last=True) for dtype in (_FLOAT, _BFLOAT)],
    *[Case("assign", "Potsdam", h=50, w=50, K=6, dtype=dtype) for dtype in (_FLOAT, _BFLOAT)],
    *[Case("assign", "15 classes", dtype=dtype) for dtype in (_FLOAT, _BFLOAT)],
    *[Case("assign", "64 classes", K=64, dtype=dtype) for dtype in (_FLOAT, _BFLOAT)],
    *[Case("assign", "256 classes", K=256, dtype=dtype) for dtype in (_FLOAT, _BFLOAT)],
    Case("assign", "ragged channels", C=100, K=27),
    *[Case("class_moments", f"{K} classes", K=K, dtype=dtype) for K in (15, 64, 256) for dtype in (_FLOAT, _BFLOAT)],
    *[Case("class_moments", "channels last", K=6, dtype=dtype, channels_last=True) for dtype in (_FLOAT, _BFLOAT)],
    Case("class_moments", "not kept", settings={"keep": False}),
    Case("segment_and_count", "many bins", K=256, settings=_UP | {"num_classes": 256}),
    *[_loss_case("same_position", 1, "Potsdam", K=6, h=50, w=50, dtype=dtype) for dtype in (_FLOAT, _BFLOAT)],
    *[_loss_case("reassigned", 1, "reassigned", dtype=dtype) for dtype in (_FLOAT, _BFLOAT)],
    _loss_case("infonce", 63, "channels last", C=128, dtype=_BFLOAT, channels_last=True),
    _images("channels last", 3, 128, channels_last=True),
    *[_images(f"{channels} channels", channels, 128) for channels in (1, 4)],
    Case("local_appearance", "ragged cells", C=3, h=35, w=35, settings={"size": (5, 5)}),
    Case("local_appearance", "one cell", C=3, h=200, w=200, settings={"size": (1, 1)}),
    Case("appearance_statistics", "all count", C=5),
    *[Case("appearance_statistics", f"{d} channels", C=d, h=50, w=50) for d in (3, 6, 20)],
    Case("information_of_moments", "no gradient", C=5, settings={"gradient_wanted": False}),
    *[Case("information_of_moments", f"{d} channels", C=d) for d in (15, 31, 63)],
    *[Case("refined_labels", f"{c} colours", C=c, settings=_UP) for c in (1, 4, 16)],
    Case("refined_labels", "ragged", C=3, settings={"size": (33, 39)}),
    Case("refined_labels", "16 colours, float64", C=16, dtype=_DOUBLE, settings=_UP),
    *[Case("refined_probs", f"{c} colours", C=c, settings=_UP) for c in (1, 4, 16)],
    Case("refined_probs", "positions of 3 x 5", C=3, settings={"size": (96, 160)}),
    Case("refined_probs", "16 colours, float64", C=16, dtype=_DOUBLE, settings=_UP),
]
# Compiled by the command with --all, in a quarter of an hour on two cores: every loss by dtype, K, C and layout.
ALL_AOT_CASES = [
    *[
        _loss_case(negatives, number, name, C=C, dtype=dtype, **shape)
        for negatives in _LOSSES
        for number in (1, 63)
        for dtype in (_FLOAT, _BFLOAT, _HALF)
        for name, C, shape in (
            ("15 classes, 128 channels", 128, {}),
            ("15 classes, 256 channels", 256, {}),
            ("27 classes", 256, {"K": 27}),
            ("Potsdam", 256, {"K": 6, "h": 50, "w": 50}),
        )
    ],
    *[
        _loss_case("infonce", 63, "channels last", C=128, dtype=dtype, channels_last=True)
        for dtype in (_FLOAT, _BFLOAT)
    ],
    *[_loss_case("infonce", 63, "ragged channels", C=100, dtype=dtype) for dtype in (_FLOAT, _BFLOAT)],
    *[_loss_case("infonce", 63, "512 channels", C=512, dtype=dtype) for dtype in (_FLOAT, _BFLOAT)],
    *[
        _loss_case(negatives, 63, f"{K} classes", K=K, dtype=dtype)
        for negatives in _LOSSES
        for K in (64, 256)
        for dtype in (_FLOAT, _BFLOAT)
    ],
]

# The paper's shapes, at a stride of 4.
_COCO, _POTSDAM = {"K": 15, "h": 32, "w": 32}, {"K": 6, "h": 50, "w": 50}
ROOFLINE_CASES = [
    Case(op, name, C=C, dtype=dtype, settings=settings | (up if op.startswith("segment") else {}), **shape)
    for op, settings in (
        ("local_global_similarity", {}),
        ("assign", {}),
        ("class_moments", {}),
        ("segment", {}),
        ("segment_and_count", {"num_classes": 27}),
    )
    for name, shape, up in (("COCO-Stuff", _COCO, {"size": (128, 128)}), ("Potsdam", _POTSDAM, {"size": (200, 200)}))
    for C in (128, 256, 512)
    for dtype in (_FLOAT, _BFLOAT)
]
ROOFLINE_CASES += [
    _loss_case(negatives, 1, f"{name}, {negatives}", C=C, dtype=dtype, **shape)
    for negatives in _LOSSES
    for name, shape in (("COCO-Stuff", _COCO), ("Potsdam", _POTSDAM))
    for C in (128, 256, 512)
    for dtype in (_FLOAT, _BFLOAT)
]
ROOFLINE_CASES += [
    *[_images(name, 3, side) for name, side in (("COCO-Stuff", 128), ("Potsdam", 200))],
    *[
        Case("appearance_statistics", f"{name}, radius {radius}", C=5, settings={"smooth": radius}, **shape)
        for name, shape in (("COCO-Stuff", _COCO), ("Potsdam", _POTSDAM))
        for radius in (0, 1)
    ],
    *[
        Case("information_of_moments", name, C=5, K=shape["K"])
        for name, shape in (("COCO-Stuff", _COCO), ("Potsdam", _POTSDAM))
    ],
    *[
        Case(op, name, C=3, settings={"size": (4 * shape["h"], 4 * shape["w"])}, **shape)
        for op in ("refined_labels", "refined_probs")
        for name, shape in (("COCO-Stuff", _COCO), ("Potsdam", _POTSDAM))
    ],
]
