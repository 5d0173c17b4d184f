"""pytest-benchmark cases of a whole training step: with the kernels, and in plain PyTorch."""

import argparse

import pytest
import torch
from train_step import WAYS, step_of

from infoseg_fast import extension


@pytest.mark.parametrize("way", WAYS)
def test_train_step(benchmark, way):
    if extension.compiled() is None:
        pytest.skip("the C++ extension is not built")
    torch.set_num_threads(1)
    step = step_of(*WAYS[way], argparse.Namespace(width=16, images=16, side=128))
    benchmark.group = "training step, width 16, 16 images of 128 x 128"
    benchmark(step)
    extension.compiled().set_thread_pool("automatic")
