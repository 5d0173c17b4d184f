"""The appearance term with all its parts in one plan: `local_appearance`, `appearance_statistics`,
`class_moments` and `information_of_moments` of the same images, and their gradient.

It launches the kernels of these ops. Between them nothing is copied, summed or scaled by PyTorch,
whose calls take the host longer than the launches.
"""

import torch

from .launch import OP_KERNELS
from .projection import FeatureKernel
from .reduction import sum_rows


class AppearanceTermKernel(FeatureKernel):
    dtypes = (torch.float32, torch.bfloat16, torch.float16)

    def forward(self, features, G, g0, images, mask, smooth, temperature, resolution, needs):
        appearance = OP_KERNELS["local_appearance"].forward(images, features.shape[2:])
        statistics = OP_KERNELS["appearance_statistics"].forward(appearance, mask, smooth)
        moments, saved = OP_KERNELS["class_moments"].forward(features, G, g0, statistics, temperature, needs)
        total = moments.new_empty(moments.shape[1])
        sum_rows(moments, total)  # the probabilities of all classes sum to 1
        value, _ = OP_KERNELS["information_of_moments"].forward(moments, total, resolution, (any(needs),))
        return value, [moments, statistics, *saved]

    def backward(self, grad, saved, features, G, g0, images, mask, smooth, temperature, resolution, needs):
        moments, statistics, *saved = saved
        (by_moments,) = OP_KERNELS["information_of_moments"].backward(grad, [], moments, None, resolution, (True,))
        return OP_KERNELS["class_moments"].backward(by_moments, saved, features, G, g0, statistics, temperature, needs)


KERNEL = AppearanceTermKernel()
