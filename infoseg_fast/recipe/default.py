"""The default recipe: InfoNCE with the parts that trials on real images chose (docs/recipe.md)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from . import DataInfo, Recipe
from .appearance import AppearanceTerm
from .labelling import Labelling, grouped
from .network import TrainedNetwork
from .overclustering import choose_groups, over_clusters
from .refinement import fit_refinement
from .sample import Sample
from .smoothing import AUTO, smoothing_radius

if TYPE_CHECKING:
    from ..config import Settings


class DefaultRecipe(Recipe):
    """A network of K classes with the parts that its settings ask for.

    Each part can be left out by one setting: the appearance term (`appearance=0`), the
    over-clustered network (`overcluster=1`), smoothing (`smooth=0`), averaged weights
    (`average=0`), and pixel refinement (`refine=False`).
    """

    defaults: ClassVar[dict[str, Any]] = {
        "estimator": "infonce",
        "num_negatives": "all",
        "balance": 4.0,
        "appearance": 10.0,
        "overcluster": 3.0,
        "width": 16,
        "depth": 0,
        "dim": 32,
        "batch_size": 32,
        "lr": 3e-3,
        "average": 0.99,
        "smooth": AUTO,
        "refine": True,
    }

    def __init__(self, settings: Settings, data: DataInfo) -> None:
        super().__init__(settings, data)
        self.smooth = smoothing_radius(settings.smooth, data.noise_share)
        term = AppearanceTerm(settings.appearance, settings.temperature, self.smooth) if settings.appearance else None
        self.network = TrainedNetwork(settings, data, data.num_classes, term)
        # Partitions are scored by their appearance: without the term no network follows it.
        number = over_clusters(data.num_classes, settings.overcluster) if term else 0
        self.over_network = TrainedNetwork(settings, data, number, term) if number else None

    def loss(self, step: int, images: Tensor, mask: Tensor | None) -> Tensor:
        loss = self.network.loss(step, images, mask)
        return loss if self.over_network is None else loss + self.over_network.loss(step, images, mask)

    def after_step(self, step: int) -> None:
        self.network.after_step(step)
        if self.over_network is not None:
            self.over_network.after_step(step)

    def metrics(self) -> dict[str, float]:
        return {"classes_in_use": self.network.classes_in_use()}

    @torch.no_grad()
    def labelling(self, sample: Sample) -> Labelling:
        found = self._labelling(self.network)
        if self.over_network is None and not self.settings.refine:
            return found
        probs = [found.probabilities(images) for images, _ in sample.batches]
        if self.over_network is not None:
            over = self._labelling(self.over_network)
            over_probs = [over.probabilities(images) for images, _ in sample.batches]
            groups = choose_groups(probs, over_probs, sample, self.smooth)
            if groups is not None:
                found = self._labelling(self.over_network, groups)
                probs = [grouped(x, groups) for x in over_probs]
        if self.settings.refine:
            found = dataclasses.replace(found, refinement=fit_refinement(probs, sample, self.smooth))
        return found

    def _labelling(self, network: TrainedNetwork, groups: list[list[int]] | None = None) -> Labelling:
        return Labelling(
            network.frozen(),
            network.arguments,
            self.data,
            temperature=self.settings.temperature,
            smooth=self.smooth,
            groups=groups,
        )
