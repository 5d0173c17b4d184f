"""`World`: the ranks of a run, and the collectives that the training loop needs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import DataError, first_line
from .shared_warnings import SharedWarnings

T = TypeVar("T")


class LostRankError(RuntimeError):
    """Another rank ended or hung. The text is one line."""


def ranks() -> int:
    """The number of ranks of torch.distributed's default group. 1: there is no group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this rank, from 0."""
    return dist.get_rank() if ranks() > 1 else 0


def number_of(variable: str, default: int) -> int:
    """The number in a variable of the environment, which torchrun sets.

    Raises:
        DataError: it is no number.
    """
    text = os.environ.get(variable, default)
    try:
        return int(text)
    except ValueError:
        raise DataError(f"the environment variable {variable} must be a number, not {text!r}") from None


def restarts() -> int:
    """How often torchrun has restarted the ranks."""
    return number_of("TORCHELASTIC_RESTART_COUNT", 0)


def across_ranks(estimator: str, negatives: str) -> bool:
    """Whether images of other ranks can be negatives. `same_position` needs the assignment of the
    other image: K maps, which are too large to send.
    """
    return estimator == "infonce" or negatives == "reassigned"


class World:
    """A context with the ranks of a run: torch.distributed's default group, from the environment
    that torchrun sets. Without that environment there is one rank and no group.

    Args:
        cuda: whether the ranks train on GPUs, rank i of a machine on its GPU i. NCCL sums GPU
            tensors, Gloo CPU tensors.
        timeout: seconds that a rank waits for the others before it ends the run.

    Raises:
        DataError: the environment is not that of torchrun.
        LostRankError: another rank does not answer; also from an error in the context.
    """

    def __init__(self, cuda: bool, timeout: float) -> None:
        self.cuda, self.timeout = cuda, timeout
        self._joined = False
        self._warnings: SharedWarnings | None = None

    def __enter__(self) -> World:
        if number_of("WORLD_SIZE", 1) > 1 and not dist.is_initialized():
            if self.cuda:
                torch.cuda.set_device(number_of("LOCAL_RANK", 0))
            backend = "cpu:gloo,cuda:nccl" if self.cuda else "gloo"
            timeout = timedelta(seconds=self.timeout)
            try:
                store, own, number = next(dist.rendezvous("env://", timeout=timeout))
                # torchrun keeps its store for a restart, with addresses of ranks that have ended.
                store = dist.PrefixStore(f"start {restarts()}", store)
                dist.init_process_group(backend, store=store, rank=own, world_size=number, timeout=timeout)
            except RuntimeError as error:
                raise LostRankError(f"the ranks do not reach each other: {first_line(error)}") from error
            except ValueError as error:  # a variable is missing
                raise DataError(
                    f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but the ranks cannot start: {first_line(error)}; use "
                    "torchrun, or unset WORLD_SIZE"
                ) from error
            self._joined = True
        self.rank, self.size = rank(), ranks()
        if self._joined:
            self._warnings = SharedWarnings(self.is_main).__enter__()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self._warnings is not None:
            self._warnings.__exit__()
        if self._joined and error is None:  # after an error the others may not answer
            dist.destroy_process_group()
        if self.size > 1 and isinstance(error, RuntimeError) and is_of_collective(error):
            raise LostRankError(
                f"rank {self.rank}: another rank ended, or did not answer within {self.timeout:g} s; torchrun with "
                "--max-restarts goes on from the last checkpoint"
            ) from error

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that reads and writes the run folder."""
        return self.rank == 0

    def from_main(self, make: Callable[[], T]) -> T:
        """The result of `make` on the main rank, for every rank. Its DataError is raised on all."""
        if self.size == 1:
            return make()
        sent: list = [None]
        if self.is_main:
            try:
                sent = [make()]
            except DataError as error:
                sent = [error]
        dist.broadcast_object_list(sent, src=0)
        if isinstance(sent[0], DataError):
            raise sent[0]
        return sent[0]

    def share_warnings(self) -> None:
        """Let the main rank log the warnings of the other ranks, each once. Every rank must call it."""
        if self._warnings is not None:
            self._warnings.share()

    def largest(self, number: int) -> int:
        """The largest `number` over the ranks. It does not wait for a GPU."""
        if self.size == 1:
            return number
        found = torch.tensor(number)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return int(found)

    def sum_gradients(self, parameters: Iterable[Tensor], loss: Tensor) -> Tensor:
        """Replace the gradients by their sums over the ranks, in one message.

        Args:
            parameters: the same on every rank. Those without a gradient do not change.
            loss: this rank's part of the loss, a scalar.

        Returns:
            The sum of the parts of the loss.
        """
        if self.size == 1:
            return loss
        gradients = [x.grad for x in parameters if x.grad is not None]
        whole = torch.cat([*(x.flatten() for x in gradients), loss.reshape(1)])
        dist.all_reduce(whole)
        parts = whole.split([*(x.numel() for x in gradients), 1])
        for gradient, part in zip(gradients, parts, strict=False):
            gradient.copy_(part.view_as(gradient))
        return parts[-1].reshape(())

    def mean_buffers(self, module: torch.nn.Module) -> None:
        """Replace the buffers by their means over the ranks. They are running statistics of the
        images of each rank.
        """
        for buffer in module.buffers() if self.size > 1 else ():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= self.size

    def mean(self, numbers: dict[str, float]) -> dict[str, float]:
        """The means of the numbers over the ranks."""
        if self.size == 1 or not numbers:
            return numbers
        values = torch.tensor(list(numbers.values()), dtype=torch.float64)
        dist.all_reduce(values)
        return dict(zip(numbers, (values / self.size).tolist(), strict=True))


def is_of_collective(error: RuntimeError) -> bool:
    """Whether torch.distributed raised the error. Gloo raises plain RuntimeErrors."""
    return isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL", "ProcessGroup"))
