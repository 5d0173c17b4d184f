"""The appearance term with all its parts in one plan: `local_appearance`, `appearance_statistics`,
`class_moments` and `information_of_moments` of the same images, and their gradient.

It launches the kernels of these ops. Between them nothing is copied, summed or scaled by PyTorch,
whose calls take the host longer than the launches.
"""

import torch

from .appearance_statistics import _forward as statistics_of
from .information_of_moments import _gradient as gradient_of_information
from .information_of_moments import _value as value_of_information
from .launch import OP_KERNELS
from .local_appearance import _forward as appearance_of
from .projection import FeatureKernel
from .reduction import sum_rows


class AppearanceTermKernel(FeatureKernel):
    dtypes = (torch.float32, torch.bfloat16, torch.float16)

    def forward(self, features, G, g0, images, mask, smooth, temperature, resolution, needs):
        (appearance,) = appearance_of(images, tuple(features.shape[2:]))
        (statistics,) = statistics_of(appearance, mask, smooth)
        moments, saved = OP_KERNELS["class_moments"].forward(features, G, g0, statistics, temperature, needs)
        total = moments.new_empty(moments.shape[1])  # the probabilities of all classes sum to 1
        sum_rows(moments, total)
        (value,) = value_of_information(moments, total, resolution)
        return value, [moments, statistics, *saved]

    def backward(self, grad, saved, features, G, g0, images, mask, smooth, temperature, resolution, needs):
        moments, statistics, *saved = saved
        (by_moments,) = gradient_of_information(grad, moments, resolution)
        return OP_KERNELS["class_moments"].backward(by_moments, saved, features, G, g0, statistics, temperature, needs)


KERNEL = AppearanceTermKernel()
