"""A recipe as a LightningModule (extra [lightning]).

    from infoseg_fast.compat.lightning import InfoSegModule

    module = InfoSegModule.from_data("DIR", recipe="paper", classes=5)
    Trainer(max_steps=800).fit(module)
    labels = module.segmenter().segment(images)

The module belongs to `lightning.pytorch` or `pytorch_lightning`: to the package that is imported
already, else to the one that is installed.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..augment import augmented
from ..batches import batches_per_epoch, crops, data_info, sample_of
from ..config import Settings, checked
from ..data import ImageSet, for_training
from ..data.crops import held_in_memory
from ..data.damaged import skip_damaged
from ..defaults import float32_on_cpu
from ..errors import DataError
from ..recipe import Recipe, recipe_class
from ..recipe.sample import Sample
from ..run_folder import LOGGED_SCORES
from ..scores.evaluate import evaluate
from ..segmenter import Segmenter

PACKAGES = ("lightning.pytorch", "pytorch_lightning")
# Settings of the loop of `infoseg train` that a Trainer has not, with the values that change nothing.
NOT_TAKEN = {
    "accumulate": (1,), "compile": (False,), "cuda_graph": ("auto", "off"), "skip_nonfinite": (False,),
    "workers": (None, 0),
}  # fmt: skip


def _module_class() -> type:
    for name in sorted(PACKAGES, key=lambda name: name not in sys.modules):
        try:
            return importlib.import_module(name).LightningModule
        except ImportError as error:
            reason = error
    raise ImportError(
        f"infoseg_fast.compat.lightning needs lightning or pytorch-lightning ({reason}): "
        "pip install 'infoseg-fast[lightning]'"
    ) from reason


class InfoSegModule(_module_class()):  # type: ignore[misc]
    """A recipe with its optimiser, its augmentation and its images.

    The Trainer owns the loop. With the same settings the losses equal those of `infoseg train`. A
    checkpoint of Lightning includes the recipe's state: `Trainer.fit(module, ckpt_path=...)`
    continues it.

    Args:
        recipe: the recipe. Its `settings` give the optimiser and the augmentation.
        sample: crops for the recipe's start and its labelling, on the CPU. None: the first crops of
            `train_set`, as in `infoseg train`.
        train_set: the images of `train_dataloader`. None: the Trainer gets a data loader. Its
            batches are images, float [B, c, n, n] in [0, 1], or pairs of images and mask, bool [B,
            n, n]. If `recipe.data.position`, the last channel is the position of the pixels
            (`infoseg_fast.position.with_position`).
        eval_set: the images of `scores`, or None.
    """

    def __init__(
        self,
        recipe: Recipe,
        sample: Sample | None = None,
        train_set: ImageSet | None = None,
        eval_set: ImageSet | None = None,
    ) -> None:
        super().__init__()
        self.recipe, self.settings = recipe, recipe.settings
        self.sample, self.train_set, self.eval_set = sample, train_set, eval_set
        self._sample_here: tuple[torch.device, Sample] | None = None

    @classmethod
    def from_data(cls, data: str, **given: Any) -> InfoSegModule:
        """A module for a set of images.

        Args:
            data: as in `infoseg train --data`.
            given: options of `infoseg train --help`, with "_" for "-". The Trainer's arguments
                replace `steps`, `precision`, `device` and the options of the run folder. Options that
                only the loop of `infoseg train` knows are refused (NOT_TAKEN).

        Raises:
            DataError: the settings or the images are not accepted.
        """
        settings = Settings.create(checked({"data": data} | given))
        for name, accepted in NOT_TAKEN.items():
            if (value := getattr(settings, name)) not in accepted:
                raise DataError(f"{name}={value!r} would have no effect in a LightningModule; leave it out")
        train_set, eval_set = for_training(settings.open("train")), settings.open("eval")
        settings = settings.resolve(train_set, eval_set)
        if settings.skip_damaged:
            train_set, eval_set = skip_damaged(train_set), skip_damaged(eval_set, scored=True)
        train_set = held_in_memory(train_set)
        with float32_on_cpu():
            info = data_info(train_set, settings)
            train_set.scaling, train_set.position = info.scaling, info.position
            recipe = recipe_class(settings.recipe)(settings, info)
        return cls(recipe, None, train_set, eval_set)

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with the linear warm-up of the settings."""
        trained = [x for x in self.recipe.parameters() if x.requires_grad]
        lr, decay, warmup = self.settings.lr, self.settings.weight_decay, max(self.settings.warmup, 1)
        optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=decay, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warmup))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def train_dataloader(self) -> Any:
        """The crops of `train_set`, the same as in `infoseg train`. An epoch is a pass over the
        images.

        Raises:
            DataError: there is no `train_set`.
        """
        if self.train_set is None:
            raise DataError("the module has no images: give Trainer.fit a data loader, or use InfoSegModule.from_data")
        return _Crops(self)

    def on_fit_start(self) -> None:
        """Check the Trainer.

        Raises:
            DataError: it accumulates gradients, has several processes, or casts the parameters.
        """
        if self.trainer.accumulate_grad_batches != 1:
            raise DataError("Trainer: accumulate_grad_batches must be 1: draws follow from the number of the step")
        if self.trainer.world_size != 1:
            raise DataError("Trainer: one process trains a LightningModule; torchrun -m infoseg_fast takes several")

        if self.trainer.precision.endswith("-true") and self.trainer.precision != "32-true":
            raise DataError(
                f"Trainer: precision must be 32-true, bf16-mixed or 16-mixed, not {self.trainer.precision}: parameters "
                "are float32"
            )

    def on_train_start(self) -> None:
        """Call the recipe's `begin` before the first step of a new run."""
        if self.global_step == 0:
            self.recipe.begin(self._sample_on_device())

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Call the recipe's `before_step`."""
        self.recipe.before_step(self.global_step)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The recipe's loss of a batch, augmented as in `infoseg train`."""
        images, mask = batch if isinstance(batch, (tuple, list)) else (batch, None)
        step = self.global_step
        images, mask = augmented(images, mask, self.settings, step, position=self.recipe.data.position)
        loss = self.recipe.loss(step, images, mask)
        self.log("loss", loss.detach(), prog_bar=True, batch_size=len(images))
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Call the recipe's `after_step`, and log its numbers."""
        self.recipe.after_step(self.global_step - 1)
        if self.global_step % self.settings.log_every == 0:
            self.log_dict(self.recipe.metrics())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the recipe's `state`."""
        checkpoint["recipe_state"] = self.recipe.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the recipe's `state`."""
        self.recipe.load_state(checkpoint["recipe_state"])

    def val_dataloader(self) -> list[int]:
        """One batch, which stands for the whole `eval_set`, or none if it has no ground truth."""
        return [0] if self.eval_set is not None and self.eval_set.has_labels else []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the scores of `eval_set`. Clusters are matched once, over all its images."""
        if not self.trainer.sanity_checking:
            found = self.scores()
            self.log_dict({name: found[name] for name in LOGGED_SCORES if found[name] is not None}, batch_size=1)

    @torch.inference_mode(False)
    @torch.no_grad()
    def segmenter(self) -> Segmenter:
        """A segmenter with the current weights, on the device of the module."""
        return Segmenter(self.recipe.labelling(self._sample_on_device()))

    def scores(self) -> dict[str, Any]:
        """The scores of `segmenter` on `eval_set`, as `isf.train` returns them.

        Raises:
            DataError: there is no `eval_set`, or it has no ground truth.
        """
        if self.eval_set is None:
            raise DataError("the module has no images with ground truth: give it an eval_set")
        return evaluate(self.segmenter(), self.eval_set, self.device)

    def _sample_on_device(self) -> Sample:
        device = self.device
        if self._sample_here is None or self._sample_here[0] != device:
            if self.sample is not None:
                found = self.sample.to(device)
            elif self.train_set is not None:
                found = sample_of(self.train_set, self.settings, device)
            else:
                raise DataError("the module has no images: give it a sample, or use InfoSegModule.from_data")
            self._sample_here = device, found
        return self._sample_here[1]


class _Crops:
    """The batches of the epoch that the module is in, from its next step on."""

    def __init__(self, module: InfoSegModule) -> None:
        self.module, self.steps = module, batches_per_epoch(module.train_set, module.settings)

    def __len__(self) -> int:
        return self.steps

    # Lightning needs these two to continue within an epoch. The step is the whole state.
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        module, step = self.module, self.module.global_step
        stop = (step // self.steps + 1) * self.steps
        for images, mask, _ in crops(module.train_set, module.settings, module.device, step, stop):
            yield images, mask
