"""Other packages that have the function of an op, if they are installed (extra [peers])."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor


def of(op: str) -> dict[str, Callable[..., Any]]:
    """Functions of other packages that take the arguments of the public op, by package."""
    found = {name: make for (of_op, module, name), make in PEERS.items() if of_op == op and find_spec(module)}
    return {name: make() for name, make in found.items()}


def _lapx() -> Callable[..., Any]:
    import lap

    def solve(cost: Tensor) -> tuple[Tensor, Tensor]:
        given = {"extend_cost": True, "return_cost": False, "n_threads": torch.get_num_threads()}
        pairs = lap.lapjvx_batch(cost.numpy(), **given)
        rows, cols = (torch.from_numpy(np.stack(part).astype(np.int64)) for part in pairs)
        return rows, cols

    return solve


def _torch_linear_assignment() -> Callable[..., Any]:
    import torch_linear_assignment as peer

    return lambda cost: peer.assignment_to_indices(peer.batch_linear_assignment(cost))


def _torchmetrics() -> Callable[..., Any]:
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    def count(pred: Tensor, target: Tensor, num_clusters: int, num_classes: int, ignore_index: int = 255) -> Tensor:
        number = max(num_clusters, num_classes)
        counts = multiclass_confusion_matrix(pred.long(), target.long(), number, ignore_index=ignore_index)
        return counts.T[:num_clusters, :num_classes]

    return count


def _scikit_learn() -> Callable[..., Any]:
    from sklearn.metrics.cluster import contingency_matrix

    def count(pred: Tensor, target: Tensor, num_clusters: int, num_classes: int, ignore_index: int = 255) -> Tensor:
        counted = target != ignore_index
        pred, target = pred[counted].numpy(), target[counted].numpy()
        whole = np.zeros((num_clusters, num_classes), np.int64)  # the matrix has the labels that occur
        whole[np.ix_(np.unique(pred), np.unique(target))] = contingency_matrix(pred, target)
        return torch.from_numpy(whole)

    return count


def _every_pair() -> Callable[..., Any]:
    """Counts as in the published code of invariant information clustering (IIC): a pass over all
    pixels for each pair of labels.
    """

    def count(pred: Tensor, target: Tensor, num_clusters: int, num_classes: int, ignore_index: int = 255) -> Tensor:
        return torch.tensor([[int(((pred == k) & (target == c)).sum()) for c in range(num_classes)]
                             for k in range(num_clusters)])  # fmt: skip

    return count


# (op, module, name of the package): function that makes the function
PEERS = {
    ("linear_sum_assignment", "lap", "lapx"): _lapx,
    ("linear_sum_assignment", "torch_linear_assignment", "torch-linear-assignment"): _torch_linear_assignment,
    ("confusion_matrix", "torchmetrics", "torchmetrics"): _torchmetrics,
    ("confusion_matrix", "sklearn", "scikit-learn"): _scikit_learn,
    ("confusion_matrix", "torch", "as IIC counts"): _every_pair,
}
