"""What `infoseg bench --device cuda` checks on a device, carried out here in the interpreter."""

import pytest
import torch

from infoseg_fast import cuda_checks, ops
from infoseg_fast.kernels import KERNELS

CPU = torch.device("cpu")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_every_check_that_needs_no_driver_passes():
    number, failed = cuda_checks.run(CPU, [cuda_checks.SMALL])
    if "mutual_information_loss" not in KERNELS:
        failed = [line for line in failed if "mutual_information_loss" not in line]
    assert failed == [] and number > 60


def test_a_wrong_kernel_is_found(monkeypatch):
    right = type(KERNELS["assign"]).forward
    monkeypatch.setattr(type(KERNELS["assign"]), "forward", lambda self, *a: right(self, *a) * 1.01)
    x = cuda_checks.inputs(cuda_checks.SMALL, torch.float32, CPU)
    with pytest.raises(AssertionError, match="value: error 1.0"):
        cuda_checks.close(ops.assign, x, torch.randn(4, 5, 9, 13), 1e-6)
