"""A network in training: its weights, their average, its optimiser, and what one step on a batch does."""

import torch
from torch import Tensor

from ..config import TrainConfig
from ..model import InfoSegNet, padded
from ..ops import assign
from .appearance import RESOLUTION, appearance_term
from .averaging import add_to_average, averaged
from .loss import InfoSegLoss

# Steps from which and to which RESOLUTION gives way to the settings' own. The coarser one finds the partition, since a
# finer one has more of them to be caught in; the finer one draws its boundaries. Not shares of the steps, so that a run
# that is resumed with more steps is the longer run.
SHARPENING = 500, 550


def resolution_at(step: int, final: float) -> float:
    """The smallest difference of appearance that counts in the step after `step` others: geometrically to `final`."""
    first, last = SHARPENING
    done = min(max((step - first) / (last - first), 0.0), 1.0)
    return RESOLUTION * (final / RESOLUTION) ** done


class Learner:
    """A network of `classes` classes for images of `channels` channels; `config` says the rest.

    Args:
        seed: of the initial weights.
        normalization: mean and deviation of each channel, for a network that begins.
        state: what `state()` returned, for one that goes on.
    """

    def __init__(
        self,
        config: TrainConfig,
        classes: int,
        channels: int,
        device: torch.device,
        seed: int,
        *,
        normalization: tuple[list[float], list[float]] | None = None,
        state: dict | None = None,
    ) -> None:
        self.config = config
        self.network = {
            "in_channels": channels,
            "num_classes": classes,
            "width": config.width,
            "dim": config.dim,
            "inputs": config.inputs,
            "depth": config.depth,
        }
        torch.manual_seed(seed)
        self.model = InfoSegNet(**self.network)
        if normalization is not None:
            self.model.set_normalization(*normalization)
        if state is not None:
            self.model.load_state_dict(state["trained"])
        # Channels last: the convolutions of the CPU take two thirds of the time.
        self.model.to(device, memory_format=torch.channels_last)
        self.average = averaged(self.model) if config.average else self.model
        self.criterion = InfoSegLoss(
            config.temperature, config.estimator, config.negatives, config.num_negatives, config.balance
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        if state is not None:
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])

    def state(self) -> dict:
        """Nothing but tensors, numbers and text."""
        return {
            "trained": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def step(self, step: int, images: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Of the steps the one after `step` others: the loss and both kinds of features, detached, on the device.

        Args:
            images: float [B, c, crop, crop] in [0, 1]. mask: bool [B, h, w], of the positions that count.
        """
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, (step + 1) / max(config.warmup, 1))
        features, global_features = self.model(images.contiguous(memory_format=torch.channels_last))
        loss = self.loss(step, images, features, global_features, mask)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if config.average:
            add_to_average(self.average, self.model, config.average, step)
        return loss.detach(), features.detach(), global_features.detach()

    def loss(self, step: int, images: Tensor, features: Tensor, global_features: Tensor, mask: Tensor | None) -> Tensor:
        """What is minimised: the loss of local and global features, less what the classes tell of the appearance."""
        projection, weight = self.model.local_projection, self.config.appearance
        loss = self.criterion(features, global_features, projection.weight, projection.bias, mask=mask)
        if weight:
            loss = loss - weight * appearance_term(
                features,
                global_features,
                projection.weight,
                projection.bias,
                images=padded(images),
                mask=mask,
                temperature=self.config.temperature,
                smooth=self.config.smooth,  # as when labels are made of them
                resolution=resolution_at(step, self.config.resolution),
            )
        return loss

    def assign(self, features: Tensor, global_features: Tensor) -> Tensor:
        projection = self.model.local_projection
        return assign(
            features, global_features, projection.weight, projection.bias, temperature=self.config.temperature
        )

    @torch.no_grad()
    def classes_in_use(self, features: Tensor, global_features: Tensor) -> float:
        """exp of the entropy of the mean assignment of a batch: from 1, a single class, to K, all alike."""
        probs = self.assign(features, global_features)
        return torch.special.entr(probs.mean(dim=(0, 2, 3))).sum().exp().item()
