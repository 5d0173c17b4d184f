"""Every op of the records in the interpreter: the checks of `infoseg bench --device cuda`, and the
custom ops. And that the interpreter itself sees an access out of bounds and the rounding of tensor
cores.
"""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from infoseg_fast.bench import cuda_checks, cuda_values
from infoseg_fast.kernels import KERNELS
from infoseg_fast.ops import OPS

from .tensor_cores import tf32, toward_zero

pytestmark = pytest.mark.usefixtures("tensor_cores")
CPU = torch.device("cpu")
TINY = {"B": 3, "C": 6, "D": 5, "K": 3, "h": 3, "w": 5, "size": (12, 20)}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_every_check_that_needs_no_driver_passes(monkeypatch):
    # The other files here test float64 and 16 bits, and the test below bfloat16.
    every, other = cuda_checks.checks, re.compile("float64|float16")
    monkeypatch.setattr(cuda_checks, "checks", lambda *given: (c for c in every(*given) if not other.search(c[0])))
    number, failed = cuda_checks.run(CPU, TINY)
    assert failed == [] and number > 40


def test_a_wrong_kernel_is_found(monkeypatch):
    right = type(KERNELS["assign"]).forward_projected

    def wrong(self, *arguments):
        out, *kept = right(self, *arguments)
        return out * 1.01, *kept

    monkeypatch.setattr(type(KERNELS["assign"]), "forward_projected", wrong)
    case = cuda_values.variants("assign", cuda_values.SMALL)[0]
    with pytest.raises(AssertionError, match="value: error 1.0"):
        cuda_values.close(case, CPU, 1e-6)


@pytest.mark.parametrize("op", ["assign", "class_moments", "local_global_similarity", "mutual_information_loss"])
def test_bfloat16_in_channels_last_the_layout_of_autocast(op):
    for case in cuda_values.variants(op, TINY):
        case = replace(case, dtype=torch.bfloat16)
        floor, layout = cuda_values.FLOORS[torch.bfloat16], cuda_values.LAYOUTS["channels last"]
        cuda_values.close(case, CPU, floor, layout)


@pytest.mark.parametrize("op", cuda_values.triton_ops())
def test_opcheck(op):
    record = OPS[op]
    arguments = record.kernel_arguments(cuda_values.variants(op, TINY)[-1], CPU)
    for x in arguments:
        if isinstance(x, torch.Tensor):
            x.copy_(torch.rand(x.shape) + 0.5) if x.is_floating_point() else x.zero_()
    arguments = [x for each in arguments for x in (each if hasattr(each, "temperature") else [each])]
    if record.differentiable:
        for x in arguments[: record.wiring.differentiable]:
            x.requires_grad_()
        arguments.append([True] * record.wiring.differentiable)
    torch.library.opcheck(record.wiring.custom, (*arguments, "triton"))


@triton.jit
def shifted(x, out, n, SHIFT: tl.constexpr, TO: tl.constexpr):
    i = tl.arange(0, 16)
    value = tl.load(x + i + SHIFT, mask=i < n, other=0)
    tl.store(out + i + TO, tl.where(i < 4, value, 0), mask=i < n)


@pytest.mark.parametrize(("shift", "to"), [(1, 0), (-1, 0), (0, 1), (0, -1)])
def test_an_access_out_of_bounds_raises_though_its_value_is_not_used(shift, to):
    # Views in the middle of a larger tensor, so that the addresses are those of real memory.
    x, out = torch.zeros(32)[8:18], torch.zeros(32)[8:18]
    shifted[(1,)](x=x, out=out, n=10, SHIFT=0, TO=0)
    with pytest.raises(Exception, match="1 of 10 addresses are in none of the kernel's tensors"):
        shifted[(1,)](x=x, out=out, n=10, SHIFT=shift, TO=to)


@triton.jit
def multiplied(a, b, out, PRECISION: tl.constexpr):
    i = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    tl.store(out + i, tl.dot(tl.load(a + i), tl.load(b + i), input_precision=PRECISION))


def test_products_have_the_errors_of_tensor_cores():
    a, b, out = torch.randn(16, 16), torch.randn(16, 16), torch.empty(16, 16)
    exact, errors = a.double() @ b.double(), {}
    for precision in ("tf32x3", "tf32"):
        multiplied[(1,)](a=a, b=b, out=out, PRECISION=precision)
        errors[precision] = ((out - exact).norm() / exact.norm()).item()
    assert 1e-8 < errors["tf32x3"] < 1e-6 and 1e-4 < errors["tf32"] < 1e-3


def test_rounding():
    x = np.array([1 + 2**-11 - 2**-20, 1 + 2**-11, -1 - 2**-10], np.float32)
    assert tf32(x).tolist() == [1, 1 + 2**-10, -1 - 2**-10]
    assert toward_zero(np.array([1 + 2**-24 + 2**-30, -1 - 2**-23 - 2**-30])).tolist() == [1, -1 - 2**-23]
