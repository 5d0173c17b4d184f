"""The record of an op, for its wiring, benchmarks, checks, ahead-of-time table, cost model and
tests.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..reference.folding import accumulation_dtype
from .factory import Wiring


@dataclass(frozen=True)
class Case:
    """The sizes, the dtype and the settings at which an op is timed, checked, compiled or costed.

    Defaults are the sizes of the paper on COCO-Stuff: batches of 64 images of 128 x 128 pixels, at
    a stride of 4.
    """

    name: str
    # "cpu", "cuda": benchmarks. "aot", "aot_more", "aot_all": compiled in CI, by the command, with
    # --all. "roofline": cost model.
    uses: tuple[str, ...] = ()
    B: int = 64
    C: int = 256  # channels of features, of an appearance y, or of images
    D: int = 512
    K: int = 15
    S: int = 21  # statistics of class_moments
    h: int = 32  # positions
    w: int = 32
    size: tuple[int, int] = (128, 128)  # pixels of images, label maps and targets
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    bias: bool = True
    masked: bool = False
    gradient: bool = True  # whether a differentiable op computes gradients
    spread: float = 0.3  # standard deviation of global features; 1 gives confident assignments
    settings: dict[str, Any] = field(default_factory=dict, hash=False)  # keyword arguments of the public function
    speedup: float = 1.0  # least expected speed-up over the best plain PyTorch on a CPU
    op: str = ""  # set by the record of the case

    @property
    def feature_bytes(self) -> int:
        """Bytes of a map of C channels at the positions."""
        return self.B * self.C * self.h * self.w * self.dtype.itemsize

    @property
    def score_bytes(self) -> int:
        """Bytes of a map of K classes at the positions."""
        return self.B * self.K * self.h * self.w * self.dtype.itemsize

    @property
    def pixels(self) -> int:
        """Pixels of all images."""
        return self.B * self.size[0] * self.size[1]

    @property
    def accumulation_dtype(self) -> torch.dtype:
        return accumulation_dtype(self.dtype)

    @property
    def negatives(self) -> int:
        """Number of negatives of each image in the loss."""
        n = self.settings.get("num_negatives", 1)
        return self.B - 1 if n == "all" else n


@dataclass(frozen=True)
class Op:
    """An op. Its module, reference, kernels, custom op and bench have its name.

    Attributes:
        name: the name.
        function: the public function of `arguments`, with `backend=` if `backends` has any.
        reference: plain PyTorch with the same arguments except `backend`.
        arguments: `(case, device, dtype) -> (tensors, keywords)` for `function(*tensors,
            **keywords)`: random, the same each time. A differentiable op has gradients of all
            `tensors`.
        floor: `(case, phase) -> bytes` that must be read or written once. The phase is "forward" or
            "backward". Global features and other tensors smaller than a map are left out.
        operations: `(case, phase) -> floating-point operations` of its products.
        cases: the cases at which it is timed, checked, compiled and costed.
        backends: the backends with a kernel.
        wiring: its custom op. None: it has none.
        kernel_arguments: `(case, device) -> arguments` of a kernel's `forward` without `needs`,
            uninitialised. None without wiring.
    """

    name: str
    function: Callable[..., Any]
    reference: Callable[..., Any]
    arguments: Callable[[Case, torch.device, torch.dtype], tuple[list[Tensor], dict[str, Any]]]
    floor: Callable[[Case, str], int]
    operations: Callable[[Case, str], int]
    cases: tuple[Case, ...]
    backends: tuple[str, ...] = ("cpp", "triton")
    wiring: Wiring | None = None
    kernel_arguments: Callable[[Case, torch.device], tuple[Any, ...]] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "cases", tuple(replace(case, op=self.name) for case in self.cases))

    @property
    def differentiable(self) -> bool:
        return self.wiring is not None and self.wiring.differentiable > 0

    def cases_for(self, use: str) -> list[Case]:
        """The cases for `use`, in the order of the record."""
        return [case for case in self.cases if use in case.uses]
