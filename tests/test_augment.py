"""Augmentation: what is drawn, and what stays as it is."""

import torch

from infoseg_fast import augment


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def symmetries(image):
    turned = [image.rot90(k, (-2, -1)) for k in range(4)]
    return turned + [x.flip(-1) for x in turned]


def test_flips_and_turns_draw_all_eight_symmetries_and_nothing_else():
    image = torch.rand(3, 6, 6)
    found, _ = augment.flip_and_rotate(image.expand(200, 3, 6, 6), None, generator(), True, True)
    drawn = {next(i for i, s in enumerate(symmetries(image)) if torch.equal(s, x)) for x in found}
    assert drawn == set(range(8))


def test_flips_alone_and_turns_alone():
    image = torch.rand(1, 5, 5)
    flipped, _ = augment.flip_and_rotate(image.expand(100, 1, 5, 5), None, generator(), True, False)
    options = [image, image.flip(-1), image.flip(-2), image.flip(-1, -2)]
    assert {next(i for i, s in enumerate(options) if torch.equal(s, x)) for x in flipped} == set(range(4))
    turned, _ = augment.flip_and_rotate(image.expand(100, 1, 5, 5), None, generator(), False, True)
    assert {next(i for i in range(4) if torch.equal(image.rot90(i, (-2, -1)), x)) for x in turned} == set(range(4))


def test_the_mask_goes_with_its_image():
    images = torch.rand(50, 1, 7, 7)
    found, valid = augment.flip_and_rotate(images, images[:, 0] > 0.5, generator(), True, True)
    assert valid.dtype == torch.bool and torch.equal(valid, found[:, 0] > 0.5)


def test_nothing_asked_changes_nothing():
    images = torch.rand(4, 3, 5, 5)
    assert augment.flip_and_rotate(images, None, generator(), False, False)[0] is images
    assert augment.jitter(images, 0.0, generator()) is images


def test_jitter_differs_by_image_stays_in_range_and_leaves_infrared():
    images = torch.rand(8, 4, 6, 6)
    found = augment.jitter(images, 0.4, generator())
    assert torch.equal(found[:, 3], images[:, 3])
    assert found.min() >= 0 and found.max() <= 1 and not torch.allclose(found[:, :3], images[:, :3])
    same = augment.jitter(images[:1].expand(8, 4, 6, 6), 0.4, generator())
    assert not torch.allclose(same[0], same[1])


def test_the_generator_decides():
    images = torch.rand(8, 3, 6, 6)
    a, b, c = (augment.flip_and_rotate(images, None, generator(s), True, True)[0] for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(*(augment.jitter(images, 0.3, generator(5)) for _ in range(2)))
