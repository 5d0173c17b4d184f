"""Triton kernels, installed as `infoseg_fast.kernels`: the backend "triton" (see `infoseg_fast.ops.protocol`).

This module is the only door to Triton: it is imported without it and asks no driver. `KERNELS` imports Triton when it
is first asked for.
"""

import functools
import importlib.util
import os

LEAST_CAPABILITY = (8, 0)  # tf32 and bfloat16 tensor cores, asynchronous copies


def __getattr__(name: str):
    if name != "KERNELS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _kernels()


@functools.cache
def _kernels() -> dict[str, object]:
    """op name -> kernel, as infoseg_fast.ops.protocol describes."""
    from .appearance import LocalAppearanceKernel
    from .appearance_information import InformationOfMomentsKernel
    from .appearance_statistics import AppearanceStatisticsKernel
    from .moments import ClassMomentsKernel
    from .mutual_information import LossKernel
    from .refinement import RefinedLabelsKernel, RefinedProbsKernel
    from .segmentation import SegmentAndCountKernel, SegmentKernel
    from .similarity import AssignKernel, SimilarityKernel

    return {
        "local_global_similarity": SimilarityKernel(),
        "assign": AssignKernel(),
        "class_moments": ClassMomentsKernel(),
        "mutual_information_loss": LossKernel(),
        "segment": SegmentKernel(),
        "segment_and_count": SegmentAndCountKernel(),
        "local_appearance": LocalAppearanceKernel(),
        "appearance_statistics": AppearanceStatisticsKernel(),
        "information_of_moments": InformationOfMomentsKernel(),
        "refined_labels": RefinedLabelsKernel(),
        "refined_probs": RefinedProbsKernel(),
    }


@functools.cache
def unavailable() -> str | None:
    """Why no Triton kernel can run here; None when one can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    if interpreted():
        return None
    import torch

    if not torch.cuda.is_available():
        return "torch sees no CUDA device (and TRITON_INTERPRET is not 1)"
    if torch.version.hip is not None:
        return "it is made for NVIDIA GPUs, and this torch is built for ROCm"
    capability = torch.cuda.get_device_capability()
    if capability < LEAST_CAPABILITY:
        return f"the GPU has compute capability {capability[0]}.{capability[1]}; 8.0 is the least"
    return None


def interpreted() -> bool:
    """Whether Triton's interpreter takes the place of a GPU. Triton asks when a kernel is defined, so set it before."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def unsupported(device_type: str, dtype, accepted: tuple | None = None) -> str | None:
    """Why features of this kind cannot be taken by a kernel that takes the `accepted` dtypes (by default all that
    features may have); None when they can.
    """
    import torch

    if device_type != "cuda" and not (device_type == "cpu" and interpreted()):
        return f"it runs on CUDA devices, not on {device_type} (but for TRITON_INTERPRET=1)"
    accepted = accepted or (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    return None if dtype in accepted else f"it has no kernel for {dtype}"
