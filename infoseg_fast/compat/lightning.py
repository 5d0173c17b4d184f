"""A recipe as a LightningModule (extra [lightning]).

    from infoseg_fast.compat.lightning import InfoSegModule

    module = InfoSegModule.from_data("DIR", recipe="paper", classes=5)
    Trainer(max_steps=800).fit(module)
    labels = module.segmenter().segment(images)

The module is of `lightning.pytorch` or of `pytorch_lightning`: of the one that is imported already,
else of the one that is installed.
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
from ..data.crops import Part, held_in_memory
from ..defaults import float32_on_cpu
from ..errors import DataError
from ..recipe import Recipe, recipe_class
from ..recipe.sample import Sample
from ..scores.evaluate import evaluate
from ..segmenter import Segmenter

PACKAGES = ("lightning.pytorch", "pytorch_lightning")
LOGGED_SCORES = ("pixel_accuracy", "mean_iou", "nmi", "majority_accuracy")


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

    The Trainer owns the loop. With the same settings the losses are those of `infoseg train`.

    Args:
        recipe: what is trained. Its `settings` give the optimiser and the augmentation.
        sample: crops that the recipe fits its start and its labelling to, on the CPU. None: the
            first crops of `train_set`, as in `infoseg train`.
        train_set, eval_set: the images of `train_dataloader` and `scores`. None: the Trainer gets a
            data loader, whose batches are images, float [B, c, n, n] in [0, 1], or pairs of such
            images and their mask, bool [B, n, n].

    A checkpoint of Lightning holds the recipe's state too: `Trainer.fit(module, ckpt_path=...)`
    continues it.
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
        """The module of a set of images.

        Args:
            data: what `infoseg train --data` takes.
            given: the options of `infoseg train --help`, with "_" for "-". The Trainer's own
                arguments replace `steps`, `precision`, `device` and all of the run folder.

        Raises:
            DataError: the settings or the images are not as they must be.
        """
        settings = Settings.create(checked({"data": data} | given))
        train_set, eval_set = for_training(settings.open("train")), settings.open("eval")
        settings = settings.resolve(train_set, eval_set)
        if settings.accumulate != 1:
            raise DataError("accumulate must be 1 in a LightningModule: its steps are whole batches")
        train_set = held_in_memory(train_set)
        with float32_on_cpu():
            info = data_info(train_set, settings)
            train_set.scaling = info.scaling
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
        """The crops of `train_set`, those of `infoseg train`. An epoch goes once over the images."""
        if self.train_set is None:
            raise DataError("the module has no images: give Trainer.fit a data loader, or use InfoSegModule.from_data")
        return _Crops(self)

    def on_fit_start(self) -> None:
        """Refuse what would change the meaning of a step."""
        if self.trainer.accumulate_grad_batches != 1:
            raise DataError("Trainer: accumulate_grad_batches must be 1: draws follow from the number of the step")
        if self.trainer.world_size != 1:
            raise DataError("Trainer: one process trains a LightningModule; torchrun -m infoseg_fast takes several")

    def on_train_start(self) -> None:
        """Let the recipe fit its start to the sample, before the first step of a new run."""
        if self.global_step == 0:
            self.recipe.begin(self._sample_on_device())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The recipe's loss of one batch, augmented as by `infoseg train`."""
        images, mask = batch if isinstance(batch, (tuple, list)) else (batch, None)
        step = self.global_step
        images, mask = augmented(images, mask, self.settings, step, Part(0, len(images), len(images)))
        loss = self.recipe.loss(step, images, mask)
        self.log("loss", loss.detach(), prog_bar=True, batch_size=len(images))
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Averages of weights and the like, and the recipe's numbers for the log."""
        self.recipe.after_step(self.global_step - 1)
        if self.global_step % self.settings.log_every == 0:
            self.log_dict(self.recipe.metrics())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the recipe's parameters and buffers do not hold."""
        checkpoint["recipe_state"] = self.recipe.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` added."""
        self.recipe.load_state(checkpoint["recipe_state"])

    def val_dataloader(self) -> list[int]:
        """One batch, which stands for the whole of `eval_set`; none without ground truth."""
        return [0] if self.eval_set is not None and self.eval_set.has_labels else []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the scores of `eval_set`. Clusters are matched once, over all of its images."""
        if not self.trainer.sanity_checking:
            found = self.scores()
            self.log_dict({name: found[name] for name in LOGGED_SCORES if found[name] is not None}, batch_size=1)

    @torch.inference_mode(False)
    @torch.no_grad()
    def segmenter(self) -> Segmenter:
        """What turns images into label maps now, on the device of the module."""
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

    # Lightning asks for these of a loader that continues within an epoch. The step says everything.
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        module, step = self.module, self.module.global_step
        stop = (step // self.steps + 1) * self.steps
        for images, mask, _ in crops(module.train_set, module.settings, module.device, step, stop):
            yield images, mask
