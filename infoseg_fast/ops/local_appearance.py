"""`local_appearance`: colour and texture of the positions of images."""

from typing import Any

import torch
from torch import Tensor

from .. import reference
from . import checks, dispatch
from .factory import Wiring
from .inputs import DATA_SETS
from .record import Case, Op


def local_appearance(images: Tensor, size: tuple[int, int], *, backend: str = "auto") -> Tensor:
    """The colour and the texture of the images at every position of a map.

    Args:
        images: float [B, c, H_img, W_img] in [0, 1].
        size: (h, w) of the map. A position covers a cell of H_img / h x W_img / w pixels.
        backend: "auto", "reference", "cpp" or "triton". The last two need cells of whole pixels.

    Returns:
        y, [B, c + 2, h, w] float32, without a gradient. The first c channels are the logarithms of
        the channels' means over the cell. A change of illumination shifts them. The last two come
        from the structure tensor of the logarithmic brightness over 3 x 3 cells (means of products
        of the components of its gradient): roughness, the logarithm of the trace, and coherence,
        the difference of the eigenvalues divided by their sum: 0 for grain, 1 for stripes.

    Raises:
        TypeError: images are no floating-point tensor.
        ValueError: images or size have another shape, or the backend that is named does not take
            cells of this size.
        BackendUnavailableError: the backend that is named cannot run here.
    """
    checks.floating("images", images, "B, c, H, W")
    images, size = images.detach().float(), checks.rows_and_columns("size", size, "positions")
    whole = all(m % n == 0 for n, m in zip(size, images.shape[2:], strict=True))
    if not whole and backend not in ("auto", "reference"):
        raise ValueError(
            f"backend {backend!r} takes cells of whole pixels, not {list(size)} of images {list(images.shape)}"
        )
    backend = dispatch.select("local_appearance", backend if whole else "reference", images)
    if backend == "reference" or images.numel() == 0:
        return reference.local_appearance(images, size)
    return WIRING(backend, images, size)


def _fake(images: Tensor, size: tuple[int, int]) -> Tensor:
    return images.new_empty(images.shape[0], images.shape[1] + 2, *size)


def _arguments(case: Case, device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], dict[str, Any]]:
    generator = torch.Generator().manual_seed(4)
    images = torch.rand(case.B, case.C, *case.size, generator=generator).to(device, dtype)
    if case.channels_last:
        images = images.to(memory_format=torch.channels_last)
    return [images], {"size": (case.h, case.w)}


def _kernel_arguments(case: Case, device: torch.device) -> tuple[Any, ...]:
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    shape = case.B, case.C, *case.size
    return torch.empty(shape, dtype=case.dtype, device=device, memory_format=layout), (case.h, case.w)


def _floor(case: Case, phase: str) -> int:
    return (case.C * case.pixels + (case.C + 2) * case.B * case.h * case.w) * case.dtype.itemsize


WIRING = Wiring("local_appearance", "Tensor images, SymInt[] size", _fake)
OP = Op(
    name="local_appearance",
    function=local_appearance,
    reference=reference.local_appearance,
    arguments=_arguments,
    floor=_floor,
    operations=lambda case, phase: 0,
    wiring=WIRING,
    kernel_arguments=_kernel_arguments,
    cases=(
        Case("appearance 128x128", uses=("cpu",), B=16, C=3),
        Case("appearance 128x128", uses=("cuda", "aot"), C=3),
        Case("channels last", uses=("aot_more",), C=3, channels_last=True),
        *(Case(f"{c} channels", uses=("aot_more",), C=c) for c in (1, 4)),
        Case("ragged cells", uses=("aot_more",), C=3, h=5, w=5, size=(35, 35)),
        Case("one cell", uses=("aot_more",), C=3, h=1, w=1, size=(200, 200)),
        *(Case(name, uses=("roofline",), C=3, **sizes) for name, sizes in DATA_SETS.items()),
    ),
)
