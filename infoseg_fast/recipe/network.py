"""`TrainedNetwork`: a network with its loss and its averaged weights, for recipes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import backbones
from ..backbone_modules import normalization
from ..distributed.objective import chosen_positions, loss_over_ranks
from ..distributed.world import ranks
from ..model import InfoSegNet, position_mask
from ..ops import assign
from ..position import DEVIATION, MEAN
from .appearance import AppearanceTerm
from .averaging import average_of, decay_of, update_average
from .labelling import INFOSEG_NET
from .loss import InfoSegLoss

if TYPE_CHECKING:
    from ..config import Settings
    from . import DataInfo


class TrainedNetwork(nn.Module):
    """An `InfoSegNet` that is trained with the mutual information loss and the appearance term.

    Args:
        settings: the resolved settings of the run.
        data: the description of the images.
        num_classes: number of classes of this network.
        appearance: the appearance term. None: the loss has none.
    """

    def __init__(
        self, settings: Settings, data: DataInfo, num_classes: int, appearance: AppearanceTerm | None = None
    ) -> None:
        super().__init__()
        self.temperature, self.decay, self.appearance = settings.temperature, settings.average, appearance
        self.model, self.builder, self.arguments = new_network(settings, data, num_classes)
        # Convolutions on a CPU are a third faster with channels-last maps.
        self.model.to(memory_format=torch.channels_last)
        self.average = average_of(self.model) if self.decay else None
        self.criterion = InfoSegLoss(
            settings.temperature, settings.estimator, settings.negatives, settings.num_negatives, settings.balance
        )
        # Whether a mask excludes pixels without data, rather than pixels without ground truth.
        self.without_data = settings.loss_mask == "none"
        self.positions, self.across, self.seed = settings.positions, settings.negatives_across_ranks, settings.seed
        self.last: tuple[Tensor, Tensor] | None = None  # features and global features of the last step
        self._share: Tensor | None = None  # `share` of `update_average`, on a GPU

    def loss(self, step: int, images: Tensor, mask: Tensor | None) -> Tensor:
        """The loss of a batch. Arguments as in `Recipe.loss`."""
        mask = position_mask(mask, images)
        images_of = images.contiguous(memory_format=torch.channels_last)
        features, global_features = self.model(images_of, mask if self.without_data else None)
        self.last = features.detach(), global_features.detach()
        projection = self.model.local_projection
        counts = None
        if mask is not None and ranks() == 1:  # the loss is 0, not NaN, if no position counts
            counts = mask.any()
            mask = mask | ~counts
        given = features, global_features, projection.weight, projection.bias
        if ranks() > 1 or self.positions:
            chosen = chosen_positions(self.positions, features, self.seed, step)
            loss = loss_over_ranks(self.criterion, *given, mask, self.across, chosen)
        else:
            loss = self.criterion(*given, mask=mask)
        if self.appearance is not None:
            loss = loss - self.appearance(*given, images=images, mask=mask)
        return loss if counts is None else loss * counts

    def before_step(self, step: int) -> None:
        """Set the share of the step in the averaged weights, on a GPU."""
        device = self.model.mean.device
        if self.average is None or device.type == "cpu":
            return
        if self._share is None:
            self._share = torch.zeros((), device=device)
        self._share.fill_(1 - decay_of(self.decay, step))

    def after_step(self, step: int) -> None:
        """Update the averaged weights."""
        if self.average is not None:
            update_average(self.average, self.model, self.decay, step, self._share)

    def frozen(self) -> InfoSegNet:
        """A copy of the network for labels, with the averaged weights if there are any."""
        return copy.deepcopy(self.model if self.average is None else self.average).requires_grad_(False).eval()

    @torch.no_grad()
    def classes_in_use(self) -> float:
        """The exponential of the entropy of the mean assignment of the last batch: 1 for one class,
        K for K classes of equal size.
        """
        if self.last is None:
            return float("nan")
        projection = self.model.local_projection
        last = (x.to(projection.weight.dtype) for x in self.last)  # autocast lowers their precision
        probs = assign(*last, projection.weight, projection.bias, temperature=self.temperature)
        return torch.special.entr(probs.mean(dim=(0, 2, 3))).sum().exp().item()


def new_network(
    settings: Settings, data: DataInfo, num_classes: int, dim: int | None = None, components: int = 0
) -> tuple[InfoSegNet, str, dict[str, Any]]:
    """An untrained network by the settings, and the `builder` and the `arguments` of its `Labelling`.

    Args:
        num_classes: number of classes.
        dim: D. None: that of the settings.
        components: as in `Backbone`.
    """
    sizes: dict[str, Any] = {"in_channels": data.inputs, "num_classes": num_classes, "dim": dim or settings.dim}
    torch.manual_seed(settings.seed)
    if settings.backbone is None:
        arguments = {**sizes, "width": settings.width, "inputs": settings.inputs, "depth": settings.depth}
        model = InfoSegNet(**arguments)
        position = data.inputs - data.channels
        model.set_normalization(data.mean + [MEAN] * position, data.std + [DEVIATION] * position)
        return model, INFOSEG_NET, arguments
    weights = settings.backbone_weights and str(Path(settings.backbone_weights).resolve())
    arguments = {
        **sizes,
        "backbone": settings.backbone,
        "weights": weights,
        "frozen": settings.freeze_backbone,
        "local_index": settings.local_index or (-1,),
        "global_index": -1 if settings.global_index is None else settings.global_index,
        "components": components,
    }
    model = backbones.build(**arguments, pretrained=weights is None)
    if normalization(model.backbone.net, data.channels) == (None, None):
        model.set_normalization(data.mean, data.std)
    # Random changes of the crops would make every image a new one.
    if not (settings.flip or settings.rotate or settings.jitter):
        backbones.cache_features(model.backbone)
    if not settings.freeze_backbone:
        arguments["weights"] = None  # the weights of the checkpoint replace them
    return model, backbones.BUILDER, arguments
