"""Checks of the arguments of public ops. Each error names the argument, its value and the accepted
values.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..reference.folding import accumulation_dtype
from . import dispatch

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MAX_CLASSES = 256
MAX_REMEMBERED = 64  # settings of an op
Settings = TypeVar("Settings")
_STRIDED = torch.strided
_NOTHING = contextlib.nullcontext()
_NAMES = ("features", "global_features", "weight", "bias")


def described(x: object) -> str:
    if isinstance(x, Tensor):
        return f"a {str(x.dtype).removeprefix('torch.')} tensor of shape {list(x.shape)} on {x.device}"
    return f"{x!r}" if isinstance(x, (bool, int, float, str, type(None))) else f"a {type(x).__name__}"


def local_and_global(
    features: Tensor, global_features: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The four tensors after the checks of `local_global_similarity`: `weight` as [D, C], and all in
    the dtype of autocast if it is on.
    """
    device: Any = getattr(features, "device", None)
    dtype: Any = getattr(features, "dtype", None)
    alike = dtype in DTYPES and global_features is not None
    for x in (features, global_features, weight, bias):
        if x is not None and not (
            isinstance(x, Tensor) and x.dtype is dtype and x.layout is _STRIDED and x.device == device
        ):
            alike = False
    if not alike:
        _each_by_itself(device, features, global_features, weight, bias)
    sizes, shape = features.shape, global_features.shape
    if len(sizes) != 4:
        raise ValueError(f"features must be [B, C, h, w], not {described(features)}")
    if len(shape) != 3 or shape[0] != sizes[0]:
        raise ValueError(
            f"global_features must be [B, K, D] with B = {sizes[0]} as in features, not {described(global_features)}"
        )
    C, (_, K, D) = sizes[1], shape
    if not 2 <= K <= MAX_CLASSES:
        raise ValueError(
            f"global_features must have K from 2 to {MAX_CLASSES} in dim 1, not {described(global_features)}"
        )
    if weight is not None:
        shape = weight.shape
        if shape == (D, C, 1, 1):
            weight = weight.view(D, C)
        elif shape != (D, C):
            raise ValueError(f"weight must be [D, C] = [{D}, {C}] or [{D}, {C}, 1, 1], not {described(weight)}")
    elif C != D:
        raise ValueError(
            f"features must have C = D = {D} channels, as global_features have, when no weight projects them, "
            f"not {described(features)}"
        )
    if bias is not None and bias.shape != (D,):
        raise ValueError(f"bias must be [D] = [{D}], not {described(bias)}")

    device_type = dispatch.device_type(features)
    if autocasts(device_type) and features.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device_type)
        features, global_features = features.to(dtype), global_features.to(dtype)
        weight, bias = (None if x is None else x.to(dtype) for x in (weight, bias))
    if not alike:
        for name, x in zip(_NAMES, (features, global_features, weight, bias), strict=True):
            if x is not None and x.dtype != features.dtype:
                raise TypeError(
                    f"{name} must be {features.dtype} as features are (one dtype for all), not {described(x)}"
                )
    return features, global_features, weight, bias


def _each_by_itself(device: Any, *tensors: Tensor | None) -> None:
    """Kind, dtype, layout and device of each of the four tensors."""
    for name, x in zip(_NAMES, tensors, strict=True):
        if x is None and name in ("weight", "bias"):
            continue
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor, not {described(x)}")
        if x.dtype not in DTYPES:
            raise TypeError(f"{name} must be float32, float64, bfloat16 or float16, not {described(x)}")
        if x.layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor, not of layout {x.layout}")
        if x.device != device:
            raise ValueError(f"{name} must be on {device} as features are, not {described(x)}")


def without_autocast(features: Tensor) -> contextlib.AbstractContextManager[object]:
    """A context without autocast. If autocast is off already, the context does nothing."""
    device_type = dispatch.device_type(features)
    return torch.autocast(device_type, enabled=False) if autocasts(device_type) else _NOTHING


def autocasts(device_type: str) -> bool:
    """Whether autocast is on. Some devices, such as "meta", have none."""
    return (device_type in ("cpu", "cuda") or torch.amp.is_autocast_available(device_type)) and (
        torch.is_autocast_enabled(device_type)
    )


def remembered(function: Callable[..., Settings]) -> Callable[..., Settings]:
    """Decorator of checks of settings: settings of equal values and types are checked once. While a
    graph is recorded, sizes may be symbols or tensors, and nothing is remembered.
    """
    cached = functools.lru_cache(MAX_REMEMBERED, typed=True)(function)

    @functools.wraps(function)
    def checked(*settings: Any) -> Settings:
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            return function(*settings)
        try:
            return cached(*settings)
        except TypeError:  # a setting that has no hash: the checks raise the error that names it
            return function(*settings)

    return checked


def one_of(name: str, value: str, accepted: Sequence[str]) -> None:
    if value not in accepted:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, accepted))}, not {value!r}")


def real(name: str, value: float, *, positive: bool) -> float:
    """`value` as a float. Raises ValueError unless it is finite, and positive or at least 0."""
    if (
        isinstance(value, (int, float, np.integer, np.floating))
        # torch.compile knows no isfinite of a dynamic number.
        and (0 < value < math.inf or (value == 0 and not positive))
    ):
        return float(value)
    raise ValueError(f"{name} must be a finite number {'above' if positive else 'of at least'} 0, not {value!r}")


def num_negatives(value: int | str, B: int) -> int:
    """The number of negatives of each image: `value`, or B - 1 for "all"."""
    if B < 2:
        raise ValueError(f"features must hold B >= 2 images, since negatives come from other images, not B = {B}")
    if value == "all":
        return B - 1
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not 1 <= value < B:
        raise ValueError(f"num_negatives must be 'all' or from 1 to B - 1 = {B - 1}, not {value!r}")
    return int(value)


def floating(name: str, x: Tensor, dims: str, sizes: Sequence[int] | None = None, like: Tensor | None = None) -> None:
    """Raise unless `x` is a floating-point tensor of these dimensions.

    Args:
        dims: names of the dimensions, as "B, c, h, w".
        sizes: their sizes. None: any.
        like: a tensor whose dtype and device `x` must have.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor [{dims}], not {described(x)}")
    if x.dim() != dims.count(",") + 1 or (sizes is not None and x.shape != torch.Size(sizes)):
        accepted = "" if sizes is None else f" = {list(sizes)}"
        raise ValueError(f"{name} must be [{dims}]{accepted}, not {described(x)}")
    if like is not None and x.dtype != like.dtype:
        raise TypeError(f"{name} must be {like.dtype}, as the other tensors are, not {described(x)}")
    if like is not None and x.device != like.device:
        raise ValueError(f"{name} must be on {like.device}, as the other tensors are, not {described(x)}")


def matching_mask(mask: Tensor | None, positions: Tensor) -> None:
    """Raise unless `mask` is None or a bool [B, h, w] of the positions [B, _, h, w]."""
    if mask is None:
        return
    shape = (positions.shape[0], *positions.shape[2:])
    if (
        not isinstance(mask, Tensor)
        or mask.dtype != torch.bool
        or mask.shape != shape
        or mask.device != positions.device
    ):
        raise ValueError(
            f"mask must be a bool tensor of shape {list(shape)} on {positions.device}, not {described(mask)}"
        )


def validity_mask(mask: Tensor | None, features: Tensor) -> Tensor | None:
    """`mask` as a contiguous bool [B, P]."""
    matching_mask(mask, features)
    return None if mask is None else mask.flatten(1).contiguous()


def position_statistics(statistics: Tensor, features: Tensor) -> Tensor:
    """`statistics` [B, S, h, w] in the accumulation dtype of `features`."""
    B, _, h, w = features.shape
    if (
        not isinstance(statistics, Tensor)
        or not statistics.is_floating_point()
        or statistics.dim() != 4
        or (statistics.shape[0], *statistics.shape[2:]) != (B, h, w)
        or statistics.shape[1] == 0
        or statistics.device != features.device
    ):
        raise ValueError(
            f"statistics must be a floating-point tensor [B, S, h, w] = [{B}, S >= 1, {h}, {w}] on {features.device}, "
            f"not {described(statistics)}"
        )
    if torch.is_grad_enabled() and statistics.requires_grad:
        raise ValueError("statistics must not require a gradient: they are taken as constant (detach them)")
    return statistics.to(accumulation_dtype(features.dtype))


def image_size(name: str, size: Sequence[int] | None, features: Tensor) -> tuple[int, int]:
    """`size` as (rows, columns). None: the size of the features."""
    rows, columns = features.shape[2:]
    if size is None:
        return rows, columns
    found = rows_and_columns(name, size, "pixels")
    if rows * columns == 0:
        raise ValueError(f"features must have at least one position to be upsampled, not {described(features)}")
    return found


def rows_and_columns(name: str, size: Sequence[int], unit: str) -> tuple[int, int]:
    """`size` as (rows, columns). Raises ValueError unless both are whole numbers of at least 1."""
    # A recorded graph has symbolic numbers, or tensors.
    numbers = (int, np.integer, torch.SymInt, Tensor) if torch.jit.is_tracing() else (int, np.integer, torch.SymInt)
    if (
        not isinstance(size, (tuple, list, torch.Size))
        or len(size) != 2
        or not all(isinstance(n, numbers) and n >= 1 for n in size)
    ):
        raise ValueError(f"{name} must be two numbers of {unit}, (rows, columns), each at least 1, not {size!r}")
    rows, columns = (int(n) if isinstance(n, np.integer) else n for n in size)
    return rows, columns
