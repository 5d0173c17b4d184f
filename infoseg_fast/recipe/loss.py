"""`InfoSegLoss`: the loss as a module with its settings."""

import numpy as np
import torch
from torch import Tensor

from ..ops import checks, dispatch, mutual_information_loss
from ..ops.mutual_information_loss import ESTIMATORS, NEGATIVES


class InfoSegLoss(torch.nn.Module):
    """`mutual_information_loss` with fixed settings, as described there.

    The loss gets the weight and the bias of the local projection, which are parameters of the
    network. Under `DistributedDataParallel`, wrap a module whose `forward` calls both the network
    and the loss. If only the network is wrapped, `find_unused_parameters=True` treats the
    projection as unused, and the backward pass raises "Expected to mark a variable ready only
    once".

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        estimator: str = "jsd",
        negatives: str = "same_position",
        num_negatives: int | str = 1,
        balance: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.temperature = checks.real("temperature", temperature, positive=True)
        checks.one_of("estimator", estimator, ESTIMATORS)
        checks.one_of("negatives", negatives, NEGATIVES)
        self.estimator, self.negatives, self.num_negatives = estimator, negatives, num_negatives
        if num_negatives != "all" and (
            not isinstance(num_negatives, (int, np.integer)) or isinstance(num_negatives, bool) or num_negatives < 1
        ):
            raise ValueError(f"num_negatives must be 'all' or a whole number of at least 1, not {num_negatives!r}")
        checks.one_of("backend", backend, dispatch.NAMES)
        self.balance = checks.real("balance", balance, positive=False)
        self.backend = backend

    def forward(
        self,
        features: Tensor,
        global_features: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The loss, a scalar. Arguments as in `mutual_information_loss`."""
        return mutual_information_loss(
            features,
            global_features,
            weight,
            bias,
            temperature=self.temperature,
            estimator=self.estimator,
            negatives=self.negatives,
            num_negatives=self.num_negatives,
            balance=self.balance,
            mask=mask,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, estimator={self.estimator!r}, negatives={self.negatives!r}, "
            f"num_negatives={self.num_negatives!r}, balance={self.balance}"
        )
