"""Small backbones for the tests of `--backbone`. Their weights are the same in every process."""

from itertools import pairwise

import torch
from torch import Tensor, nn


class Pyramid(nn.Module):
    """Maps of strides 2, 4, 8 and 16 with 4, 6, 8 and 10 channels."""

    mean, std = (0.4, 0.5, 0.6), (0.2, 0.2, 0.3)

    def __init__(self, channels: int = 3, seed: int = 0) -> None:
        super().__init__()
        sizes = [channels, 4, 6, 8, 10]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.stages = nn.ModuleList(
                nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
                for a, b in pairwise(sizes)
            )

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class Attentive(Pyramid):
    """As Pyramid, with squeeze-excitation: a position sees the whole image."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [m * m.mean(dim=(2, 3), keepdim=True).sigmoid() for m in super().forward(x)]


class Windows(Pyramid):
    """As Pyramid, with the means of windows of 7 x 7 positions, as attention in windows has them."""

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for m in super().forward(x):
            h, w = m.shape[2:]
            means = nn.functional.avg_pool2d(nn.functional.pad(m, (0, -w % 7, 0, -h % 7)), 7)
            maps.append(m + means.repeat_interleave(7, 2).repeat_interleave(7, 3)[:, :, :h, :w])
        return maps


class Finite(Pyramid):
    """As Pyramid, with zeros in place of NaN."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return super().forward(x.nan_to_num())


class Joined(Pyramid):
    """A map of stride 4 that is joined with the upsampled map of stride 16, and this map."""

    def forward(self, x: Tensor) -> list[Tensor]:
        _, fine, _, coarse = super().forward(x)
        return [torch.cat([fine, nn.functional.interpolate(coarse, scale_factor=4)], dim=1), coarse]


def pyramid() -> nn.Module:
    return Pyramid()


def other_weights() -> nn.Module:
    return Pyramid(seed=1)


def four_channels() -> nn.Module:
    return Pyramid(4)


def attentive() -> nn.Module:
    return Attentive()


def swapped() -> nn.Module:
    """The weights of Pyramid, with another activation."""
    net = Pyramid()
    for stage in net.stages:
        stage[2] = nn.GELU()
    return net


def failing() -> nn.Module:
    raise FileNotFoundError("no weights here")


class Half(Pyramid):
    """As Pyramid, with maps in float16."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [m.half() for m in super().forward(x)]


def half() -> nn.Module:
    return Half()


def windows() -> nn.Module:
    return Windows()


def finite() -> nn.Module:
    return Finite()


def joined() -> nn.Module:
    return Joined()


def one_map() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, 4, 1), nn.Flatten())


class OneSize(nn.Module):
    """A map of 7 x 7 positions, whatever the size of the images."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [nn.functional.adaptive_avg_pool2d(x, 7)]


def one_size() -> nn.Module:
    return OneSize()


def nothing() -> None:
    return None
