"""The section of a report on other numbers of classes: the partition score of each number, and maps
of three numbers.
"""

import matplotlib
import numpy as np

from .data.base import ImageSet
from .palette import coloured
from .pictures import data_url, figure_url, png, show
from .recipe.overclustering import OverClusters
from .segmenter import Segmenter

MOST_SCORED = 24  # numbers of classes in the figure


def section(segmenter: Segmenter, images: ImageSet, rgb: tuple[int, ...] | None) -> str:
    """The section as HTML. Empty: the run has no over-clusters."""
    over_clusters = segmenter.labelling.over_clusters
    if over_clusters is None or over_clusters.num_classes == 2:
        return ""
    numbers = shown_numbers(segmenter.num_clusters, over_clusters.num_classes)
    index, figures = len(images) // 2, []
    for number in numbers:
        found = show(segmenter.with_clusters(number), images, index, rgb)
        if found.labels is None:
            break
        pictures = [coloured(found.labels, number)] if figures else [found.picture, coloured(found.labels, number)]
        tags = "".join(f'<img alt="" src="{data_url(png(picture))}">' for picture in pictures)
        figures.append(f"<figure><div>{tags}</div><figcaption>{number} classes</figcaption></figure>")
    return (
        "<h2>Other numbers of classes</h2><p>The partition score of the merged classes of the network needs no "
        "labels. Try a number at a peak or before a steep fall: infoseg predict RUN ... --classes N.</p>"
        f'<img class="curves" alt="partition score" src="{score_figure(over_clusters, segmenter.num_clusters)}">'
        f'<div class="examples">{"".join(figures)}</div>'
    )


def shown_numbers(chosen: int, most: int) -> list[int]:
    """Half the chosen number, the chosen number and twice the chosen number, from 2 to `most`."""
    return sorted({min(max(2, number), most) for number in (chosen // 2, chosen, 2 * chosen)})


def scored_numbers(most: int) -> list[int]:
    """The numbers from 2 to `most`. At most MOST_SCORED of them, closer together if small."""
    if most <= MOST_SCORED:
        return list(range(2, most + 1))
    return np.unique(np.geomspace(2, most, MOST_SCORED).round().astype(int)).tolist()


def score_figure(over_clusters: OverClusters, chosen: int) -> str:
    """The partition score over the number of classes, as a data URL."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    numbers = sorted({*scored_numbers(over_clusters.num_classes), chosen})
    scores = over_clusters.best_scores(numbers)
    figure, axis = pyplot.subplots(figsize=(6, 3.2), layout="constrained")
    axis.plot(numbers, scores, marker=".", color="#4477aa")
    axis.axvline(chosen, color="grey", linestyle=":", label="this run")
    axis.set(xlabel="number of classes", title="partition score")
    axis.legend(fontsize=8)
    return figure_url(figure)
