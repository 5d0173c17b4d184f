"""Scores of a clustering over a stream of label maps, in memory that does not grow.

python streaming_metrics.py
"""

from collections.abc import Iterator

import numpy as np

import infoseg_fast as isf


def label_maps(images: int, clusters: int, classes: int, side: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Predictions in which cluster k is mostly class k mod `classes`, with 255 where nothing
    counts.
    """
    rng = np.random.default_rng(0)
    for _ in range(images):
        pred = rng.integers(0, clusters, (side // 8, side // 8)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
        target = pred % classes
        wrong = rng.random(target.shape) < 0.2
        target[wrong] = rng.integers(0, classes, wrong.sum())
        target[:, :4] = 255
        yield pred, target


def main(images: int = 200, clusters: int = 6, classes: int = 4, side: int = 64) -> dict:
    metrics = isf.ClusterMetrics(clusters, classes, bootstrap=200)
    for pred, target in label_maps(images, clusters, classes, side):
        metrics.update(pred, target)
    metrics.sync()  # sums over the processes of torch.distributed; does nothing in one process
    scores = metrics.compute()
    low, high = scores["accuracy_interval"]
    print(f"{scores['num_pixels']:,} pixels, cluster -> class {scores['mapping']}")
    print(
        f"accuracy {scores['pixel_accuracy']:.4f} ({low:.4f} to {high:.4f}), constant {scores['majority_accuracy']:.4f}"
    )
    print(f"mean IoU {scores['mean_iou']:.4f}, NMI {scores['nmi']:.4f}")
    return scores


if __name__ == "__main__":
    main()
