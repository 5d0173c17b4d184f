"""Every op of the records in the interpreter: the checks of `infoseg bench --device cuda`, and the
custom ops.
"""

from dataclasses import asdict, replace

import pytest
import torch

from infoseg_fast.bench import cuda_checks
from infoseg_fast.kernels import KERNELS
from infoseg_fast.ops import OPS

CPU = torch.device("cpu")
TINY = {"B": 3, "C": 6, "D": 5, "K": 3, "h": 3, "w": 5, "size": (12, 20)}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_every_check_that_needs_no_driver_passes(monkeypatch):
    monkeypatch.delitem(cuda_checks.FLOORS, torch.float64)  # the other files here test float64
    number, failed = cuda_checks.run(CPU, TINY)
    assert failed == [] and number > 50


def test_a_wrong_kernel_is_found(monkeypatch):
    right = type(KERNELS["assign"]).forward

    def wrong(self, *arguments):
        out, saved = right(self, *arguments)
        return out * 1.01, saved

    monkeypatch.setattr(type(KERNELS["assign"]), "forward", wrong)
    case = cuda_checks.variants("assign", cuda_checks.SMALL)[0]
    with pytest.raises(AssertionError, match="value: error 1.0"):
        cuda_checks.close(case, CPU, 1e-6)


@pytest.mark.parametrize("op", ["assign", "class_moments", "local_global_similarity", "mutual_information_loss"])
def test_bfloat16_in_channels_last_the_layout_of_autocast(op):
    for case in cuda_checks.variants(op, TINY):
        case = replace(case, dtype=torch.bfloat16)
        floor, layout = cuda_checks.FLOORS[torch.bfloat16], cuda_checks.LAYOUTS["channels last"]
        cuda_checks.close(case, CPU, floor, layout)


@pytest.mark.parametrize("op", cuda_checks.triton_ops())
def test_opcheck(op):
    record = OPS[op]
    arguments = record.kernel_arguments(cuda_checks.variants(op, TINY)[-1], CPU)
    for x in arguments:
        if isinstance(x, torch.Tensor):
            x.copy_(torch.rand(x.shape) + 0.5) if x.is_floating_point() else x.zero_()
    arguments = [x for each in arguments for x in (asdict(each).values() if hasattr(each, "temperature") else [each])]
    if record.differentiable:
        for x in arguments[: record.wiring.differentiable]:
            x.requires_grad_()
        arguments.append([True] * record.wiring.differentiable)
    torch.library.opcheck(record.wiring.custom, (*arguments, "triton"))
