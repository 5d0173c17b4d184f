"""The ops at the shapes that are compiled ahead of time and costed, run on fake CUDA tensors so that launches are seen.

`record` calls a backend's kernels as `infoseg_fast.ops` does (the protocol is in `infoseg_fast.ops.custom`); nothing
is computed.
"""

from dataclasses import dataclass, field

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ..ops.custom import LossSettings, Needs
from ..reference.similarity import accumulation_dtype
from .launch import Launch, recorded

ALL_GRADIENTS = Needs(True, True, True)


@dataclass(frozen=True)
class Case:
    """An op at a shape. `settings` are the op's own: temperature, interpolate, size, num_classes, a loss's settings."""

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


def record(case: Case) -> dict[str, list[Launch]]:
    """The launches of an op, "forward" and, where it is differentiable, "backward"."""
    from . import KERNELS

    kernel = KERNELS[case.op]
    with FakeTensorMode(), torch.no_grad():
        layout = torch.channels_last if case.channels_last else torch.contiguous_format
        f = torch.empty(case.B, case.C, case.h, case.w, dtype=case.dtype, device=case.device, memory_format=layout)
        G = torch.empty(case.B, case.K, case.C, dtype=accumulation_dtype(case.dtype), device=case.device)
        g0 = G.new_empty(case.B, case.K) if case.bias else None
        return _RUN[case.op](kernel, case, f, G, g0)


def _similarity(kernel, case, f, G, g0):
    with recorded() as forward:
        z = kernel.forward(f, G, g0)
    with recorded() as backward:
        kernel.backward(z, f, G, ALL_GRADIENTS)
    return {"forward": forward, "backward": backward}


def _assign(kernel, case, f, G, g0):
    temperature = case.settings.get("temperature", 1.0)
    with recorded() as forward:
        V = kernel.forward(f, G, g0, temperature)
    with recorded() as backward:
        kernel.backward(V, V, f, G, temperature, ALL_GRADIENTS)
    return {"forward": forward, "backward": backward}


def _segment(kernel, case, f, G, g0):
    size, interpolate = case.settings.get("size", (case.h, case.w)), case.settings.get("interpolate", "probs")
    with recorded() as forward:
        kernel.forward(f, G, g0, 1.0, size, interpolate)
    return {"forward": forward}


def _segment_and_count(kernel, case, f, G, g0):
    size, interpolate = case.settings.get("size", (case.h, case.w)), case.settings.get("interpolate", "probs")
    target = torch.empty(case.B, *size, dtype=torch.uint8, device=case.device)
    labels_wanted = case.settings.get("labels_wanted", False)
    with recorded() as forward:
        kernel.forward(f, G, g0, target, 1.0, interpolate, case.settings["num_classes"], 255, labels_wanted)
    return {"forward": forward}


def _loss(kernel, case, f, G, g0):
    settings = LossSettings(**{
        "temperature": 1.0,
        "estimator": "jsd",
        "negatives": "same_position",
        "num_negatives": 1,
        "balance": 0.0,
    } | case.settings)  # fmt: skip
    valid = torch.empty(case.B, case.h * case.w, dtype=torch.bool, device=case.device) if case.masked else None
    with recorded() as forward:
        loss, state = kernel.forward(f, G, g0, valid, settings, ALL_GRADIENTS)
    with recorded() as backward:
        kernel.backward(loss, f, G, g0, valid, state, settings, ALL_GRADIENTS)
    return {"forward": forward, "backward": backward}


_RUN = {
    "local_global_similarity": _similarity,
    "assign": _assign,
    "segment": _segment,
    "segment_and_count": _segment_and_count,
    "mutual_information_loss": _loss,
}

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Small enough to compile in CI: every kernel, dtype and kind of epilogue once, and what is hardest to fit.
AOT_CASES = [
    *[Case("local_global_similarity", "similarity", dtype=dtype) for dtype in _DTYPES],
    *[Case("assign", "assign", dtype=dtype) for dtype in _DTYPES],
    *[Case("segment", "segment", dtype=dtype) for dtype in _DTYPES],
    *[Case("segment", "segment", dtype=dtype, settings={"size": (128, 128)}) for dtype in _DTYPES],
    Case("segment_and_count", "segment and count", settings={"size": (128, 128), "num_classes": 15}),
    Case("segment_and_count", "segment and count", settings={"size": (128, 128), "num_classes": 256}),
]
