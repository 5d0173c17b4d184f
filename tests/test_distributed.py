"""The loss under DistributedDataParallel."""

import pytest
import torch
from processes import each_rank
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import infoseg_fast as isf


class Objective(nn.Module):
    """A network and its loss in one module, so that DDP sees all parameters."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = isf.InfoSegNet(width=4, dim=8, num_classes=3).eval()  # eval: batch statistics differ by rank
        self.criterion = isf.InfoSegLoss(estimator="infonce", num_negatives="all", balance=0.5)

    def forward(self, images):
        projection = self.model.local_projection
        return self.criterion(*self.model(images), projection.weight, projection.bias)


def images_of(rank):
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(rank))


def _train(rank, world, file):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{file}", rank=rank, world_size=world)
    wrapped = DistributedDataParallel(Objective())
    wrapped(images_of(rank)).backward()
    found = [p.grad.numpy() for p in wrapped.parameters()]
    # Before the group: as its last owner, DistributedDataParallel ends it while Python's lock is
    # held, and a thread of gloo may wait for the lock.
    del wrapped
    torch.distributed.destroy_process_group()
    return found


def test_gradients_are_the_mean_over_the_processes(tmp_path):
    found = each_rank(_train, 2, tmp_path / "store")
    alone = Objective()
    (alone(images_of(0)) / 2 + alone(images_of(1)) / 2).backward()
    for first, second, parameter in zip(*found, alone.parameters(), strict=True):
        torch.testing.assert_close(torch.from_numpy(first), parameter.grad, rtol=1e-4, atol=1e-6)
        assert (first == second).all()


@pytest.mark.parametrize("unused", [False, True])
def test_both_settings_of_unused_parameters_work_around_the_network_and_its_loss(tmp_path, unused):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(Objective(), find_unused_parameters=unused)
        wrapped(images_of(0)).backward()
        alone = Objective()
        alone(images_of(0)).backward()
        for found, expected in zip(wrapped.parameters(), alone.parameters(), strict=True):
            assert torch.equal(found.grad, expected.grad)
        del wrapped  # as above
    finally:
        torch.distributed.destroy_process_group()
