"""Recipes: networks, losses and labellings for the training loop.

A recipe is a subclass of `Recipe`. The training loop (`infoseg_fast.train`) owns the batches, the
backward pass, the optimiser, the log and the checkpoints. The recipe owns the networks, the loss
and the `Labelling`. `infoseg train --recipe MODULE:CLASS` trains a user's own recipe.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from ..data.reader import ReadOptions
from ..data.scaling import Scaling, eight_bit
from ..errors import DataError

if TYPE_CHECKING:
    from ..config import Settings
    from ..data.crops import Part
    from .labelling import Labelling
    from .sample import Sample

# Defaults of settings that a recipe has no default for.
COMMON_DEFAULTS: Mapping[str, Any] = {
    "estimator": "jsd", "negatives": "same_position", "num_negatives": 1, "balance": 0.0, "appearance": 0.0,
    "overcluster": 1.0, "width": 64, "depth": 2, "dim": 512, "batch_size": 16, "lr": 1e-3, "average": 0.0,
    "smooth": 0, "refine": False, "position": "off",
}  # fmt: skip
BUILT_IN = {
    "default": "infoseg_fast.recipe.default:DefaultRecipe",
    "paper": "infoseg_fast.recipe.paper:PaperRecipe",
    "iic": "infoseg_fast.recipe.iic:IICRecipe",
    "features": "infoseg_fast.recipe.features:FeaturesRecipe",
}


@dataclass(frozen=True)
class DataInfo:
    """The description of the images for a recipe and a labelling.

    Attributes:
        channels: number of channels of an image.
        num_classes: K, the number of classes of the labels.
        class_names: names of the classes of the ground truth, or None.
        mean, std: mean and standard deviation of each channel over the training images in [0, 1].
        scaling: maps stored values to [0, 1]. None: 8-bit values / 255. If it has no `fill`,
            pixels without data get the mean.
        scale: factor by which images are resized before they enter the network.
        raw_scale: factor by which the images of a prepared set were resized. Raw files are resized
            by it too.
        noise_share: result of `smoothing.noise_share`.
        reading: how the image files were read.
        position: whether the network gets the position of the pixels as a further channel
            (`position`).
    """

    channels: int
    num_classes: int
    class_names: list[str] | None
    mean: list[float]
    std: list[float]
    scaling: Scaling = None  # type: ignore[assignment]
    scale: float = 1.0
    raw_scale: float = 1.0
    noise_share: float = 0.0
    reading: ReadOptions = field(default_factory=ReadOptions)
    position: bool = False

    @property
    def inputs(self) -> int:
        """Number of channels that the network gets."""
        return self.channels + self.position

    def __post_init__(self) -> None:
        scaling = self.scaling or eight_bit(self.channels)
        if scaling.fill is None:
            object.__setattr__(self, "scaling", scaling.with_fill(self.mean))

    def state(self) -> dict[str, Any]:
        """Lists, numbers and text, for a checkpoint."""
        return {**vars(self), "scaling": self.scaling.state(), "reading": vars(self.reading)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> DataInfo:
        """The description with this `state`."""
        reading = ReadOptions(**state["reading"])
        return cls(**{**state, "scaling": Scaling.from_state(state["scaling"]), "reading": reading})


class Recipe(nn.Module):
    """An objective with its networks. Parameters that require a gradient are trained.

    Every checkpoint has the parameters and the buffers. All random numbers must follow from
    `settings.seed` and the step, so that a resumed run gives the same bits.

    Args:
        settings: the resolved settings of the run.
        data: the description of the images.
    """

    # Defaults of the settings that the user does not give.
    defaults: ClassVar[Mapping[str, Any]] = {}
    # The part of the step's batch that `loss` gets. None: the whole batch. The loop sets it for
    # ranks and --accumulate, so that random numbers can be drawn for the whole batch.
    part: Part | None = None
    # Whether the loss compares images with others: each part of a step needs --num-negatives + 1 then.
    compares_images: ClassVar[bool] = True
    # Tensors of the last step for `metrics`. A replay of a CUDA graph sets it to the graph's tensors.
    last: Any = None

    def __init__(self, settings: Settings, data: DataInfo) -> None:
        super().__init__()
        self.settings, self.data = settings, data

    def begin(self, sample: Sample) -> None:
        """Called once before the first step of a new run. Its results must be in parameters, buffers
        or `state`.
        """

    def loss(self, step: int, images: Tensor, mask: Tensor | None) -> Tensor:
        """The loss of one step, attached to the graph.

        Args:
            step: number of the step, from 0.
            images: augmented crops, float [B, c, crop, crop] in [0, 1], on the device of the
                parameters. The last channel is the position of the pixels if `data.position`.
            mask: bool [B, crop, crop], True for pixels that count. None: all count.

        Returns:
            A scalar. The loop calls `backward` on it.
        """
        raise NotImplementedError

    def before_step(self, step: int) -> None:
        """Called on the host before step number `step`, also if a CUDA graph replays the step. It
        must not wait for the device.
        """

    def after_step(self, step: int) -> None:
        """Called after the optimiser's step number `step`. It must not wait for the device."""

    def not_capturable(self) -> str | None:
        """The reason why a CUDA graph cannot replay `loss` and `after_step`. None: it can.

        A graph repeats the kernels of one step. So both methods may read tensors that `before_step`
        fills, but not the number of the step. They must not draw random numbers or wait for the
        device. `metrics` may read a step only through `last`.
        """
        return "the recipe does not say that its step can be captured (Recipe.not_capturable)"

    def metrics(self) -> dict[str, float]:
        """Numbers for the log line of the last step."""
        return {}

    def labelling(self, sample: Sample) -> Labelling:
        """The labelling of the current state: a function of the state and the sample. Called at most
        once per step.
        """
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """The content of a checkpoint besides parameters and buffers: tensors, numbers and text."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the result of `state`."""


def checked_loss(loss: Any, recipe: str) -> Tensor:
    """The result of `Recipe.loss`. Raise DataError unless `backward` can be called on it."""
    if not isinstance(loss, Tensor):
        raise DataError(f"--recipe {recipe}: loss must return a tensor, not {type(loss).__name__}")
    if loss.dim() or not loss.requires_grad:
        graph = "on" if loss.requires_grad else "off"
        raise DataError(
            f"--recipe {recipe}: loss must return a scalar that is attached to the graph of a trained parameter, not "
            f"{list(loss.shape)} {graph} the graph"
        )
    return loss


def imported(name: str, what: str) -> Any:
    """The object that "module:attribute" names. The working directory is searched too.

    Args:
        name: "module:attribute".
        what: the option or the file with this name, for the error.

    Raises:
        DataError: there is no such module or attribute.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise DataError(f"{what} must be MODULE:NAME, not {name!r}")
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        if module.startswith("."):
            raise ImportError("the name of a module begins with no dot")
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the module is the user's: it may raise anything
        kind = "" if isinstance(error, (ImportError, AttributeError)) else f"{type(error).__name__}: "
        raise DataError(f"{what} {name} cannot be imported: {kind}{error}") from error
    finally:
        with contextlib.suppress(ValueError):  # the module may have changed the path
            sys.path.remove(folder)


def recipe_class(name: str) -> type[Recipe]:
    """The class of a recipe by its name in BUILT_IN, or by MODULE:CLASS.

    Raises:
        DataError: there is no such recipe.
    """
    if name not in BUILT_IN and ":" not in name:
        raise DataError(f"--recipe must be {', '.join(BUILT_IN)} or MODULE:CLASS, not {name!r}")
    found = imported(BUILT_IN.get(name, name), "--recipe")
    if not (isinstance(found, type) and issubclass(found, Recipe)):
        raise DataError(f"--recipe {name} is not a subclass of infoseg_fast.recipe.Recipe")
    return found
