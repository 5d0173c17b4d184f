"""Recipes: what is trained, and how its result becomes labels.

A recipe is a class that extends `Recipe`. The training loop (`infoseg_fast.train`) owns the
batches, the backward pass, the optimiser, the log and the checkpoints. The recipe owns the
networks, the loss and the `Labelling` that they give. `infoseg train --recipe MODULE:CLASS` takes a
recipe of one's own.
"""

from __future__ import annotations

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

# Values for the settings that neither the user nor the recipe gives.
COMMON_DEFAULTS: Mapping[str, Any] = {
    "estimator": "jsd", "negatives": "same_position", "num_negatives": 1, "balance": 0.0, "appearance": 0.0,
    "overcluster": 1.0, "width": 64, "depth": 2, "dim": 512, "batch_size": 16, "lr": 1e-3, "average": 0.0,
    "smooth": 0, "refine": False,
}  # fmt: skip
BUILT_IN = {
    "default": "infoseg_fast.recipe.default:DefaultRecipe",
    "paper": "infoseg_fast.recipe.paper:PaperRecipe",
    "iic": "infoseg_fast.recipe.iic:IICRecipe",
    "features": "infoseg_fast.recipe.features:FeaturesRecipe",
}


@dataclass(frozen=True)
class DataInfo:
    """What a recipe and a labelling know of the images.

    Attributes:
        channels: channels of an image.
        num_classes: K, the number of classes that labels have.
        class_names: names of the classes of the ground truth, if it has any.
        mean, std: mean and standard deviation of each channel over the training images, in the
            scale [0, 1].
        scaling: limits by which stored values become [0, 1]. None: of 8-bit values. Pixels without
            data get the mean, unless the scaling has a `fill`.
        scale: factor by which images are resized before they enter the network.
        raw_scale: factor by which files were resized when a prepared set was made. Raw files need
            it too.
        noise_share: share of the variance that noise has at the scale of a position
            (`smoothing.noise_share`).
        reading: how the files of the images were read: bands, no-data, alpha channel, pages.
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

    def __post_init__(self) -> None:
        scaling = self.scaling or eight_bit(self.channels)
        if scaling.fill is None:
            object.__setattr__(self, "scaling", scaling.with_fill(self.mean))

    def state(self) -> dict[str, Any]:
        """Lists, numbers and text, for a checkpoint."""
        return {**vars(self), "scaling": self.scaling.state(), "reading": vars(self.reading)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> DataInfo:
        """What `state` returned."""
        reading = ReadOptions(**state["reading"])
        return cls(**{**state, "scaling": Scaling.from_state(state["scaling"]), "reading": reading})


class Recipe(nn.Module):
    """An objective with its networks. Parameters that require a gradient are trained.

    Args:
        settings: the resolved settings of the run.
        data: what is known of the images.

    The parameters and buffers are saved in every checkpoint. All random numbers must follow from
    `settings.seed` and the step, so that a resumed run gives the same bits.
    """

    # Values for settings of `Settings` that the user leaves out. A subclass replaces those that it
    # names.
    defaults: ClassVar[Mapping[str, Any]] = {}
    # Which images of the step's batch those of `loss` are, where they are not all. The loop sets it
    # for ranks and for --accumulate, so that draws can be those of the whole batch.
    part: Part | None = None
    # Tensors of the last step for `metrics`. A step that a CUDA graph replays puts its own here.
    last: Any = None

    def __init__(self, settings: Settings, data: DataInfo) -> None:
        super().__init__()
        self.settings, self.data = settings, data

    def begin(self, sample: Sample) -> None:
        """Called once before the first step of a new run. What it finds must be in parameters,
        buffers or `state`.
        """

    def loss(self, step: int, images: Tensor, mask: Tensor | None) -> Tensor:
        """The loss of one step, attached to the graph.

        Args:
            step: number of the step, from 0.
            images: augmented crops, float [B, c, crop, crop] in [0, 1], on the device of the
                parameters.
            mask: bool [B, crop, crop], True for pixels that count. None: all count.

        Returns:
            A scalar. The loop calls `backward` on it.
        """
        raise NotImplementedError

    def before_step(self, step: int) -> None:
        """Called on the host before step number `step`, also where a CUDA graph replays the rest of
        the step. It must not wait for the device.
        """

    def after_step(self, step: int) -> None:
        """Called after the optimiser's step number `step`. It must not wait for the device."""

    def not_capturable(self) -> str | None:
        """Why a CUDA graph cannot replay `loss` and `after_step`; None: it can.

        A graph repeats the kernels of one step. So both may read tensors that `before_step` fills,
        but neither the number of the step nor random numbers, and they must not wait for the
        device. What `metrics` reads of a step must be in `last`.
        """
        return "the recipe does not say that its step can be captured (Recipe.not_capturable)"

    def metrics(self) -> dict[str, float]:
        """Numbers for the log line of the last step."""
        return {}

    def labelling(self, sample: Sample) -> Labelling:
        """What turns images into labels now: a function of the state and of the sample. At most
        once per step.
        """
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs beside parameters and buffers: tensors, numbers and text."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""


def imported(name: str, what: str) -> Any:
    """The object that "module:attribute" names. The working directory is searched too.

    Args:
        name: as the user or a checkpoint gives it.
        what: the option or file that gives it, for the error.

    Raises:
        DataError: there is no such module or attribute.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise DataError(f"{what} must be MODULE:NAME, not {name!r}")
    sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise DataError(f"{what} {name} cannot be imported: {error}") from error
    finally:
        sys.path.remove(os.getcwd())


def recipe_class(name: str) -> type[Recipe]:
    """The class of `--recipe`: a name of BUILT_IN, or MODULE:CLASS.

    Raises:
        DataError: there is no such recipe.
    """
    if name not in BUILT_IN and ":" not in name:
        raise DataError(f"--recipe must be {', '.join(BUILT_IN)} or MODULE:CLASS, not {name!r}")
    found = imported(BUILT_IN.get(name, name), "--recipe")
    if not (isinstance(found, type) and issubclass(found, Recipe)):
        raise DataError(f"--recipe {name} is not a subclass of infoseg_fast.recipe.Recipe")
    return found
