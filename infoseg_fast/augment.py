"""Augmentation of whole batches on the device they are on; every draw comes from the generator given."""

import torch
from torch import Tensor


def flip_and_rotate(
    images: Tensor, valid: Tensor | None, generator: torch.Generator, flip: bool, rotate: bool
) -> tuple[Tensor, Tensor | None]:
    """Mirror and turn each square image [B, c, n, n] at random, and `valid` [B, n, n] with it.

    `flip` mirrors along both axes, `rotate` turns by 0 to 3 quarters; together they give all 8 symmetries of a square.
    """
    if not flip and not rotate:
        return images, valid
    draws = torch.randint(0, 2, (4, len(images), 1, 1, 1), generator=generator).bool().to(images.device)
    x = images if valid is None else torch.cat([images, valid[:, None].to(images.dtype)], dim=1)
    if flip:
        x = torch.where(draws[0], x.flip(3), x)
        x = torch.where(draws[1], x.flip(2), x)
    if rotate:
        x = torch.where(draws[2], x.flip(2, 3), x)
        x = torch.where(draws[3], x.rot90(1, (2, 3)), x)
    return (x, None) if valid is None else (x[:, :-1], x[:, -1] > 0.5)


def jitter(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast and (of the first three channels) colour of each image [B, c, n, n] in [0, 1].

    `strength` is the greatest relative change. A fourth channel (infrared) is left as it is.
    """
    if strength == 0:
        return images
    colour, rest = images[:, :3], images[:, 3:]
    draws = torch.empty(len(images), 5, 1, 1).uniform_(-strength, strength, generator=generator).to(images.device)
    brightness, contrast, gains = draws[:, :1], draws[:, 1:2], draws[:, 2 : 2 + colour.shape[1]]
    centre = colour.mean(dim=(1, 2, 3), keepdim=True)
    colour = (centre + (colour - centre) * (1 + contrast)) * (1 + brightness) * (1 + gains / 2)
    return torch.cat([colour.clamp(0, 1), rest], dim=1)
