"""`InfoSegNet`: local features, and K global features of each image."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .ops.checks import described, matching_mask
from .reference.tracing import recorded

INPUTS = ("rgb", "grey", "sobel")  # the images; their grey; the images and two Sobel maps of their grey
# As in IIC, which applied OpenCV's weights of red, green and blue to blue, green and red.
GREY = (0.114, 0.587, 0.299)
SOBEL = (((1, 0, -1), (2, 0, -2), (1, 0, -1)), ((1, 2, 1), (0, 0, 0), (-1, -2, -1)))

STRIDE = 4  # pixels between local features
MIN_SIDE = 32  # pixels; smaller images are padded
MAX_DEPTH = 5  # largest number of residual blocks of block C


class Convolution(nn.Conv2d):
    """A 3x3 convolution, padded by reflection. With zeros the network would detect the border and
    use a class for it.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, 3, stride, padding=1, padding_mode="reflect", bias=False)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # Recorded graphs and transforms need PyTorch's own padding. On a CPU it is deterministic.
        if x.device.type == "cpu" or recorded() or torch._C._are_functorch_transforms_active():
            return super()._conv_forward(x, weight, bias)
        return F.conv2d(Reflected.apply(x), weight, bias, self.stride)


class Reflected(torch.autograd.Function):
    """Maps [B, c, H, W], padded by one reflected row and column on each side: [B, c, H + 2, W + 2].

    On a GPU the gradient of PyTorch's padding adds with atomics, so reruns differ. Its result is
    never channels-last, so each convolution copies its input and its gradient. Here both directions
    keep the layout, and sums have a fixed order.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        B, c, H, W = x.shape
        layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        out = torch.empty((B, c, H + 2, W + 2), dtype=x.dtype, device=x.device, memory_format=layout)
        out[:, :, 1:-1, 1:-1] = x
        out[:, :, 1:-1, 0], out[:, :, 1:-1, -1] = x[:, :, :, 1], x[:, :, :, -2]
        out[:, :, 0], out[:, :, -1] = out[:, :, 2], out[:, :, -3]
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        rows = grad[:, :, 1:-1].clone()
        rows[:, :, 1] += grad[:, :, 0]
        rows[:, :, -2] += grad[:, :, -1]
        found = rows[:, :, :, 1:-1].clone()
        found[:, :, :, 1] += rows[:, :, :, 0]
        found[:, :, :, -2] += rows[:, :, :, -1]
        return found


class ConvBlock(nn.Sequential):
    """3x3 convolution, batch normalisation, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(
            Convolution(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)
        )


class ResidualBlock(nn.Module):
    """ReLU of the sum of x and two 3x3 convolutions of x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvBlock(channels, channels), Convolution(channels, channels), nn.BatchNorm2d(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


class Encoder(nn.Module):
    """Blocks A to D. Returns the maps of block C (stride 4, 2 x width channels) and D (stride 16, 4
    x width channels). A position of C sees 7 + 16 x depth pixels a side.
    """

    def __init__(self, in_channels: int, width: int, depth: int = 2) -> None:
        super().__init__()
        self.A = ConvBlock(in_channels, width, stride=2)  # sees 3 px
        self.B = nn.Sequential(ConvBlock(width, 2 * width, stride=2))  # sees 7 px
        self.C = nn.Sequential(*(ResidualBlock(2 * width) for _ in range(depth)))  # sees 16 px more a block
        self.D = nn.Sequential(ConvBlock(2 * width, 4 * width, stride=2), ConvBlock(4 * width, 4 * width, stride=2))

    def forward(self, x: Tensor) -> list[Tensor]:
        local = self.C(self.B(self.A(x)))
        return [local, self.D(local)]


class InfoSegNet(nn.Module):
    """Maps images to local features f (of block C) and global features H.

    The mean and the standard deviation of the images are buffers (`set_normalization`), which are
    saved with the model.

    Args:
        in_channels: c, channels of the images.
        num_classes: K, 2 to 256.
        width: channels of the first block. f has C = 2 x width channels.
        dim: D, the embedding dimension. The ops project f to it by `local_projection`.
        inputs: input of the network: "rgb", the images; "grey", the mean of their colours by
            OpenCV's weights; "sobel", the images and two gradients of their grey.
        depth: number of residual blocks of block C, 0 to MAX_DEPTH. A position sees 7 + 16 x depth
            pixels a side.

    Raises:
        ValueError: an argument is out of range.
    """

    inputs = "rgb"

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 2,
        width: int = 64,
        dim: int = 512,
        inputs: str = "rgb",
        depth: int = 2,
    ) -> None:
        super().__init__()
        if inputs not in INPUTS:
            raise ValueError(f"inputs must be one of {', '.join(INPUTS)}, not {inputs!r}")
        for name, value in (("in_channels", in_channels), ("width", width)):
            _check_whole(name, value, 1)
        _check_whole("depth", depth, 0, MAX_DEPTH)
        _check_outputs(num_classes, dim)
        self._assemble(
            Encoder({"rgb": in_channels, "grey": 1, "sobel": in_channels + 2}[inputs], width, depth),
            (0, 1),
            num_classes,
            dim,
            nn.Conv2d(2 * width, dim, 1),
            nn.Linear(4 * width, num_classes * dim),
            in_channels,
        )
        self.inputs = inputs
        if inputs != "rgb":  # buffers, since a Python constant would be copied to a GPU in each step
            self.register_buffer("grey", torch.tensor(GREY)[:, None, None], persistent=False)
            self.register_buffer("sobel", torch.tensor(SOBEL, dtype=torch.float32)[:, None], persistent=False)

    def _assemble(
        self,
        backbone: nn.Module,
        indices: tuple[int, int],
        num_classes: int,
        dim: int,
        local_projection: nn.Module,
        global_projection: nn.Module,
        channels: int,
    ) -> None:
        self.num_classes, self.dim, self._indices = num_classes, dim, indices
        self.backbone = backbone
        self.local_projection = local_projection
        self.global_projection = global_projection
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    @classmethod
    def from_backbone(
        cls,
        backbone: Callable[[Tensor], Sequence[Tensor]],
        local_index: int,
        global_index: int,
        num_classes: int,
        dim: int = 512,
    ) -> "InfoSegNet":
        """A network on any module that returns a list of maps [B, channels, h, w], such as timm's
        with `features_only`.

        The projections find their channels at the first call. Call the network once before an
        optimiser gets its parameters.

        Args:
            backbone: the module. It gets the normalised images.
            local_index: index of the map with the local features.
            global_index: index of the map whose mean over positions is projected to the global
                features.
            num_classes, dim: as in the class.

        Raises:
            ValueError: num_classes or dim is out of range.
        """
        _check_outputs(num_classes, dim)
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        projections = nn.LazyConv2d(dim, 1), nn.LazyLinear(num_classes * dim)
        model._assemble(backbone, (local_index, global_index), num_classes, dim, *projections, 1)
        return model

    def set_normalization(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the mean and the standard deviation of each channel of the images in [0, 1]. One value
        holds for all channels.

        Raises:
            ValueError: a value is not finite, a standard deviation is not above 0, or the numbers
                of values are not the number of channels.
        """
        buffers = {}
        for name, values in (("mean", mean), ("std", std)):
            values = values.tolist() if isinstance(values, np.ndarray) else values  # any byte order and strides
            buffer = torch.as_tensor(values, dtype=self.mean.dtype, device=self.mean.device).flatten()
            if not torch.isfinite(buffer).all() or (name == "std" and not (buffer > 0).all()):
                raise ValueError(f"{name} must be finite{' and above 0' if name == 'std' else ''}, not {values}")
            buffers[name] = buffer
        own = isinstance(self.backbone, Encoder)
        channels = self.mean.numel() if own else max(map(len, buffers.values()))
        for name, buffer in buffers.items():
            if len(buffer) not in (1, channels):
                raise ValueError(f"{name} must have one value for each of {channels} channels, not {len(buffer)}")
            setattr(self, name, buffer.expand(channels).clone())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        # The number of channels of another backbone is that of the normalisation that was saved.
        if not isinstance(self.backbone, Encoder):
            for name in ("mean", "std"):
                own, saved = getattr(self, name), state_dict.get(prefix + name)
                if isinstance(saved, Tensor) and saved.dim() == 1 and 1 in (len(own), len(saved)):
                    setattr(self, name, own.new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *others)

    def normalize(self, images: Tensor) -> Tensor:
        """The input of the backbone for images float [B, c, H_img, W_img] in [0, 1]: `inputs`,
        normalised, and padded to multiples of 4, at least 32 pixels. The padding repeats the last
        row and column.

        Raises:
            ValueError: the shape, the dtype or the number of channels is wrong.
        """
        if images.dim() != 4 or not images.is_floating_point():
            raise ValueError(f"images must be float [B, c, H_img, W_img], not {images.dtype} {list(images.shape)}")
        channels = self.mean.numel()
        if channels != 1 and channels != images.shape[1]:  # not `in`: the compiler finds no dynamic size there
            raise ValueError(f"images must have {channels} channels, not {images.shape[1]}")
        if not recorded() and 0 in images.shape[2:]:
            raise ValueError(f"images must have at least one pixel, not {list(images.shape)}")
        mean, std = self.mean[:, None, None], self.std[:, None, None]
        if self.inputs == "rgb":
            images = (images - mean) / std
        elif self.inputs == "grey":
            images = (grey(images, self.grey) - grey(mean[None], self.grey)) / std.mean()
        else:
            images = torch.cat([(images - mean) / std, sobel(grey(images, self.grey), self.sobel)], dim=1)
        return padded(images)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Local and global features.

        Args:
            images: float [B, c, H_img, W_img] in [0, 1].
            mask: bool [B, h, w], the positions that count in the global features. None: all.

        Returns:
            f [B, C, h, w] with h = ceil(H_img / 4), at least 8, and H [B, K, D].

        Raises:
            TypeError: the backbone returns no list of maps.
            ValueError: see `normalize`, or mask has another shape or dtype.
        """
        maps = self.backbone(self.normalize(images))
        if not isinstance(maps, (list, tuple)):
            raise TypeError(f"the backbone must return a list of maps [B, channels, h, w], not {described(maps)}")
        try:
            features, deep = (maps[index] for index in self._indices)
        except IndexError:
            raise ValueError(
                f"local_index and global_index must be indices of the {len(maps)} maps of the backbone, "
                f"not {self._indices}"
            ) from None
        matching_mask(mask, features)
        if any(isinstance(p, nn.parameter.UninitializedParameter) for p in self.local_projection.parameters()):
            self.local_projection(features.detach()[:1, :, :1, :1])  # makes the weight, which the ops use
        return features, self.global_features(mean_of(deep, mask))

    def global_features(self, pooled: Tensor) -> Tensor:
        """H [B, K, D] from the spatial mean of block D [B, channels]."""
        return self.global_projection(pooled).unflatten(1, (self.num_classes, self.dim))


def _check_whole(name: str, value: int, least: int, most: int | None = None) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least or value > (most or value):
        accepted = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number {accepted}, not {value!r}")


def _check_outputs(num_classes: int, dim: int) -> None:
    _check_whole("num_classes", num_classes, 2, 256)
    _check_whole("dim", dim, 1)


def mean_of(maps: Tensor, mask: Tensor | None) -> Tensor:
    """Means [B, channels] of maps [B, channels, m, n]. The weight of a position is the share of its
    positions of `mask`, bool [B, h, w], that count. The mean is 0 if none counts.
    """
    if mask is None:
        return maps.mean(dim=(2, 3))
    shares = F.adaptive_avg_pool2d(mask[:, None].to(maps.dtype), maps.shape[2:])
    return (maps * shares).sum(dim=(2, 3)) / shares.sum(dim=(2, 3)).clamp_min(torch.finfo(maps.dtype).tiny)


def grey(images: Tensor, weights: Tensor | None = None) -> Tensor:
    """Grey [B, 1, H, W] of images [B, c, H, W]: the sum of the first three channels with `weights`
    [3, 1, 1] (None: GREY), or the first channel if there are fewer.
    """
    if images.shape[1] < 3:
        return images[:, :1]
    weights = images.new_tensor(GREY)[:, None, None] if weights is None else weights.to(images.dtype)
    return (images[:, :3] * weights).sum(dim=1, keepdim=True)


def sobel(grey_images: Tensor, filters: Tensor | None = None) -> Tensor:
    """The two gradients [B, 2, H, W] of grey images [B, 1, H, W], with zeros beyond the border.
    `filters` [2, 1, 3, 3] are SOBEL if None.
    """
    filters = grey_images.new_tensor(SOBEL)[:, None] if filters is None else filters.to(grey_images.dtype)
    return F.conv2d(grey_images, filters, padding=1)


def padded(images: Tensor, multiple: int = STRIDE) -> Tensor:
    """Images [B, c, H, W] with the last row and column repeated up to the size of the network's
    input, a multiple of `multiple` pixels.
    """
    rows, columns = images.shape[2:]
    if recorded():  # a recorded graph cannot compare sizes
        y, x = (torch.arange(padded_side(n, multiple), device=images.device).clamp(max=n - 1) for n in (rows, columns))
        return images[:, :, y][:, :, :, x]
    bottom, right = (padded_side(n, multiple) - n for n in (rows, columns))
    return F.pad(images, (0, right, 0, bottom), mode="replicate") if bottom or right else images


def padded_side(n: int, multiple: int = STRIDE) -> int:
    """The side of the network's input for an image of side n, pixels."""
    side = (n + multiple - 1) // multiple * multiple  # not -(-n // m): exported graphs round to 0
    if isinstance(side, Tensor):  # from torch.jit.trace
        return side.clamp(min=MIN_SIDE)
    return torch.sym_max(side, MIN_SIDE)


def position_size(images: Tensor) -> tuple[int, int]:
    """The size (h, w) of the features of images [B, c, H, W]."""
    return padded_side(images.shape[2]) // STRIDE, padded_side(images.shape[3]) // STRIDE


def position_mask(mask: Tensor | None, images: Tensor) -> Tensor | None:
    """The positions whose pixels all count in `mask`, bool [B, H, W]: bool [B, h, w]. Padding does
    not count. None for the mask: all pixels count. None as the result: all positions count.
    """
    h, w = position_size(images)
    below, right_of = STRIDE * h - images.shape[2], STRIDE * w - images.shape[3]
    if mask is None:
        if not (below or right_of):
            return None
        mask = torch.ones_like(images[:, 0], dtype=torch.bool)
    return F.max_pool2d(F.pad((~mask).float(), (0, right_of, 0, below), value=1.0), STRIDE) == 0
