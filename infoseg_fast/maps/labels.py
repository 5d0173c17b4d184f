"""The labels that `infoseg predict` writes: clusters, or the classes that they are matched to."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..data.names import read_names
from ..errors import DataError
from ..scores.matching import class_of_cluster
from ..segmenter import Segmenter

MAX_CLUSTERS = 255  # 255 marks pixels without data


class Labels:
    """The labels of the maps.

    Args:
        segmenter: makes maps of clusters.
        match: whether the labels are classes, by the mapping of the run's last evaluation.
        name_file: text file with the names of the clusters, one a line, or None.

    Attributes:
        table: uint8 [256], the label of each cluster; 255 for a cluster without a class.
        number: number of labels.
        names: names of the labels, or None.

    Raises:
        DataError: the run has more than 255 clusters, no evaluation has matched them, or the names
            do not fit.
    """

    def __init__(self, segmenter: Segmenter, match: bool, name_file: Path | None) -> None:
        if segmenter.num_clusters > MAX_CLUSTERS:
            raise DataError(
                f"label maps take at most {MAX_CLUSTERS} clusters, since 255 marks pixels without data; the run has "
                f"{segmenter.num_clusters}"
            )
        self.table, self.number = np.arange(256, dtype=np.uint8), segmenter.num_clusters
        self.names: list[str] | None = None
        if match:
            if segmenter.mapping is None:
                raise DataError(
                    "--match: evaluation.json of the run does not match the clusters to classes; run infoseg eval first"
                )
            if name_file is not None:
                raise DataError("--names names clusters, and --match writes classes; leave one of them out")
            self.table, self.names = class_of_cluster(segmenter.mapping), segmenter.class_names
            self.number = max(max(segmenter.mapping) + 1, len(self.names or []))
        elif name_file is not None:
            self.names = read_names(name_file)
            if len(self.names) != self.number:
                raise DataError(f"--names {name_file} has {len(self.names)} names; the run has {self.number} clusters")
