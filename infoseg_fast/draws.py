"""Random numbers that follow from the seed and the step, on the device that uses them."""

import torch

SEED_FACTOR = 1_000_003  # number of steps after which two seeds give the same random numbers


def generator_on(device: torch.device, seed: int, step: int) -> torch.Generator:
    """A generator on the device, seeded by the seed and the step. It does not wait for the device. A
    CPU and a GPU give different numbers.
    """
    return torch.Generator(device).manual_seed((seed * SEED_FACTOR + step) % 2**63)
