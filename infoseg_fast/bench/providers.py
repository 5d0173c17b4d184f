"""What `infoseg bench` times: an op and its competitors at a case of the op's record, and their errors."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ..ops import OPS
from ..ops.record import Case
from . import baselines

Step = Callable[[], list[Tensor]]


def chosen_cases(use: str, names: Sequence[str]) -> list[Case]:
    """The cases for `use` whose op or name is among `names`; all cases if there are no names."""
    cases = [case for op in OPS.values() for case in op.cases_for(use)]
    return [case for case in cases if not names or case.op in names or case.name in names]


def providers(
    case: Case, keywords: dict, compiled: bool = False, autotuned: bool = False, backend: str = "auto"
) -> dict[str, Callable]:
    """Functions of the case's tensors by the name of the provider. `keywords` are those of `Op.arguments`.

    "eager" is the best PyTorch of the same algebra (`baselines`), or the reference if there is none.
    """
    op = OPS[case.op]
    choice = {"backend": backend} if backend in op.backends else {}
    eager = partial(getattr(baselines, case.op, op.reference), **keywords)
    found = {"infoseg_fast": partial(op.function, **keywords, **choice)}
    if case.op == "mutual_information_loss" and not keywords:
        found["as written"] = baselines.as_written
    found["eager"] = eager
    if op.wiring is not None:  # the compiler cannot trace numpy and scipy
        if compiled:
            found["compiled"] = torch.compile(lambda *x: eager(*x), dynamic=False)
        if autotuned:
            mode = "max-autotune-no-cudagraphs"
            found["max-autotune"] = torch.compile(lambda *x: eager(*x), dynamic=False, mode=mode)
    return found


def differentiated(case: Case) -> bool:
    return OPS[case.op].differentiable and case.gradient


def arguments(case: Case, device: torch.device, dtype: torch.dtype | None = None) -> tuple[list[Tensor], dict]:
    """`Op.arguments` of the case, by default in its own dtype. Tensors require gradients if the case has them."""
    tensors, keywords = OPS[case.op].arguments(case, device, dtype or case.dtype)
    return [x.requires_grad_() if differentiated(case) else x for x in tensors], keywords


def steps(case: Case, provider: Callable, tensors: list[Tensor]) -> dict[str, Step]:
    """The functions to time by mode, "forward" and, for a case with gradients, "forward + backward".

    A step returns the results: the value or values, then the gradients.
    """

    def forward() -> list[Tensor]:
        with torch.no_grad():
            out = provider(*tensors)
        return list(out) if isinstance(out, tuple) else [out]

    if not differentiated(case):
        return {"forward": forward}
    upstream = upstream_of(forward()[0])

    def both() -> list[Tensor]:
        out = provider(*tensors)
        return [out.detach(), *torch.autograd.grad(out, tensors, upstream)]

    return {"forward": forward, "forward + backward": both}


def upstream_of(value: Tensor) -> Tensor:
    """An upstream gradient: 1 for a scalar. Equal numbers would give probabilities a gradient of 0."""
    return torch.linspace(1, 2, value.numel(), device=value.device).to(value.dtype).view_as(value)


def relative_errors(found: list[Tensor], truth: list[Tensor]) -> list[float]:
    """Relative 2-norm of the error of each result; for integer results the share that differs."""
    found, truth = ([torch.as_tensor(x) for x in results] for results in (found, truth))
    return [
        ((a.double() - b.double()).norm() / b.double().norm()).item()
        if a.is_floating_point()
        else (a != b).double().mean().item()
        for a, b in zip(found, truth, strict=True)
    ]


def described(case: Case) -> dict[str, object]:
    """The columns of a table row that the case gives."""
    return {
        "op": case.op,
        "case": case.name,
        "shape": f"B={case.B} C={case.C} D={case.D} K={case.K} {case.h}x{case.w} {case.size[0]}x{case.size[1]}",
        "dtype": str(case.dtype).removeprefix("torch."),
    }
