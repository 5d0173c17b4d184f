"""The kernel launches of an op's case, recorded on fake CUDA tensors: nothing is computed and no
GPU is needed.
"""

import contextlib

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ..kernels import KERNELS
from ..kernels.launch import Launch, recorded
from ..ops import OPS
from ..ops.record import Case


def cases_for(*uses: str) -> list[Case]:
    """The cases of all ops for these uses (`Case.uses`), use by use."""
    return [case for use in uses for op in OPS.values() for case in op.cases_for(use)]


def record(case: Case, device: str = "cuda:0", fake: bool = True) -> dict[str, list[Launch]]:
    """The launches of the phases "fold", "forward", "backward" and "gradient of the fold", in this
    order. A phase without launches is left out.

    Args:
        fake: use fake tensors on `device`. Otherwise the tensors are real, uninitialised and on the
            CPU.
    """
    op, kernel, launches = OPS[case.op], KERNELS[case.op], {}
    with FakeTensorMode() if fake else contextlib.nullcontext(), torch.no_grad():
        arguments = op.kernel_arguments(case, torch.device(device if fake else "cpu"))
        if op.wiring.folds:
            features, G, g0 = arguments[:3]
            projection = _projection(case, features)
            with recorded() as launches["fold"]:
                kernel.fold(*projection, kernel.operands(features))
        needs = (op.wiring.needs(case.gradient),) if op.differentiable else ()
        with recorded() as launches["forward"]:
            found = kernel.forward(*arguments, *needs)
        if op.differentiable and case.gradient:
            out, saved = found
            saved = [out, *saved] if op.wiring.saves_output else saved
            with recorded() as launches["backward"]:
                kernel.backward(torch.empty_like(out), saved, *arguments, *needs)
            if op.wiring.folds:
                wanted = True, True, case.bias
                with recorded() as launches["gradient of the fold"]:
                    kernel.fold_gradient(G, g0, *projection, wanted)
    return {phase: started for phase, started in launches.items() if started}


def _projection(case: Case, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """global_features, weight and bias, uninitialised."""
    H, W = features.new_empty(case.B, case.K, case.D), features.new_empty(case.D, case.C)
    return H, W, features.new_empty(case.D) if case.bias else None
