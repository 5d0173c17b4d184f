"""What `infoseg bench --device cuda` checks on a device, carried out here in the interpreter."""

import pytest
import torch

from infoseg_fast import ops
from infoseg_fast.bench import cuda_checks
from infoseg_fast.kernels import KERNELS

CPU = torch.device("cpu")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_every_check_that_needs_no_driver_passes(monkeypatch):
    monkeypatch.delitem(cuda_checks.FLOORS, torch.float64)  # the other tests here see to it
    number, failed = cuda_checks.run(CPU, {"B": 3, "C": 6, "D": 5, "K": 3, "h": 3, "w": 5})
    assert failed == [] and number > 50


def test_a_wrong_kernel_is_found(monkeypatch):
    right = type(KERNELS["assign"]).forward
    monkeypatch.setattr(type(KERNELS["assign"]), "forward", lambda self, *a: right(self, *a) * 1.01)
    x = cuda_checks.inputs(cuda_checks.SMALL, torch.float32, CPU)
    with pytest.raises(AssertionError, match="value: error 1.0"):
        cuda_checks.close(ops.assign, x, torch.randn(4, 5, 9, 13), 1e-6)
