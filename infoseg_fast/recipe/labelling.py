"""`Labelling`: everything that turns an image into labels, and its form in a checkpoint."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..defaults import float32_on_cpu
from ..errors import DataError
from ..model import InfoSegNet
from ..ops import assign
from ..reference import neighbourhood_mean
from . import DataInfo, imported
from .overclustering import OverClusters
from .refinement import Refinement
from .smoothing import MAX_RADIUS

INFOSEG_NET = "infoseg_fast.model:InfoSegNet"


@dataclass(frozen=True)
class Labelling:
    """A network, and the steps from its probabilities to labels.

    Attributes:
        network: maps images [B, c, H, W] in [0, 1] to features [B, C, h, w] and global features [B,
            K, D], and has a `local_projection`, a 1x1 convolution. It is in evaluation mode.
        arguments: keyword arguments with which `builder` builds the network.
        data: the images that the network expects, and the names of the classes.
        builder: "module:function" that builds the network when a checkpoint is loaded.
        temperature: tau.
        smooth: probabilities are averaged over 2 smooth + 1 positions a side.
        groups: the classes of the network that form each cluster. None: each class is a cluster.
        refinement: colour densities of the clusters, for labels that follow edges of colour. None:
            labels are the argmax of the upsampled probabilities.
        over_clusters: sums for groups of any number (`with_clusters`). None: the number of clusters
            is fixed.

    Raises:
        ValueError: smooth is out of range, or groups do not have each class once.
    """

    network: nn.Module
    arguments: dict[str, Any]
    data: DataInfo
    builder: str = INFOSEG_NET
    temperature: float = 1.0
    smooth: int = 0
    groups: list[list[int]] | None = None
    refinement: Refinement | None = None
    over_clusters: OverClusters | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.smooth <= MAX_RADIUS:
            raise ValueError(f"smooth must be from 0 to {MAX_RADIUS}, not {self.smooth!r}")
        if self.groups is not None:
            number = self.network.num_classes
            if sorted(k for group in self.groups for k in group) != list(range(number)):
                raise ValueError(f"groups must have each of the {number} classes once, not {self.groups}")

    @property
    def num_clusters(self) -> int:
        """K, the number of labels."""
        return self.network.num_classes if self.groups is None else len(self.groups)

    def with_clusters(self, number: int) -> Labelling:
        """The same network with labels of `number` clusters: the groups of its classes with the
        best partition score.

        Raises:
            DataError: the labelling has no over-clusters, or `number` is not from 2 to their
                number.
        """
        if self.over_clusters is None:
            raise DataError(
                f"--classes: the run has no over-clusters; it makes maps of {self.num_clusters} classes alone"
            )
        most = self.over_clusters.num_classes
        if not isinstance(number, (int, np.integer)) or not 2 <= number <= most:
            raise DataError(f"--classes must be a whole number from 2 to the run's {most} over-clusters, not {number}")
        groups = self.over_clusters.groups(number)
        refinement = self.over_clusters.refinement(groups, self.smooth)
        device = next(self.network.parameters()).device
        return dataclasses.replace(self, groups=groups, refinement=refinement and refinement.to(device))

    def maps(self, images: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The network's features and global features of images at its scale. An `InfoSegNet`
        excludes the positions that are False in `mask`, bool [B, h, w], from the global features.
        """
        known = mask is not None and isinstance(self.network, InfoSegNet)
        return self.network(images, mask) if known else self.network(images)

    def probabilities(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Probabilities [B, K, h, w] of images at the scale of the network. Mask as in `maps`."""
        return self.assign(*self.maps(images, mask))

    def assign(self, features: Tensor, global_features: Tensor) -> Tensor:
        """Probabilities [B, K, h, w] of the positions, grouped and smoothed."""
        projection = self.network.local_projection
        probs = assign(features, global_features, projection.weight, projection.bias, temperature=self.temperature)
        return neighbourhood_mean(grouped(probs, self.groups), self.smooth)

    def to(self, device: torch.device | str) -> Labelling:
        """The labelling on a device."""
        refinement = self.refinement and self.refinement.to(device)
        return dataclasses.replace(self, network=self.network.to(device), refinement=refinement)

    def state(self) -> dict[str, Any]:
        """The argument of `from_state`: tensors on the CPU, numbers and text."""
        return {
            "builder": self.builder,
            "arguments": self.arguments,
            "weights": {name: x.cpu() for name, x in self.network.state_dict().items()},
            "data": self.data.state(),
            "temperature": self.temperature,
            "smooth": self.smooth,
            "groups": self.groups,
            "refinement": self.refinement and self.refinement.to("cpu")._asdict(),
            "over_clusters": self.over_clusters and self.over_clusters.state(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Labelling:
        """The labelling of a checkpoint, on the CPU.

        Raises:
            DataError: the function that builds the network cannot be imported, or builds another
                network.
        """
        builder = imported(state["builder"], "the builder of the checkpoint's network")
        with float32_on_cpu():
            network = builder(**state["arguments"])
        try:
            network.load_state_dict(state["weights"])
        except RuntimeError as error:
            raise DataError(f"{state['builder']} builds another network than the checkpoint has: {error}") from error
        return cls(
            network.requires_grad_(False).eval(),
            state["arguments"],
            DataInfo.from_state(state["data"]),
            state["builder"],
            state["temperature"],
            state["smooth"],
            state["groups"],
            state["refinement"] and Refinement(**state["refinement"]),
            state["over_clusters"] and OverClusters.from_state(state["over_clusters"]),
        )


def grouped(probs: Tensor, groups: list[list[int]] | None) -> Tensor:
    """Probabilities [B, n, h, w] of classes -> [B, K, h, w] of groups of classes: sums over each
    group.
    """
    if groups is None:
        return probs
    return torch.stack([probs[:, group].sum(dim=1) for group in groups], dim=1)
