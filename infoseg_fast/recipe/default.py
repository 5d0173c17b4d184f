"""The default recipe: InfoNCE with parts that improve it on real images (docs/recipe.md)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from . import DataInfo, Recipe
from .appearance import AppearanceTerm
from .labelling import Labelling
from .network import TrainedNetwork
from .overclustering import OverClusters, network_classes
from .sample import Sample
from .smoothing import AUTO, smoothing_radius

if TYPE_CHECKING:
    from ..config import Settings


class DefaultRecipe(Recipe):
    """A network with more classes than the labels. Its merged classes are the labels.

    One setting disables each part: `appearance=0` the appearance term, `overcluster=1`
    over-clustering, `smooth=0` smoothing, `average=0` averaged weights, and `refine=False` pixel
    refinement.
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
        "position": AUTO,
        "refine": True,
    }

    def __init__(self, settings: Settings, data: DataInfo) -> None:
        super().__init__(settings, data)
        self.smooth = smoothing_radius(settings.smooth, data.noise_share)
        term = None
        if settings.appearance:
            term = AppearanceTerm(settings.appearance, settings.temperature, self.smooth, data.position)
        self.network = TrainedNetwork(settings, data, network_classes(data.num_classes, settings.overcluster), term)

    def loss(self, step: int, images: Tensor, mask: Tensor | None) -> Tensor:
        return self.network.loss(step, images, mask)

    def before_step(self, step: int) -> None:
        self.network.before_step(step)

    def not_capturable(self) -> str | None:
        if self.settings.backbone is not None:
            return "a backbone may draw random numbers or wait for the device"
        return "--positions draws within the step" if self.settings.positions else None

    @property
    def last(self) -> Any:
        return self.network.last

    @last.setter
    def last(self, last: Any) -> None:
        self.network.last = last

    def after_step(self, step: int) -> None:
        self.network.after_step(step)

    def metrics(self) -> dict[str, float]:
        return {"classes_in_use": self.network.classes_in_use()}

    @torch.no_grad()
    def labelling(self, sample: Sample) -> Labelling:
        found = Labelling(
            self.network.frozen(),
            self.network.arguments,
            self.data,
            self.network.builder,
            temperature=self.settings.temperature,
            smooth=self.smooth,
        )
        if found.num_clusters == self.data.num_classes and not self.settings.refine:
            return found
        without_data = self.network.without_data
        probs = [found.probabilities(images, mask if without_data else None) for images, mask in sample.batches]
        over_clusters = OverClusters.of(probs, sample, self.smooth, self.settings.refine)
        return dataclasses.replace(found, over_clusters=over_clusters).with_clusters(self.data.num_classes)
