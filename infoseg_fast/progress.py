"""`Progress`: the state of a training run, and its form in a checkpoint."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .errors import DataError
from .recipe import Recipe
from .recipe.labelling import Labelling


class Progress:
    """The steps that are done, with everything that the next step depends on.

    Attributes:
        step: number of steps that are done.
        best_loss: lowest mean loss between two checkpoints.
    """

    def __init__(self, recipe: Recipe, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.recipe, self.optimizer = recipe, optimizer
        self.step, self.best_loss = 0, math.inf
        self._logged, self._saved = Mean(device), Mean(device)

    def add(self, loss: Tensor) -> None:
        """Count one step with its loss. It does not wait for the device."""
        self.step += 1
        self._logged.add(loss)
        self._saved.add(loss)

    def logged_loss(self) -> float:
        """The mean loss since the last call.

        Raises:
            DataError: it is not finite.
        """
        return self._finite(self._logged.take())

    def checkpoint(self, labelling: Labelling) -> tuple[dict[str, Any], bool]:
        """The content of a checkpoint, and whether no mean loss between two checkpoints was lower.

        Raises:
            DataError: the mean loss is not finite.
        """
        loss = self._finite(self._saved.take())
        is_best, self.best_loss = loss < self.best_loss, min(loss, self.best_loss)
        return {
            "step": self.step,
            "best_loss": self.best_loss,
            "logged": self._logged.parts(),
            "recipe": self.recipe.state_dict(),
            "recipe_state": self.recipe.state(),
            "optimizer": self.optimizer.state_dict(),
            "labelling": labelling.state(),
        }, is_best

    def restore(self, content: dict[str, Any]) -> None:
        """Continue from the content of a checkpoint."""
        self.step, self.best_loss = content["step"], content["best_loss"]
        self._logged.set(*content["logged"])
        self.recipe.load_state_dict(content["recipe"])
        self.recipe.load_state(content["recipe_state"])
        self.optimizer.load_state_dict(content["optimizer"])

    def _finite(self, loss: float) -> float:
        if math.isfinite(loss):
            return loss
        raise DataError(
            f"the training loss became {loss} by step {self.step}; the last checkpoint is from before that. "
            "Try a lower --lr or a longer --warmup in a new run"
        )


class Mean:
    """A running mean. Its sum stays on the device until it is asked for."""

    def __init__(self, device: torch.device) -> None:
        self._total, self._count = torch.zeros((), dtype=torch.float64, device=device), 0

    def add(self, value: Tensor) -> None:
        self._total += value.detach()
        self._count += 1

    def take(self) -> float:
        """The mean of the values so far. The next one starts anew."""
        value = self._total.item() / self._count
        self.set(0.0, 0)
        return value

    def parts(self) -> tuple[float, int]:
        """What `set` takes."""
        return self._total.item(), self._count

    def set(self, total: float, count: int) -> None:
        self._total.fill_(total)
        self._count = count
