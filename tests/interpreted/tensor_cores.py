"""Triton's interpreter with the rounding of tensor cores, so that value checks see the errors of a
GPU.

- Operands of float32 products are rounded to tf32, in three products with "tf32x3".
- Sums are formed 8 (tf32) or 16 (bfloat16) terms at a time and rounded toward zero, as the adders
  of the tensor cores do.
- exp is an exp2 with the error of the GPU's instruction.
"""

import numpy as np
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

EXP2_ERROR = 2**-22.5  # relative; CUDA programming guide, ex2.approx.ftz.f32
noise = np.random.default_rng(0)


def tf32(x: np.ndarray) -> np.ndarray:
    """Round float32 to 10 bits of mantissa, to nearest."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def toward_zero(x: np.ndarray) -> np.ndarray:
    """Round float64 to float32."""
    y = x.astype(np.float32)
    over = np.abs(y.astype(np.float64)) > np.abs(x)
    return np.where(over, np.nextafter(y, np.float32(0)), y)


def multiply_add(a: np.ndarray, b: np.ndarray, total: np.ndarray, terms: int) -> np.ndarray:
    """total + a b in float32, `terms` products at a time."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    for k in range(0, a.shape[-1], terms):
        total = toward_zero(total.astype(np.float64) + a[..., k : k + terms] @ b[..., k : k + terms, :])
    return total


def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
    A, B, D, precision = a.data, b.data, d.data, str(input_precision)
    if D.dtype != np.float32:
        found = np.matmul(A, B, dtype=D.dtype) + D
    elif "TF32x3" in precision:
        A_high, B_high = tf32(A), tf32(B)
        A_low, B_low = tf32(A - A_high), tf32(B - B_high)
        found = multiply_add(A_high, B_low, multiply_add(A_low, B_high, np.zeros_like(D), 8), 8)
        # As Triton does: the halves of an infinite operand are NaN.
        found = multiply_add(A_high, B_high, np.where(np.isnan(found), 0, found), 8) + D
    elif "TF32" in precision:
        found = multiply_add(tf32(A), tf32(B), D, 8)
    else:
        found = multiply_add(A, B, D, 16)
    return TensorHandle(found.astype(D.dtype), d.dtype.scalar)


def create_exp(self, arg):
    x = arg.data
    if x.dtype != np.float32:
        return TensorHandle(np.exp(x), arg.dtype)
    with np.errstate(all="ignore"):
        e = np.exp2((x * np.float32(np.log2(np.e))).astype(np.float64))
        e = e * (1 + noise.uniform(-EXP2_ERROR, EXP2_ERROR, e.shape))
        return TensorHandle(e.astype(np.float32), arg.dtype)


def emulate() -> None:
    InterpreterBuilder.create_dot = create_dot
    InterpreterBuilder.create_exp = create_exp
