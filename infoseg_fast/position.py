"""The vertical position of pixels in their image, as a further channel of the image.

In photographs the sky is above and the ground below, and a network with a small receptive field
cannot tell a grey sky from a grey road. In tiles of a map the rows look alike. So the network gets
the position only if the images say that it is informative (`position_is_informative`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .data import ImageSet
from .data.scenes import SceneCrops
from .ops.local_appearance import local_appearance
from .recipe.colours import colour_channels

MEAN, DEVIATION = 0.5, 12**-0.5  # of the position
SAMPLED_IMAGES = 200
GRID = 16  # positions of an image that are sampled, each way
FLIPS = 64  # draws whose largest share is that by chance
MIN_SHARE = 0.05


def with_position(images: Tensor, places: Tensor | None = None) -> Tensor:
    """Images [B, c, H, W] with the position of each pixel as the last channel, [B, c + 1, H, W].

    The position is the row of the pixel's centre in the whole image, divided by its number of rows.

    Args:
        places: for each image the row of its first pixel in the whole image, and the number of rows
            of the whole image, int64 [B, 2]. Padding below the whole image gets the position of its
            last row. None: the images are whole.
    """
    number = images.shape[2]
    row = torch.arange(number, device=images.device)
    if places is None:
        position = ((row + 0.5) / number)[None]
    else:
        first, rows = places.split(1, dim=1)
        position = (torch.minimum(first + row, rows - 1) + 0.5) / rows
    shape = (images.shape[0], 1, number, images.shape[3])  # `len` would fix the batch of an exported graph
    return torch.cat([images, position[:, None, :, None].to(images.dtype).expand(shape)], dim=1)


def position_is_informative(setting: str, images: ImageSet) -> bool:
    """Whether the network gets the position.

    Args:
        setting: "on", "off" or "auto": if `position_share` is above MIN_SHARE. Parts of scenes do
            not get it.
    """
    if setting != "auto":
        return setting == "on"
    return not isinstance(images, SceneCrops) and position_share(images) > MIN_SHARE


def position_share(images: ImageSet) -> float:
    """The share of the variance of the position that the appearance explains: R^2 of a linear
    regression of the position on `local_appearance`.

    In few images some of it is explained by chance. So the largest R^2 of FLIPS draws, in which
    images are mirrored at random, is subtracted.
    """
    seen = []
    for index in images.evenly_spread(SAMPLED_IMAGES):
        image = images.scaling.to_float(images.image(index))[None]
        appearance = local_appearance(colour_channels(image), (GRID, GRID))
        seen.append(appearance[0].double().flatten(1).T)
    y = torch.stack(seen)  # [images, positions, channels]
    y = y - y.mean(dim=(0, 1))
    inverse = torch.linalg.pinv(torch.einsum("npi,npj->ij", y, y), hermitian=True)
    position = torch.linspace(-1, 1, GRID, dtype=y.dtype).repeat_interleave(GRID)
    products = torch.einsum("npi,p->ni", y, position)

    def explained(signs: Tensor) -> float:
        """R^2 where the images with the sign -1 are mirrored."""
        product = signs @ products
        return (product @ inverse @ product / (len(y) * position.square().sum())).item()

    generator = torch.Generator().manual_seed(0)
    mirrored = torch.randint(0, 2, (FLIPS, len(y)), generator=generator).to(y.dtype) * 2 - 1
    return explained(torch.ones_like(mirrored[0])) - max(map(explained, mirrored))
