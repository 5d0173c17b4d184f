"""Tests of the Triton kernels themselves: tests/test_triton.py runs them under TRITON_INTERPRET=1."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["*"]


@pytest.fixture(autouse=True)
def poisoned():
    """Memory that a kernel must write holds NaN, or the largest whole number, before it does."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan() and torch.empty(0).new_empty(3).isnan().all()
    assert torch.empty_like(torch.zeros(2, dtype=torch.uint8)).eq(255).all()
    yield
    torch.use_deterministic_algorithms(False)
