"""Loads and stores of the interpreter, checked against the tensors of the launch.

A GPU reads beyond a tensor in silence, and a masked or unused value hides it. Here each unmasked
address must lie within one of the tensors that the kernel was given.
"""

import numpy as np
import torch
from triton.runtime.interpreter import InterpreterBuilder


class OutOfBoundsError(AssertionError):
    pass


class Bounds:
    """First and last address of the tensors of the current launch."""

    def __init__(self):
        self.starts = self.ends = np.zeros(0, np.uint64)

    def of(self, arguments) -> None:
        extents = sorted(extent(x) for x in arguments if isinstance(x, torch.Tensor) and x.numel())
        self.starts = np.array([start for start, _ in extents], np.uint64)
        # A tensor may lie within another one, such as a part of a workspace.
        self.ends = np.maximum.accumulate(np.array([end for _, end in extents], np.uint64))

    def check(self, ptrs, mask) -> None:
        size = ptrs.get_element_ty().primitive_bitwidth // 8 or 1
        addresses = np.broadcast_to(ptrs.data, mask.data.shape)[mask.data.astype(bool)].astype(np.uint64)
        if not addresses.size:
            return
        place = np.searchsorted(self.starts, addresses, side="right") - 1
        inside = (place >= 0) & (addresses + np.uint64(size) <= self.ends[place])
        if not inside.all():
            raise OutOfBoundsError(f"{(~inside).sum()} of {inside.size} addresses are in none of the kernel's tensors")


def extent(x: torch.Tensor) -> tuple[int, int]:
    last = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()


def checked(bounds: Bounds) -> None:
    """Check every access of the interpreter from now on."""
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    atomic = InterpreterBuilder.create_atomic_rmw

    def checked_load(builder, ptrs, mask, *rest):
        bounds.check(ptrs, mask)
        return load(builder, ptrs, mask, *rest)

    def checked_store(builder, ptrs, value, mask, *rest):
        bounds.check(ptrs, mask)
        return store(builder, ptrs, value, mask, *rest)

    def checked_atomic(builder, operation, ptrs, value, mask, *rest):
        bounds.check(ptrs, mask)
        return atomic(builder, operation, ptrs, value, mask, *rest)

    InterpreterBuilder.create_masked_load = checked_load
    InterpreterBuilder.create_masked_store = checked_store
    InterpreterBuilder.create_atomic_rmw = checked_atomic
