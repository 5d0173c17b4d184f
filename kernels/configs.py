"""Tile shapes: a table with a reason for each row, and optional tuning (`INFOSEG_AUTOTUNE=1`).

By default a kernel takes the first row that fits, on every GPU: the order of sums depends on the
tile shape, so results never change with the load of the machine. With `INFOSEG_AUTOTUNE=1` every
fitting row is timed once for each GPU, kernel and shape. The fastest is kept in
`~/.cache/infoseg_fast/autotune.json` (or `INFOSEG_AUTOTUNE_CACHE`).
"""

import functools
import json
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


@dataclass(frozen=True)
class Config:
    """Block sizes by constexpr name, warps per program, and stages of the pipelined loads."""

    blocks: dict[str, int] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 2
    registers: int | None = None  # maximum per thread; None: ptxas chooses

    def options(self) -> dict[str, object]:
        """Options of Triton's compiler. `enable_fp_fusion` is explicit: its default changes in
        Triton 3.10.
        """
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}
        return options if self.registers is None else options | {"maxnreg": self.registers}


@dataclass(frozen=True)
class Key:
    """What the choice of a tile depends on. `variant` is free text of the kernel, such as the dtype
    of the features.
    """

    itemsize: int  # of the features
    C: int
    K: int
    variant: str = ""


@dataclass(frozen=True)
class Row:
    kernel: str
    fits: Callable[[Key], bool]
    config: Config
    reason: str


def feature_key(features: Tensor, K: int) -> Key:
    """The key of a kernel that reads features [B, C, h, w] with K classes; the variant is the
    dtype.
    """
    return Key(features.element_size(), features.shape[1], K, str(features.dtype).removeprefix("torch."))


def _by_dtype(kernel: str, *rows: tuple) -> list[Row]:
    """Rows of (dtype of the features, maximum K, BLOCK_P, BLOCK_C, warps, stages, registers,
    reason).
    """

    def fits(dtype: str, max_K: int) -> Callable[[Key], bool]:
        return lambda key: key.variant == dtype and max_K >= key.K

    return [
        Row(kernel, fits(dtype, K), Config({"BLOCK_P": P, "BLOCK_C": C}, warps, stages, registers), reason)
        for dtype, K, P, C, warps, stages, registers, reason in rows
    ]


def _by_size(kernel: str, *rows: tuple, stages: int = 1) -> list[Row]:
    """Rows of (maximum bytes of an element, maximum C, blocks, warps, registers, reason)."""

    def fits(max_itemsize: int, max_C: int) -> Callable[[Key], bool]:
        return lambda key: key.itemsize <= max_itemsize and max_C >= key.C

    return [
        Row(kernel, fits(itemsize, C), Config(blocks, warps, stages, registers), reason)
        for itemsize, C, blocks, warps, registers, reason in rows
    ]


ANY = 1 << 30

# The reasons are registers and spills of `python -m infoseg_fast.bench.aot`. Nothing was timed on a
# GPU.
TABLE: list[Row] = [
    *_by_dtype(
        "similarity_forward",
        ("float32", 32, 128, 32, 4, 4, None, "32 channels a stage: tf32x3 splits operands, 64 spill on sm_80"),
        ("float32", 256, 64, 32, 8, 3, None, "[K, 64] scores over 8 warps: with 4 warps K > 64 spills on sm_80"),
        ("bfloat16", 64, 128, 64, 4, 3, None, "16 KB of features a stage, two programs a multiprocessor"),
        ("bfloat16", 256, 64, 64, 8, 2, None, "[K, 64] scores over 8 warps; two stages fit sm_86's 99 KB"),
        ("float16", 64, 128, 64, 4, 3, 255, "as bfloat16; without a limit ptxas spills at K=27 on sm_90"),
        ("float16", 256, 64, 64, 8, 2, 255, "as bfloat16; operands are twice as large in registers"),
        ("float64", 256, 32, 16, 8, 2, None, "8-byte elements: a quarter of float32's tile"),
    ),
    *_by_dtype(
        "class_moments_forward",
        ("float32", 32, 128, 32, 4, 4, None, "as similarity_forward"),
        ("float32", 64, 64, 32, 8, 3, None, "as similarity_forward"),
        ("float32", 256, 32, 32, 8, 2, None, "probabilities are an operand once more: 64 positions spill at K=256"),
        ("bfloat16", 64, 128, 64, 8, 3, None, "8 warps: with 4 the second product spills at K=15 and K=6"),
        ("bfloat16", 256, 32, 16, 8, 2, None, "as float32; 32 channels spill at K=256 on sm_80"),
        ("float16", 64, 128, 64, 8, 3, None, "as bfloat16: 8 warps"),
        ("float16", 256, 32, 32, 8, 2, None, "as float32: 32 positions"),
        ("float64", 256, 32, 16, 8, 2, None, "8-byte elements: a quarter of float32's tile"),
    ),
    *_by_dtype(
        "similarity_backward",
        ("float32", 16, 32, 64, 4, 4, None, "three programs with 16 KB ahead; 64 channels are the least for wgmma"),
        ("float32", 256, 32, 64, 8, 2, None, "half the positions: 64 spill at K > 16 on sm_100 when C is ragged"),
        ("bfloat16", 16, 64, 64, 4, 3, None, "two tiles of 8 KB ahead; as with two stages"),
        ("bfloat16", 32, 64, 64, 4, 2, None, "64 channels a chunk: the least for wgmma and tcgen05"),
        ("bfloat16", 256, 64, 64, 8, 2, None, "the sums [64, 64] of dG over 8 warps"),
        ("float16", 32, 64, 64, 4, 2, 255, "as bfloat16"),
        ("float16", 256, 64, 64, 8, 2, 255, "as bfloat16; without a limit ptxas spills on sm_100"),
        ("float64", 256, 32, 16, 8, 2, None, "8-byte elements: a quarter of float32's tile"),
    ),
    *_by_dtype(
        "class_moments_backward",  # similarity_backward with statistics
        ("float32", 16, 32, 64, 4, 4, None, "as similarity_backward"),
        ("float32", 256, 32, 64, 8, 2, None, "as similarity_backward"),
        ("bfloat16", 16, 64, 64, 4, 3, None, "as similarity_backward"),
        ("bfloat16", 32, 64, 64, 4, 2, None, "as similarity_backward"),
        ("bfloat16", 64, 64, 64, 8, 2, None, "as similarity_backward"),
        ("bfloat16", 256, 64, 64, 8, 1, None, "one stage: two spill on sm_80 in chunks of classes"),
        ("float16", 32, 64, 64, 4, 2, 255, "as similarity_backward"),
        ("float16", 256, 64, 64, 8, 2, 255, "as similarity_backward"),
        ("float64", 256, 32, 16, 8, 2, None, "as similarity_backward"),
    ),
    *_by_size(
        "projection_fold",
        (8, ANY, {"BLOCK": 32}, 4, None, "small products need the programs: blocks of 64 make a quarter as many"),
        stages=4,
    ),
    *_by_size(
        "projection_gradient",
        (8, ANY, {"BLOCK": 32}, 4, 255, "as projection_fold; without a limit ptxas spills on sm_80"),
        stages=4,
    ),
    *_by_size(
        "upsampled_labels",
        (8, ANY, {"BLOCK": 1024}, 4, None, "8 pixels a thread: 32 loads in flight, one histogram for 1,024 pixels"),
    ),
    *_by_size(
        "refined_labels",
        (4, 4, {"BLOCK": 512}, 4, None, "4 pixels a thread share each weight; 8 take 234 registers at 3 channels"),
        (8, 4, {"BLOCK": 256}, 4, None, "8-byte elements: half of float32's tile"),
        (8, ANY, {"BLOCK": 128}, 4, None, "a thread holds 2 c numbers of a pixel: 4 pixels spill at c = 16"),
    ),
    *_by_size(
        "local_appearance_cells",
        (4, ANY, {"BLOCK": 512}, 4, None, "4 columns of 128 cells: a thread has a row of a cell at once"),
    ),
    *_by_size(
        "local_appearance_texture",
        (4, ANY, {"BLOCK": 128}, 4, None, "a position a thread, 27 loads each: small maps need the programs"),
    ),
    *_by_size(
        "appearance_statistics_sums",
        (8, ANY, {"BLOCK": 2048}, 4, None, "sums of 8 channels of 256 positions: 16 float64 a thread"),
    ),
    *_by_size(
        "appearance_statistics_products",
        (4, ANY, {"BLOCK_P": 128}, 4, None, "8 x 8 products of a position in one thread: no exchange between warps"),
        (8, ANY, {"BLOCK_P": 64}, 4, None, "8-byte elements: 128 positions spill with Triton 3.6"),
    ),
    *_by_size(
        "information_of_moments",
        (8, 16, {}, 1, None, "a matrix a warp: sums over its rows and columns are shuffles"),
        (8, ANY, {}, 8, 255, "64 x 64 float64 are 16 a thread over 8 warps; without a limit 32 x 32 spills"),
    ),
]


def rows(kernel: str, key: Key) -> list[Config]:
    """The configurations that fit, in the order of the table."""
    found = [row.config for row in TABLE if row.kernel == kernel and row.fits(key)]
    if not found:
        raise AssertionError(f"no configuration of {kernel} fits {key}")
    return found


def run(kernel: str, key: Key, device: torch.device, body: Callable[[Config], Result]) -> Result:
    """`body(config)` with the configuration of `kernel` for `key`. Tuning runs `body` many times."""
    found = rows(kernel, key)
    if not autotunes(device):
        return body(found[0])
    cache = _cache(_cache_file())
    name = "/".join((torch.cuda.get_device_name(device), kernel, repr(key)))
    if name not in cache:
        if torch.cuda.is_current_stream_capturing():
            return body(found[0])
        times = [_time(body, config) for config in found]
        cache[name] = repr(found[times.index(min(times))])
        _write(_cache_file(), cache)
    return body(next((config for config in found if repr(config) == cache[name]), found[0]))


def autotunes(device: torch.device) -> bool:
    return os.environ.get("INFOSEG_AUTOTUNE") == "1" and device.type == "cuda"


def _time(body: Callable[[Config], object], config: Config, repeats: int = 9) -> float:
    """Median milliseconds of `body(config)` on the current stream; infinite if it does not fit the
    GPU.
    """
    try:
        body(config)
    except Exception as error:
        if "OutOfResources" in type(error).__name__:
            return float("inf")
        raise
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for start, end in marks:
        start.record()
        body(config)
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in marks)


def _cache_file() -> Path:
    return Path(os.environ.get("INFOSEG_AUTOTUNE_CACHE") or Path.home() / ".cache" / "infoseg_fast" / "autotune.json")


@functools.cache
def _cache(file: Path) -> dict[str, str]:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return {}


def _write(file: Path, cache: dict[str, str]) -> None:
    """Write atomically: another process never reads half a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(f".{os.getpid()}.tmp")
    new.write_text(json.dumps(cache, indent=1))
    new.replace(file)
