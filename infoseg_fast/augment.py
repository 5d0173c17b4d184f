"""Augmentation of whole batches on the device they are on. Every draw follows from the seed and the
step.
"""

import torch
from torch import Tensor

from .config import Settings
from .data.crops import Part

SEED_FACTOR = 1_000_003  # keeps the draws of two seeds apart for as many steps


def augmented(
    images: Tensor, mask: Tensor | None, settings: Settings, step: int, part: Part | None = None
) -> tuple[Tensor, Tensor | None]:
    """Square crops [B, c, n, n] in [0, 1], changed at random, and their mask, bool [B, n, n], moved
    with them.

    Args:
        settings: `flip` mirrors along both axes, `rotate` turns by 0 to 3 quarters; together they
            give the 8 symmetries of a square. `jitter` is the greatest relative change of
            brightness, contrast and colour. The draws follow from `seed` and from `step`.
        part: which images of the step's batch these are. None: all.
    """
    generator = torch.Generator().manual_seed(settings.seed * SEED_FACTOR + step)
    part = part or Part(0, len(images), len(images))
    images, mask = _flipped_and_rotated(images, mask, generator, settings.flip, settings.rotate, part)
    return jittered(images, settings.jitter, generator, part), mask


def _flipped_and_rotated(
    images: Tensor, mask: Tensor | None, generator: torch.Generator, flip: bool, rotate: bool, part: Part
) -> tuple[Tensor, Tensor | None]:
    if not flip and not rotate:
        return images, mask
    draws = torch.randint(0, 2, (4, part.total, 1, 1, 1), generator=generator).bool()[:, part.inside].to(images.device)
    x = images if mask is None else torch.cat([images, mask[:, None].to(images.dtype)], dim=1)
    if flip:
        x = torch.where(draws[0], x.flip(3), x)
        x = torch.where(draws[1], x.flip(2), x)
    if rotate:
        x = torch.where(draws[2], x.flip(2, 3), x)
        x = torch.where(draws[3], x.rot90(1, (2, 3)), x)
    return (x, None) if mask is None else (x[:, :-1], x[:, -1] > 0.5)


def jittered(images: Tensor, strength: float, generator: torch.Generator, part: Part) -> Tensor:
    """Brightness, contrast and the colour of the first three channels change. A fourth channel does
    not.
    """
    if strength == 0:
        return images
    colour, rest = images[:, :3], images[:, 3:]
    draws = torch.empty(part.total, 5, 1, 1).uniform_(-strength, strength, generator=generator)
    draws = draws[part.inside].to(images.device)
    brightness, contrast, gains = draws[:, :1], draws[:, 1:2], draws[:, 2 : 2 + colour.shape[1]]
    centre = colour.mean(dim=(1, 2, 3), keepdim=True)
    colour = (centre + (colour - centre) * (1 + contrast)) * (1 + brightness) * (1 + gains / 2)
    return torch.cat([colour.clamp(0, 1), rest], dim=1)
