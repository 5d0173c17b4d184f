"""`Progress`: the state of a training run, and its form in a checkpoint."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .batches import stems_of_step
from .config import Settings
from .data import ImageSet
from .distributed.world import World
from .errors import DataError
from .recipe import Recipe
from .recipe.labelling import Labelling
from .run_folder import RunFolder


class Progress:
    """The state that the next step depends on.

    Attributes:
        step: number of finished steps.
        best_loss: lowest mean loss between two regular checkpoints.
    """

    def __init__(self, recipe: Recipe, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.recipe, self.optimizer = recipe, optimizer
        self.step, self.best_loss = 0, math.inf
        self._logged, self._saved = Mean(device), Mean(device)
        self._done = torch.zeros((), dtype=torch.int64, device=device)  # `step`, which a CUDA graph counts
        self._nonfinite = torch.full((), -1, device=device)  # number of the first step whose loss was not finite

    def add(self, loss: Tensor) -> None:
        """Add the loss of a step on the device, in place, so that a CUDA graph can replay it. The
        caller counts `step`.
        """
        first_bad = ~torch.isfinite(loss.detach()) & (self._nonfinite < 0)
        self._nonfinite.copy_(torch.where(first_bad, self._done, self._nonfinite))
        self._done += 1
        self._logged.add(loss)
        self._saved.add(loss)

    def nonfinite_step(self) -> int | None:
        """Number, from 0, of the first step whose loss was NaN or infinite, or None. Waits for the
        device.
        """
        step = int(self._nonfinite)
        return None if step < 0 else step

    def weights_are_finite(self) -> bool:
        """Whether all parameters are. Waits for the device."""
        return bool(torch.stack([torch.isfinite(x).all() for x in self.recipe.parameters()]).all())

    def skipped(self) -> int:
        """Number of steps since the last log line whose loss was not finite."""
        return self._logged.left_out()

    def logged_loss(self) -> float:
        """The mean of the finite losses since the last call.

        Raises:
            DataError: no loss was finite.
        """
        loss = self._logged.take()
        if not math.isfinite(loss):
            raise DataError(
                f"no loss was finite for the steps up to {self.step}; the last checkpoint is from before that. "
                "Try a lower --lr or a longer --warmup in a new run"
            )
        return loss

    def checkpoint(self, labelling: Labelling, regular: bool = True) -> tuple[dict[str, Any], bool]:
        """The content of a checkpoint, and whether it is the best one.

        Args:
            labelling: the labelling of this step.
            regular: whether the checkpoint is the last one or due every --checkpoint-every steps.
                Only these compare their mean losses. A checkpoint that a signal asked for does not,
                so that a resumed run has the same best checkpoint as an uninterrupted one.
        """
        is_best = False
        if regular:
            loss = self._saved.take()
            is_best = loss < self.best_loss  # False for NaN: no loss was finite since the last checkpoint
            self.best_loss = loss if is_best else self.best_loss
        return {
            "step": self.step,
            "best_loss": self.best_loss,
            "logged": self._logged.parts(),
            "saved": self._saved.parts(),
            "recipe": self.recipe.state_dict(),
            "recipe_state": self.recipe.state(),
            "optimizer": self.optimizer.state_dict(),
            "labelling": labelling.state(),
        }, is_best

    def restore(self, content: dict[str, Any]) -> None:
        """Continue from the content of a checkpoint."""
        self.step, self.best_loss = content["step"], content["best_loss"]
        self._done.fill_(self.step)
        self._logged.set(*content["logged"])
        self._saved.set(*content["saved"])
        self.recipe.load_state_dict(content["recipe"])
        self.recipe.load_state(content["recipe_state"])
        own = [(group["lr"], group["capturable"]) for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(content["optimizer"])
        for group, (lr, capturable) in zip(self.optimizer.param_groups, own, strict=True):
            group.update(lr=lr, capturable=capturable)  # these belong to the device; each step sets the rate


class Mean:
    """A running mean of the finite values. Its sums stay on the device until they are read."""

    def __init__(self, device: torch.device) -> None:
        self._total = torch.zeros((), dtype=torch.float64, device=device)
        self._finite = torch.zeros((), dtype=torch.int64, device=device)
        self._count = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, value: Tensor) -> None:
        value = value.detach()
        finite = torch.isfinite(value)
        self._total += torch.where(finite, value, 0)
        self._finite += finite
        self._count += 1

    def left_out(self) -> int:
        """Number of values so far that were not finite."""
        return int(self._count - self._finite)

    def take(self) -> float:
        """The mean of the finite values so far, NaN if there was none. The sums start again."""
        total, finite, _ = self.parts()
        self.set(0.0, 0, 0)
        return total / finite if finite else math.nan

    def parts(self) -> tuple[float, int, int]:
        """The arguments of `set`."""
        return self._total.item(), int(self._finite), int(self._count)

    def set(self, total: float, finite: int, count: int) -> None:
        self._total.fill_(total)
        self._finite.fill_(finite)
        self._count.fill_(count)


class NonfiniteGuard:
    """Skips a step whose loss or gradient is not finite, without waiting for the device.

    AdamW with `fused=True` reads `found_inf` on the device and then changes nothing. What else the
    step changes is restored: the buffers, such as the running statistics of batch normalisation, and
    the parameters that are not trained, such as averaged weights.
    """

    def __init__(self, recipe: Recipe, optimizer: torch.optim.Optimizer) -> None:
        self.recipe, self.optimizer = recipe, optimizer

    def remember(self) -> None:
        """Keep what a skipped step restores. Called before the loss of a step is formed."""
        self._before = [x.clone() for x in self._others()]

    def check(self, loss: Tensor) -> Tensor:
        """Decide on the update. Called after the backward pass and before the update. Returns the
        loss, or NaN if the step is skipped.
        """
        gradients = [x.grad for x in self.recipe.parameters() if x.grad is not None]
        self._finite = torch.isfinite(loss.detach()) & torch.isfinite(torch.nn.utils.get_total_norm(gradients))
        vars(self.optimizer).update(grad_scale=None, found_inf=(~self._finite).float())
        return torch.where(self._finite, loss, math.nan)

    def restore(self) -> None:
        """Restore it if the step is skipped. Called after `Recipe.after_step`."""
        for x, before in zip(self._others(), self._before, strict=True):
            x.copy_(torch.where(self._finite, x, before))

    def _others(self) -> list[Tensor]:
        """What a step changes besides the trained parameters."""
        return [*self.recipe.buffers(), *(x for x in self.recipe.parameters() if not x.requires_grad)]


def stop_if_nonfinite(
    run: RunFolder, settings: Settings, progress: Progress, train_set: ImageSet, world: World, saves: bool
) -> None:
    """Raise DataError if the loss of a step was NaN or infinite, or, before a checkpoint, if a weight
    is. nonfinite.json then names the images of the step.
    """
    step, fault = progress.nonfinite_step(), "the training loss was not finite at step"
    if step is None and saves and not progress.weights_are_finite():
        step, fault = progress.step - 1, "the gradient was not finite at step"
    if step is None:
        return
    if world.is_main:
        run.record_nonfinite(step, stems_of_step(train_set, settings, step))
    raise DataError(
        f"{fault} {step}; {run.nonfinite} names its images, and the last checkpoint is from before. --resume with "
        "--skip-nonfinite leaves such steps out; else try a lower --lr in a new run"
    )
