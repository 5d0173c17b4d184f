"""Augmentation: what is drawn, and what stays as it is."""

import pytest
import torch

from infoseg_fast.augment import augmented
from infoseg_fast.config import Settings


def settings(**given) -> Settings:
    return Settings.create({"data": "any", "flip": False, "rotate": False} | given)


def symmetries(image):
    turned = [image.rot90(k, (-2, -1)) for k in range(4)]
    return turned + [x.flip(-1) for x in turned]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"flip": True, "rotate": True}, set(range(8))),
        ({"flip": True}, {0, 2, 4, 6}),  # the image, half a turn, and the two mirror images
        ({"rotate": True}, set(range(4))),
        ({}, {0}),
    ],
)
def test_flips_and_turns_draw_their_symmetries_and_no_other(given, expected):
    image = torch.rand(3, 6, 6)
    found, _ = augmented(image.expand(200, 3, 6, 6), None, settings(**given), 0)
    assert {next(i for i, s in enumerate(symmetries(image)) if torch.equal(s, x)) for x in found} == expected


def test_the_mask_moves_with_its_image():
    images = torch.rand(50, 1, 7, 7)
    found, mask = augmented(images, images[:, 0] > 0.5, settings(flip=True, rotate=True), 0)
    assert mask.dtype == torch.bool and torch.equal(mask, found[:, 0] > 0.5)


def test_jitter_differs_by_image_stays_in_range_and_leaves_infrared():
    images = torch.rand(8, 4, 6, 6)
    found, _ = augmented(images, None, settings(jitter=0.4), 0)
    assert torch.equal(found[:, 3], images[:, 3])
    assert found.min() >= 0 and found.max() <= 1 and not torch.allclose(found[:, :3], images[:, :3])
    same, _ = augmented(images[:1].expand(8, 4, 6, 6), None, settings(jitter=0.4), 0)
    assert not torch.allclose(same[0], same[1])


def test_seed_and_step_decide():
    images = torch.rand(8, 3, 6, 6)
    how = {"flip": True, "rotate": True, "jitter": 0.3}
    first, again, other_step, other_seed = (
        augmented(images, None, settings(**how, seed=seed), step)[0] for seed, step in ((0, 3), (0, 3), (0, 4), (1, 3))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other_step) and not torch.equal(first, other_seed)
