"""Augmentation of whole batches on the device they are on. Every draw follows from the seed and the
step.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .config import Settings
from .data.crops import Part
from .draws import generator_on


class Draws(NamedTuple):
    """The random numbers of the images of a part of a step.

    Attributes:
        moves: bool [4, b, 1, 1, 1]: mirrored in x, in y, turned by half, by a quarter. None: none
            are.
        colours: [b, 5, 1, 1]: relative changes of brightness, contrast and the colours. None: none.
    """

    moves: Tensor | None
    colours: Tensor | None


def drawn(settings: Settings, step: int, part: Part, device: torch.device) -> Draws:
    """The draws of a part of a step, made on the device. Those of a CPU and of a GPU differ."""
    generator = generator_on(device, settings.seed, step)
    moves = None
    if settings.flip or settings.rotate:
        bits = torch.randint(0, 2, (4, part.total, 1, 1, 1), generator=generator, device=device)
        moves = bits.bool()[:, part.inside]
    return Draws(moves, colour_draws(settings.jitter, generator, part, device) if settings.jitter else None)


def augmented(
    images: Tensor, mask: Tensor | None, settings: Settings, step: int, part: Part | None = None
) -> tuple[Tensor, Tensor | None]:
    """`changed` with the draws of the step. `part`: which images of the step's batch these are.
    None: all.
    """
    part = part or Part(0, len(images), len(images))
    return changed(images, mask, settings, drawn(settings, step, part, images.device))


def changed(images: Tensor, mask: Tensor | None, settings: Settings, draws: Draws) -> tuple[Tensor, Tensor | None]:
    """Square crops [B, c, n, n] in [0, 1], changed at random, and their mask, bool [B, n, n], moved
    with them.

    Args:
        settings: `flip` mirrors along both axes, `rotate` turns by 0 to 3 quarters; together they
            give the 8 symmetries of a square. `jitter` is the greatest relative change of
            brightness, contrast and colour. The draws follow from `seed` and from the step.
    """
    if draws.moves is not None:
        images, mask = _flipped_and_rotated(images, mask, draws.moves, settings.flip, settings.rotate)
    return images if draws.colours is None else jittered(images, draws.colours), mask


def _flipped_and_rotated(
    images: Tensor, mask: Tensor | None, moves: Tensor, flip: bool, rotate: bool
) -> tuple[Tensor, Tensor | None]:
    x = images if mask is None else torch.cat([images, mask[:, None].to(images.dtype)], dim=1)
    if flip:
        x = torch.where(moves[0], x.flip(3), x)
        x = torch.where(moves[1], x.flip(2), x)
    if rotate:
        x = torch.where(moves[2], x.flip(2, 3), x)
        x = torch.where(moves[3], x.rot90(1, (2, 3)), x)
    return (x, None) if mask is None else (x[:, :-1], x[:, -1] > 0.5)


def colour_draws(strength: float, generator: torch.Generator, part: Part, device: torch.device) -> Tensor:
    """Uniform draws [b, 5, 1, 1] from -strength to strength for the images of the part."""
    draws = torch.empty(part.total, 5, 1, 1, device=device)
    return draws.uniform_(-strength, strength, generator=generator)[part.inside]


def jittered(images: Tensor, draws: Tensor) -> Tensor:
    """Brightness, contrast and the colour of the first three channels change, by the relative
    changes `draws` of `colour_draws`. A fourth channel does not.
    """
    colour, rest = images[:, :3], images[:, 3:]
    brightness, contrast, gains = draws[:, :1], draws[:, 1:2], draws[:, 2 : 2 + colour.shape[1]]
    centre = colour.mean(dim=(1, 2, 3), keepdim=True)
    colour = (centre + (colour - centre) * (1 + contrast)) * (1 + brightness) * (1 + gains / 2)
    return torch.cat([colour.clamp(0, 1), rest], dim=1)
