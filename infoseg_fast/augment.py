"""Augmentation of whole batches on their device. All random numbers follow from the seed and the
step.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .config import Settings
from .data.crops import Part
from .draws import generator_on


class Draws(NamedTuple):
    """The random numbers of b images, a part of a step.

    Attributes:
        moves: bool [4, b, 1, 1, 1]: mirror in x, mirror in y, turn by a half, turn by a quarter.
            None: no image is moved.
        colours: [b, 5, 1, 1]: relative changes of brightness, contrast and three colours. None: no
            colour changes.
    """

    moves: Tensor | None
    colours: Tensor | None


def drawn(settings: Settings, step: int, part: Part, device: torch.device) -> Draws:
    """The random numbers of a part of a step, drawn on the device. A CPU and a GPU draw others."""
    generator = generator_on(device, settings.seed, step)
    moves = None
    if settings.flip or settings.rotate:
        bits = torch.randint(0, 2, (4, part.total, 1, 1, 1), generator=generator, device=device)
        moves = bits.bool()[:, part.inside]
    return Draws(moves, colour_draws(settings.jitter, generator, part, device) if settings.jitter else None)


def augmented(
    images: Tensor,
    mask: Tensor | None,
    settings: Settings,
    step: int,
    part: Part | None = None,
    position: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """`changed` with the random numbers of the step. `part` is the part of the step's batch
    that `images` holds. None: the whole batch.
    """
    part = part or Part(0, len(images), len(images))
    return changed(images, mask, settings, drawn(settings, step, part, images.device), position)


def changed(
    images: Tensor, mask: Tensor | None, settings: Settings, draws: Draws, position: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Randomly changed crops and their masks.

    Args:
        images: square crops [B, c, n, n] in [0, 1].
        mask: bool [B, n, n], moved with the crops, or None.
        settings: `flip` mirrors along both axes, `rotate` turns by 0 to 3 quarters. Together they
            give the 8 symmetries of a square. `jitter` is the largest relative change of
            brightness, contrast and colour.
        draws: the random numbers.
        position: whether the last channel is the position of the pixels, which `jitter` leaves.
    """
    if draws.moves is not None:
        images, mask = _flipped_and_rotated(images, mask, draws.moves, settings.flip, settings.rotate)
    return images if draws.colours is None else jittered(images, draws.colours, position), mask


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
    """Uniform random numbers [b, 5, 1, 1] from -strength to strength for the images of a part."""
    draws = torch.empty(part.total, 5, 1, 1, device=device)
    return draws.uniform_(-strength, strength, generator=generator)[part.inside]


def jittered(images: Tensor, draws: Tensor, position: bool) -> Tensor:
    """Images with another brightness, contrast and colour of the first three channels, by the
    relative changes of `colour_draws`. Further channels, and the position of the pixels if the last
    channel is that, do not change.
    """
    number = min(3, images.shape[1] - position)
    colour, rest = images[:, :number], images[:, number:]
    brightness, contrast, gains = draws[:, :1], draws[:, 1:2], draws[:, 2 : 2 + colour.shape[1]]
    centre = colour.mean(dim=(1, 2, 3), keepdim=True)
    colour = (centre + (colour - centre) * (1 + contrast)) * (1 + brightness) * (1 + gains / 2)
    return torch.cat([colour.clamp(0, 1), rest], dim=1)
