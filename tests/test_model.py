"""`InfoSegNet`: shapes, receptive field, normalisation, and other backbones."""

import numpy as np
import pytest
import torch
from torch import nn

import infoseg_fast as isf
from infoseg_fast.model import padded_side
from infoseg_fast.recipe import DataInfo
from infoseg_fast.recipe.labelling import Labelling


@pytest.mark.parametrize(
    ("size", "positions"), [((64, 64), (16, 16)), ((128, 96), (32, 24)), ((50, 33), (13, 9)), ((1, 7), (8, 8))]
)
def test_features_have_stride_4_at_any_size(size, positions):
    model = isf.InfoSegNet(in_channels=4, num_classes=5, width=8, dim=12)
    features, global_features = model(torch.rand(2, 4, *size))
    assert features.shape == (2, 16, *positions) and global_features.shape == (2, 5, 12)
    assert isinstance(model.local_projection, nn.Conv2d) and model.local_projection.weight.shape == (12, 16, 1, 1)


def test_a_position_sees_39_pixels():
    model = isf.InfoSegNet(width=4, dim=8).eval()
    images = torch.rand(1, 3, 128, 128, requires_grad=True)
    features, _ = model(images)
    features[0, :, 16, 16].sum().backward()
    seen = images.grad.abs().sum((0, 1)) > 0
    rows = seen.any(1).nonzero()
    assert 32 <= rows.max() - rows.min() + 1 <= 39


def test_padding_repeats_the_border_and_is_only_for_small_and_odd_sides():
    assert [padded_side(n) for n in (1, 32, 33, 64, 127, 200)] == [32, 32, 36, 64, 128, 200]
    model = isf.InfoSegNet()
    images = torch.rand(1, 3, 30, 35)
    padded = model.normalize(images)
    assert padded.shape == (1, 3, 32, 36)
    assert torch.equal(padded[..., :30, :35], images)
    assert torch.equal(padded[:, :, 31, 35], images[:, :, 29, 34])


def test_normalisation_is_saved_with_the_model():
    model = isf.InfoSegNet(width=4, dim=8).eval()
    model.set_normalization(np.array([0.3, 0.2, 0.1], ">f8")[::-1], [0.5, 0.25, 1.0])
    other = isf.InfoSegNet(width=4, dim=8).eval()
    other.load_state_dict(model.state_dict())
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(model(x)[0], other(x)[0])
    torch.testing.assert_close(model.normalize(x)[0, 1], (x[0, 1] - 0.2) / 0.25)
    with pytest.raises(ValueError, match="std"):
        model.set_normalization([0.0] * 3, [1.0, 0.0, 1.0])


def test_normalisation_has_a_value_for_each_channel():
    model = isf.InfoSegNet(width=4, dim=8)
    for values in ([0.5] * 2, [0.5] * 4, []):
        with pytest.raises(ValueError, match=f"mean must have one value for each of 3 channels, not {len(values)}"):
            model.set_normalization(values, [1.0] * 3)
    assert model.mean.tolist() == [0.0] * 3  # nothing changed
    model.set_normalization([0.5], [0.25] * 3)
    assert model.mean.tolist() == [0.5] * 3
    backbone = isf.InfoSegNet.from_backbone(TwoMaps(), 0, 1, num_classes=4)
    with pytest.raises(ValueError, match="std must have one value for each of 3 channels, not 2"):
        backbone.set_normalization([0.5] * 3, [0.5] * 2)


def test_normalisation_of_a_backbone_is_saved_and_loaded():
    models = [isf.InfoSegNet.from_backbone(TwoMaps(), 0, 1, num_classes=4, dim=9).eval() for _ in range(3)]
    x = torch.rand(1, 3, 32, 32)
    for model in models:
        model(x)
    models[0].set_normalization([0.3, 0.2, 0.1], [0.5, 0.25, 1.0])
    for given, other in ((models[0], models[1]), (models[2], models[0])):
        other.load_state_dict(given.state_dict())
        assert torch.equal(given(x)[0], other(x)[0])


class TwoMaps(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 10, 3, 2, 1)

    def forward(self, x):
        first = self.first(x).relu()
        return [first, self.second(first).relu()]


def test_any_module_that_returns_maps_is_a_backbone():
    model = isf.InfoSegNet.from_backbone(TwoMaps(), 0, 1, num_classes=4, dim=9)
    features, global_features = model(torch.rand(2, 3, 40, 40))
    assert features.shape == (2, 6, 20, 20) and global_features.shape == (2, 4, 9)
    projection = model.local_projection
    assert isinstance(projection, nn.Conv2d) and projection.weight.shape == (9, 6, 1, 1)
    isf.InfoSegLoss()(features, global_features, projection.weight, projection.bias).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_an_index_beyond_the_maps_of_a_backbone_is_named():
    model = isf.InfoSegNet.from_backbone(TwoMaps(), 0, 2, num_classes=4, dim=9)
    with pytest.raises(ValueError, match=r"global_index must be indices of the 2 maps of the backbone, not \(0, 2\)"):
        model(torch.rand(2, 3, 40, 40))


@pytest.mark.skipif(not torch._dynamo.is_dynamo_supported(), reason="this Python has no torch.compile")
def test_the_compiler_takes_images_of_any_size():
    model = isf.InfoSegNet(3, 4, width=4, dim=8, depth=0).eval()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    # Not square at first, since PyTorch 2.9 then takes the height for the width of all images.
    for shape in ((2, 3, 64, 72), (3, 3, 40, 52), (3, 3, 48, 48)):
        images = torch.rand(shape)
        torch.testing.assert_close(compiled(images), model(images))


def test_a_segmenter_works_on_a_backbone_of_another_stride():
    model = isf.InfoSegNet.from_backbone(TwoMaps(), 0, 1, num_classes=4, dim=9)
    labelling = Labelling(model, {}, DataInfo(3, 4, None, [0.0] * 3, [1.0] * 3))
    labels = isf.Segmenter(labelling).segment(torch.rand(2, 3, 41, 50))
    assert labels.shape == (2, 41, 50) and (labels < 4).all()


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (torch.rand(3, 32, 32), "images must be float"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "images must be float.*uint8"),
        (torch.rand(1, 4, 32, 32), "3 channels, not 4"),
        (torch.rand(1, 3, 0, 32), "at least one pixel"),
    ],
)
def test_bad_images_are_named(images, told):
    with pytest.raises(ValueError, match=told):
        isf.InfoSegNet(width=4, dim=8)(images)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("num_classes", 1),
        ("num_classes", 257),
        ("width", 0),
        ("dim", 0),
        ("in_channels", 0),
        ("in_channels", 1.5),
        ("dim", None),
        ("depth", 6),
    ],
)
def test_bad_sizes_are_named(argument, value):
    with pytest.raises(ValueError, match=f"{argument}.*{value}"):
        isf.InfoSegNet(**{argument: value})


def test_the_border_cannot_be_told_from_the_inside():
    """With zero padding it can, and a class is spent on it; an image without content must look
    alike everywhere.
    """
    model = isf.InfoSegNet(width=8, dim=8).eval()
    features, _ = model(torch.full((1, 3, 64, 80), 0.3))
    torch.testing.assert_close(features, features[..., :1, :1].expand_as(features))


def test_a_mask_that_does_not_fit_the_positions_is_named():
    model = isf.InfoSegNet(3, 4, width=8, dim=16)
    for wrong in (
        torch.ones(2, 3, 3, dtype=torch.bool),
        torch.ones(1, 16, 24, dtype=torch.bool),
        torch.ones(2, 16, 24),
    ):
        with pytest.raises(ValueError, match=r"mask must be a bool tensor of shape \[2, 16, 24\]"):
            model(torch.rand(2, 3, 64, 96), wrong)


def test_a_backbone_that_returns_one_map_is_named():
    model = isf.InfoSegNet.from_backbone(nn.Conv2d(3, 8, 4, 4), 0, 0, num_classes=3, dim=8)
    with pytest.raises(TypeError, match="the backbone must return a list of maps .* not a float32 tensor"):
        model(torch.rand(2, 3, 64, 96))


def test_global_features_are_of_the_positions_that_count():
    model = isf.InfoSegNet(3, 4, width=8, dim=16).eval()
    images, mask = torch.rand(2, 3, 64, 96), torch.ones(2, 16, 24, dtype=torch.bool)
    with torch.no_grad():
        plain = model(images)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(model(images, mask), plain, strict=True))
        mask[0, :, 8:], mask[1] = False, False
        deep = model.backbone(model.normalize(images))[1]
        expected = torch.stack([deep[0, :, :, :2].mean(dim=(1, 2)), torch.zeros(deep.shape[1])])
        assert torch.allclose(model(images, mask)[1], model.global_features(expected), atol=1e-6)
