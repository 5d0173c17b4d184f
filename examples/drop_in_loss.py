"""The loss in a training loop of one's own: three lines before, one call after.

python drop_in_loss.py
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

import infoseg_fast as isf


def before(features: Tensor, global_features: Tensor, projection: nn.Conv2d) -> Tensor:
    """As the paper writes the loss: two maps of D numbers for each position."""
    local = projection(features)  # [B, D, h, w]
    V = torch.softmax(torch.einsum("bdhw,bkd->bkhw", local, global_features), dim=1)
    S = torch.einsum("bkhw,bkd->bdhw", V, global_features)  # [B, D, h, w]
    return softplus(-(local * S).sum(1)).mean() + softplus((local * S.roll(-1, 0)).sum(1)).mean()


def after(features: Tensor, global_features: Tensor, projection: nn.Conv2d) -> Tensor:
    """The same loss and the same gradients, without these maps."""
    return isf.mutual_information_loss(features, global_features, projection.weight, projection.bias)


class Network(nn.Module):
    """Any network: features of positions, and K global features of the image."""

    def __init__(self, num_classes: int = 4, channels: int = 32, dim: int = 64) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, channels, 3, stride=4, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
        )
        self.projection = nn.Conv2d(channels, dim, 1)
        self.to_global = nn.Linear(channels, num_classes * dim)
        self.num_classes = num_classes

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(images)
        return features, self.to_global(features.mean(dim=(2, 3))).unflatten(1, (self.num_classes, -1))


def train(loss_of, steps: int = 20) -> list[float]:
    """The losses of a short training with either function."""
    torch.manual_seed(0)
    network, images = Network(), torch.rand(8, 3, 64, 64)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        loss = loss_of(*network(images), network.projection)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main(steps: int = 20) -> None:
    for step, (one, other) in enumerate(zip(train(before, steps), train(after, steps), strict=True)):
        print(f"step {step:2d}   before {one:.6f}   after {other:.6f}")


if __name__ == "__main__":
    main()
