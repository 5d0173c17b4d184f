"""A backbone of one's own, or of timm, under the loss in a plain training loop.

python own_backbone.py                  # the small network below
python own_backbone.py resnet18         # a network of timm, with random weights (extra [timm])
"""

import sys

import torch
from torch import Tensor, nn

import infoseg_fast as isf


class Small(nn.Module):
    """A module that returns a list of feature maps: all that `from_backbone` needs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU())

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [self.stem(images)]
        for block in (self.middle, self.deep):
            maps.append(block(maps[-1]))
        return maps


def backbone_named(name: str | None) -> nn.Module:
    """The small network, or one of timm."""
    if name is None:
        return Small()
    import timm

    return timm.create_model(name, features_only=True, pretrained=False)


def main(name: str | None = None, steps: int = 20, side: int = 64, number: int = 8) -> Tensor:
    torch.manual_seed(0)
    model = isf.InfoSegNet.from_backbone(backbone_named(name), local_index=1, global_index=2, num_classes=4, dim=64)
    criterion = isf.InfoSegLoss(estimator="infonce", num_negatives="all", balance=1.0)
    images = torch.rand(number, 3, side, side)
    model(images[:2])  # channels are found at the first call, before the optimiser is made
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(steps):
        features, global_features = model(images)
        projection = model.local_projection
        loss = criterion(features, global_features, projection.weight, projection.bias)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 5 == 0 or step == steps - 1:
            print(f"step {step:2d}   loss {loss.item():.4f}")
    model.eval()
    with torch.no_grad():
        features, global_features = model(images)
    labels = isf.segment(features, global_features, projection.weight, projection.bias, size=(side, side))
    print("labels", list(labels.shape), "pixels of each class", torch.bincount(labels.flatten(), minlength=4).tolist())
    return labels


if __name__ == "__main__":
    main(*sys.argv[1:2])
