"""`--precision`: the dtype of the convolutions of a run."""

import contextlib
import copy
import dataclasses
import logging
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from .config import Settings
from .defaults import float32_on_cpu
from .distributed.world import World
from .recipe import Recipe, checked_loss

logger = logging.getLogger("infoseg_fast")

ROUNDS = 5  # timed steps of each precision
# Least ratio of the times of float32 and bfloat16 for "auto" to take bfloat16. With a
# smaller one the choice would hang on what else the machine does during the measurement.
MIN_GAIN = 1.5


@contextlib.contextmanager
def policy(cuda: bool) -> Iterator[None]:
    """The context of a run.

    On a GPU all float32 products are TensorFloat32, as PyTorch's convolutions are anyway: a more
    exact loss of such features would only take longer. Convolutions take deterministic algorithms.
    New tensors are float32 on the CPU. Gradients are recorded, without autocast. The end of the
    context restores PyTorch's settings.
    """
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    if cuda:
        torch.set_float32_matmul_precision("high")
        logger.info("float32 products are TensorFloat32 on this GPU (10 bits): convolutions, projections, the loss")
    try:
        with (
            float32_on_cpu(), torch.inference_mode(False), torch.enable_grad(),
            torch.autocast("cuda" if cuda else "cpu", enabled=False),
        ):  # fmt: skip
            yield
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before[:2]
        torch.set_float32_matmul_precision(before[2])


@contextlib.contextmanager
def autocast(precision: str, device: torch.device) -> Iterator[None]:
    """The context of a forward pass. The ops of this package keep float32 sums in it.

    PyTorch caches the cast weights until the outermost context ends, which may be the caller's.
    Here the cache is cleared, since the next step has other weights.
    """
    if precision != "bfloat16":
        yield
        return
    try:
        with torch.autocast(device.type, torch.bfloat16):
            yield
    finally:
        torch.clear_autocast_cache()


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions that multiply bfloat16 matrices."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if not hasattr(torch.cpu, "get_capabilities"):  # PyTorch 2.9
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    found = torch.cpu.get_capabilities()
    return bool(found.get("amx_bf16") or found.get("avx512_bf16"))


def resolved(settings: Settings, recipe: Recipe, device: torch.device, world: World) -> Settings:
    """The settings with the main rank's choice in place of the precision "auto"."""
    if settings.precision != "auto":
        return settings
    crop, share = settings.crop, -(-settings.batch_size // world.size)
    found = decide(recipe, torch.rand(share, recipe.data.inputs, crop, crop).to(device))
    return dataclasses.replace(settings, precision=world.from_main(lambda: found))


def decide(recipe: Recipe, images: Tensor) -> str:
    """The precision for a device: "bfloat16" if the device has it and steps of a copy of the recipe
    take less than two thirds of the time, else "float32".

    Args:
        recipe: the recipe, which is not changed.
        images: float [B, c, H, W], a batch as in training. Its values do not matter.
    """
    if not has_bfloat16(images.device):
        return "float32"
    recipe, times = copy.deepcopy(recipe).train(), {"float32": [], "bfloat16": []}
    for turn in range(ROUNDS + 1):
        for name, taken in times.items():
            _finish(images.device)
            start = time.perf_counter()
            with autocast(name, images.device):
                loss = recipe.loss(0, images, None)
            checked_loss(loss, recipe.settings.recipe).backward()
            _finish(images.device)
            if turn:  # the first turn warms up
                taken.append(time.perf_counter() - start)
    float32, bfloat16 = (1e3 * min(taken) for taken in times.values())  # other work only adds time
    chosen = "bfloat16" if float32 > MIN_GAIN * bfloat16 else "float32"
    logger.info("--precision auto: %s (a step takes %.1f ms, with bfloat16 %.1f ms)", chosen, float32, bfloat16)
    return chosen


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
