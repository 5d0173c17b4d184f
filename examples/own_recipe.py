"""A recipe of one's own: the mutual information of the classes of neighbouring positions, as the
only objective.

infoseg train --recipe own_recipe:NeighbourRecipe --data landcover --out RUN     (in this folder)
"""

import copy
from typing import ClassVar

import torch
from torch import Tensor

from infoseg_fast import InfoSegNet, assign
from infoseg_fast.model import position_mask
from infoseg_fast.recipe import Recipe
from infoseg_fast.recipe.labelling import Labelling


class NeighbourRecipe(Recipe):
    """Maximises I(k; k') of the classes k, k' of two positions side by side."""

    defaults: ClassVar = {"batch_size": 16, "lr": 3e-3, "width": 16, "depth": 1, "dim": 32}

    def __init__(self, settings, data):
        super().__init__(settings, data)
        torch.manual_seed(settings.seed)
        self.arguments = {
            "in_channels": data.channels, "num_classes": data.num_classes,
            "width": settings.width, "depth": settings.depth, "dim": settings.dim,
        }  # fmt: skip
        self.network = InfoSegNet(**self.arguments)
        self.network.set_normalization(data.mean, data.std)

    def loss(self, step: int, images: Tensor, mask: Tensor | None) -> Tensor:
        features, global_features = self.network(images)
        projection = self.network.local_projection
        probs = assign(features, global_features, projection.weight, projection.bias)
        if mask is not None:
            probs = probs * position_mask(mask, images)[:, None]
        joint = torch.einsum("bkhw,bchw->kc", probs[..., :-1], probs[..., 1:]) + 1e-6
        joint = (joint + joint.T) / (2 * joint.sum())
        share = joint.sum(dim=0)
        return -(joint * (joint / (share[:, None] * share)).log()).sum()

    def labelling(self, sample) -> Labelling:
        return Labelling(copy.deepcopy(self.network).requires_grad_(False).eval(), self.arguments, self.data)
