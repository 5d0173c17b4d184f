"""The interpreter's own checks: an access out of bounds and the rounding of tensor cores are seen."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from .tensor_cores import tf32, toward_zero


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
