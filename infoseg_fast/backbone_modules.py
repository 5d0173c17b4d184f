"""The modules that `--backbone` names: timm's or the user's, their weights and their normalisation."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import DataError, first_line
from .recipe import imported

TIMM = "timm:"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, for modules that name none


def module_of(name: str, weights: str | None, channels: int, pretrained: bool) -> nn.Module:
    """The module with this name, with the weights of a file.

    Raises:
        DataError: the module cannot be built, or the weights do not fit.
    """
    state = None if weights is None else read_weights(weights)
    if name.startswith(TIMM):
        return timm_module(name.removeprefix(TIMM), state, weights, channels, pretrained)
    function = imported(name, "--backbone")
    try:
        net = function()
    except Exception as error:  # the function is the user's: it may raise anything
        raise DataError(f"--backbone {name} cannot be made: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(net, nn.Module):
        raise DataError(f"--backbone {name} must return a torch.nn.Module, not {type(net).__name__}")
    if state is not None:
        load_strictly(net, state, name, weights)
    return net


def timm_module(
    name: str, state: dict[str, Tensor] | None, file: str | None, channels: int, pretrained: bool
) -> nn.Module:
    """timm's feature extractor with this name; see `module_of`."""
    try:
        import timm
    except ImportError as error:
        raise DataError(f"--backbone timm:{name} needs timm ({error}): pip install 'infoseg-fast[timm]'") from error
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('.')[0][:6]}*")[:5])
        raise DataError(f"--backbone timm:{name}: timm has no such model{f' (but {near})' if near else ''}")
    how: dict[str, Any] = {"features_only": True, "in_chans": channels, "pretrained": pretrained or state is not None}
    if state is not None:
        # timm's feature extractors ignore weights that do not fit, so the whole model checks names
        # and shapes.
        whole = timm.create_model(name, pretrained=False, num_classes=0)
        load_strictly(whole, {k: v for k, v in state.items() if k in whole.state_dict()}, f"{TIMM}{name}", file)
        how["pretrained_cfg_overlay"] = {"state_dict": whole.state_dict()}
    try:
        return channels_first(any_size(timm.create_model, name, how))
    except (RuntimeError, OSError, ValueError, AttributeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines() or [type(error).__name__]
        hint = "" if state is not None else "; --backbone-weights FILE takes weights from a file"
        raise DataError(f"--backbone timm:{name} cannot be made: {reason[0]}{hint}") from error


def any_size(create: Callable[..., nn.Module], name: str, how: dict[str, Any]) -> nn.Module:
    """timm's network, for images of any size if it can take them. Transformers need one of two
    arguments for this, which other networks refuse.
    """
    for argument, value in (("dynamic_img_size", True), ("strict_img_size", False)):
        try:
            return create(name, **how, **{argument: value})
        except TypeError as error:
            if argument not in str(error):
                raise
    return create(name, **how)


class ChannelsFirst(nn.Module):
    """A network of timm with maps [B, h, w, channels], as one with maps [B, channels, h, w]."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.pretrained_cfg = net, net.pretrained_cfg

    def forward(self, x: Tensor) -> list[Tensor]:
        return [maps.movedim(-1, 1) for maps in self.net(x)]


def channels_first(net: nn.Module) -> nn.Module:
    """timm's network, with maps [B, channels, h, w]."""
    return ChannelsFirst(net) if getattr(net, "output_fmt", None) == "NHWC" else net


def read_weights(file: str) -> dict[str, Tensor]:
    """The state dict of a file: safetensors, or written by `torch.save`. No code in it is executed.

    Raises:
        DataError: the file cannot be read, or has no state dict.
    """
    if not Path(file).is_file():
        raise DataError(f"--backbone-weights {file} is no file")
    if file.endswith(".safetensors"):
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise DataError(f"--backbone-weights {file} needs safetensors: pip install safetensors") from error
        try:
            return load_file(file)
        except Exception as error:  # SafetensorError, which the package makes at run time
            raise DataError(f"--backbone-weights {file} is no safetensors file: {error}") from error
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, KeyError, pickle.UnpicklingError) as error:
        raise DataError(f"--backbone-weights {file} is no state dict ({first_line(error)})") from error
    if not isinstance(state, dict) or not state or not all(isinstance(x, Tensor) for x in state.values()):
        raise DataError(f"--backbone-weights {file} must hold a state dict: names and tensors, and nothing else")
    return state


def load_strictly(net: nn.Module, state: dict[str, Tensor], name: str, file: str | None) -> None:
    """Load a state dict into a module.

    Raises:
        DataError: its names and shapes are not exactly those of the module.
    """
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise DataError(f"--backbone-weights {file} does not fit {name}: {reason[:200]}") from error


def normalization(net: nn.Module, channels: int) -> tuple[list[float] | None, list[float] | None]:
    """The mean and the standard deviation of the channels that the backbone was trained with. None:
    unknown.

    From timm's `pretrained_cfg`, else from the attributes `mean` and `std` of the module, else
    ImageNet's.
    """
    given = getattr(net, "pretrained_cfg", None) or {}
    found = []
    for name, default in (("mean", MEAN), ("std", STD)):
        values = given.get(name, getattr(net, name, default))
        values = [float(x) for x in values]
        found.append(values if len(values) == channels else None)
    return (found[0], found[1]) if None not in found else (None, None)


def hash_of(values: Mapping[str, Tensor]) -> bytes:
    """SHA-256 of the names, dtypes, shapes and values of tensors."""
    digest = hashlib.sha256()
    for name, value in values.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()
