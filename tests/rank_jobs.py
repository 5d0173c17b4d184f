"""What the processes of a test of ranks do; in one process the same functions give what is
expected.
"""

import logging

import torch
from torch import nn

import infoseg_fast as isf
from infoseg_fast import report
from infoseg_fast.data.crops import Part
from infoseg_fast.distributed.batch_norm import synchronised
from infoseg_fast.distributed.objective import appearance_over_ranks, loss_over_ranks
from infoseg_fast.distributed.shared_warnings import SharedWarnings
from infoseg_fast.distributed.world import World, rank, ranks
from infoseg_fast.recipe.appearance import appearance_term
from infoseg_fast.train import train

IMAGES = 9  # not divided by 2 or 4, and at least two for each rank
OBJECTIVES = {
    "infonce": {"estimator": "infonce", "num_negatives": "all"},
    "infonce, balance": {"estimator": "infonce", "num_negatives": "all", "balance": 4.0, "temperature": 0.7},
    "infonce, 2 partners": {"estimator": "infonce", "num_negatives": 2},
    "reassigned": {"negatives": "reassigned", "balance": 1.0},
    "reassigned, all": {"negatives": "reassigned", "num_negatives": "all"},
}


def train_in(runs: dict[str, dict], out: str) -> None:
    """Train each run in `out`/NAME."""
    report.curves = lambda rows: "data:,"
    for name, how in runs.items():
        train(out=f"{out}/{name}", **how)


def batch() -> dict[str, torch.Tensor]:
    """Features and images of all ranks."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(IMAGES, 5, 4, 6, generator=generator)
    return {
        "features": features,
        "global_features": torch.randn(IMAGES, 3, 8, generator=generator),
        "weight": torch.randn(8, 5, generator=generator) / 3,
        "bias": torch.randn(8, generator=generator),
        "images": torch.rand(IMAGES, 3, 16, 24, generator=generator) + torch.arange(IMAGES)[:, None, None, None] / 20,
        # One rank of four has no position that counts.
        "mask": (torch.rand(IMAGES, 4, 6, generator=generator) < 0.7) & (torch.arange(IMAGES) > 1)[:, None, None],
    }


def own(x: torch.Tensor, part: Part) -> torch.Tensor:
    return x[part.inside].clone()


def leaves_of(whole: dict[str, torch.Tensor], part: Part) -> list[torch.Tensor]:
    """Features and global features of the part, weight and bias, which want gradients."""
    given = own(whole["features"], part), own(whole["global_features"], part), whole["weight"], whole["bias"]
    return [x.clone().requires_grad_() for x in given]


def objectives() -> dict:
    """For each objective, with and without mask: the loss of all images, and its gradients."""
    part, found = Part.of(IMAGES, rank(), ranks()), {}
    whole = batch()
    for name, how in (OBJECTIVES | {"appearance": None}).items():
        for masked in (False, True):
            leaves = leaves_of(whole, part)
            mask = own(whole["mask"], part) if masked else None
            if how is None:
                images = own(whole["images"], part)
                for smooth, position in ((0, None), (1, None), (1, images[:, 1:2])):
                    term = appearance_over_ranks if ranks() > 1 else appearance_term
                    given = {"images": images, "position": position, "mask": mask}
                    loss = term(*leaves, **given, temperature=1.0, smooth=smooth)
                    kind = f"{name} {smooth}" if position is None else f"{name} {smooth} position"
                    found[f"{kind}, {masked}"] = result(loss, leaves, part)
                continue
            criterion = isf.InfoSegLoss(**how)
            loss = loss_over_ranks(criterion, *leaves, mask) if ranks() > 1 else criterion(*leaves, mask)
            found[f"{name}, {masked}"] = result(loss, leaves, part)
    return found


def nothing_counts() -> list[torch.Tensor]:
    """Losses and gradients where no position of any rank counts."""
    part, found, whole = Part.of(IMAGES, rank(), ranks()), [], batch()
    leaves = leaves_of(whole, part)
    mask, images = torch.zeros_like(own(whole["mask"], part)), own(whole["images"], part)
    losses = [loss_over_ranks(isf.InfoSegLoss(**how), *leaves, mask) for how in OBJECTIVES.values()]
    losses.append(appearance_over_ranks(*leaves, images=images, mask=mask, temperature=1.0, smooth=1))
    for loss in losses:
        found += result(loss, leaves, part)
    return found


def result(loss: torch.Tensor, leaves: list[torch.Tensor], part: Part) -> list[torch.Tensor]:
    """The loss over all ranks and its gradients: by this rank's images, and by what all share."""
    for x in leaves:
        x.grad = None
    (loss * part.share).backward()
    with World(False, 60.0) as world:
        total = world.sum_gradients(leaves[2:], loss.detach() * part.share)
    return [total, *(x.grad.clone() for x in leaves)]


def within_ranks() -> list[torch.Tensor]:
    """same_position: partners are images of the same rank."""
    part, whole = Part.of(IMAGES, rank(), ranks()), batch()
    loss = loss_over_ranks(isf.InfoSegLoss(), *leaves_of(whole, part), own(whole["mask"], part))
    total = loss.detach() * part.share
    torch.distributed.all_reduce(total)
    return [total]


def normalisation() -> list[torch.Tensor]:
    """Two batch normalisations: the result, the gradients and the running statistics."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm2d(5), nn.Conv2d(5, 4, 1), nn.BatchNorm2d(4, momentum=None))
    if ranks() > 1:
        net = synchronised(net, torch.device("cpu"))
    part = Part.of(IMAGES, rank(), ranks())
    upstream = torch.randn(IMAGES, 4, 4, 6)
    x = (own(batch()["features"], part) * 3 + 10).to(memory_format=torch.channels_last).requires_grad_()
    y = net(x)
    (y * own(upstream, part)).sum().backward()
    with World(False, 60.0) as world:
        world.sum_gradients(net.parameters(), torch.zeros(()))
    return [y.detach(), x.grad, *(p.grad for p in net.parameters()), *(b.clone() for b in net.buffers())]


def warnings_of_ranks() -> list[str]:
    """What this rank prints of the warnings of all."""
    printed, logger = [], logging.getLogger("infoseg_fast")
    handler = logging.Handler()
    handler.emit = lambda record: printed.append(record.getMessage())
    logger.addHandler(handler)
    with SharedWarnings(rank() == 0) as shared:
        logger.warning("of every rank")
        logger.warning("of number %d", rank())
        shared.share()
        logger.warning("of number 1")  # main has printed it
        logger.warning("of number %d", ranks() - 1)
        shared.share()
    logger.removeHandler(handler)
    return printed


def torchmetrics_of_ranks() -> list[torch.Tensor]:
    """A metric that each rank updates with its images: the value of all, then this rank's counts."""
    from infoseg_fast.compat.torchmetrics import ClusterAccuracy

    part, (labels, target) = Part.of(IMAGES, rank(), ranks()), torch.arange(2 * IMAGES * 35).view(2, IMAGES, 5, 7) % 13
    metric = ClusterAccuracy(5, 3)
    metric.update(own(labels % 5, part), own(target // 2 % 3, part))
    return [metric.compute(), metric.confusion]
