"""Random numbers that follow from the seed and the step, on the device that uses them."""

import torch

SEED_FACTOR = 1_000_003  # keeps the draws of two seeds apart for as many steps


def generator_on(device: torch.device, seed: int, step: int) -> torch.Generator:
    """A generator of the device whose state follows from the seed and the step.

    To set the state does not wait for the device, and no checkpoint needs it. A CPU and a GPU give
    different numbers.
    """
    return torch.Generator(device).manual_seed(seed * SEED_FACTOR + step)
