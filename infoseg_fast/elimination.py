"""Begins with more classes than are wanted and drops, one at a time, the class without which the rest tell most.

A network that starts with K classes can be caught in a partition that no small step improves: one class for two things,
two for a third. With more classes than things each thing has one of its own, and what is superfluous is what the others
can stand in for.
"""

import torch
from torch import Tensor, nn

from .appearance import information_of_moments
from .model import InfoSegNet
from .reference.similarity import moments_of


@torch.no_grad()
def least_telling(probs: Tensor, statistics: Tensor, appearance: float, balance: float) -> int:
    """The class without which `appearance` x appearance information + `balance` x entropy of class usage is greatest.

    The positions of a class that goes are divided among the others by their probabilities, as in a softmax without it.

    Args:
        probs: V [B, K, h, w], from `assign`; K is 2 at least.
        statistics: [B, S, h, w], from `appearance_statistics`.
        appearance, balance: weights of the two.
    """
    # A position that only one class has would be nobody's without it.
    probs = probs.double().clamp_min(torch.finfo(torch.float32).tiny)
    statistics = statistics.double()
    total = statistics.sum(dim=(0, 2, 3))
    values = []
    for k in range(probs.shape[1]):
        rest = probs[:, [j for j in range(probs.shape[1]) if j != k]]
        moments = moments_of(rest / rest.sum(dim=1, keepdim=True), statistics)
        usage = torch.special.entr(moments[:, 0]).sum()
        values.append(appearance * information_of_moments(moments, total, backend="reference") + balance * usage)
    return int(torch.stack(values).argmax())


@torch.no_grad()
def drop_class(model: InfoSegNet, optimizer: torch.optim.Optimizer, k: int) -> None:
    """Take class k out of the model, and its part of the optimiser's state, in place."""
    keep = torch.tensor([j for j in range(model.num_classes) if j != k])
    layer = model.global_projection

    def without(x: Tensor) -> Tensor:
        return x.view(model.num_classes, model.dim, *x.shape[1:])[keep.to(x.device)].flatten(0, 1)

    smaller = nn.Linear(layer.in_features, len(keep) * model.dim).to(layer.weight)
    for name, old in list(layer.named_parameters()):
        new = getattr(smaller, name)
        new.copy_(without(old))
        state = optimizer.state.pop(old, {})
        optimizer.state[new] = {key: without(x) if x.shape == old.shape else x for key, x in state.items()}
        for group in optimizer.param_groups:
            group["params"] = [new if p is old else p for p in group["params"]]
    model.global_projection, model.num_classes = smaller, len(keep)
