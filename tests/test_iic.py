"""The recipe `iic`: its loss is that of the paper; it resumes, predicts and exports."""

import numpy as np
import pytest
import torch
from conftest import write_folder
from PIL import Image
from test_train import gain_of_a_resumed_run

import infoseg_fast as isf
from infoseg_fast import report
from infoseg_fast.cli import main
from infoseg_fast.config import Settings
from infoseg_fast.data.crops import Part
from infoseg_fast.errors import DataError
from infoseg_fast.export import export
from infoseg_fast.recipe import DataInfo
from infoseg_fast.recipe.iic import IICRecipe, displaced_joint, iic_loss
from infoseg_fast.train import train


def statement(probs, others, mask, displacement, marginal_weight):
    """The loss in plain loops, float64 numpy."""
    B, K, h, w = probs.shape
    total, T = 0.0, displacement
    for dy in range(-T, T + 1):
        for dx in range(-T, T + 1):
            joint = np.zeros((K, K))
            for b in range(B):
                for y in range(h):
                    for x in range(w):
                        if 0 <= y + dy < h and 0 <= x + dx < w and mask[b, y, x] and mask[b, y + dy, x + dx]:
                            joint += np.outer(probs[b, :, y, x], others[b, :, y + dy, x + dx])
            joint = (joint + joint.T) / 2
            joint /= joint.sum()
            row, column = joint.sum(1, keepdims=True), joint.sum(0, keepdims=True)
            total -= (joint * (np.log(joint) - marginal_weight * (np.log(row) + np.log(column)))).sum()
    return total / (2 * T + 1) ** 2


def assignments(h=4, w=5):
    return (torch.randn(2, 3, h, w, dtype=torch.float64).mul(2).softmax(1).requires_grad_() for _ in range(2))


@pytest.mark.parametrize(("displacement", "marginal_weight"), [(0, 1.0), (1, 1.5), (2, 1.0)])
@pytest.mark.parametrize("masked", [False, True])
def test_the_loss_is_that_of_the_paper(displacement, marginal_weight, masked):
    probs, others = assignments()
    mask = torch.rand(2, 4, 5) < 0.7 if masked else torch.ones(2, 4, 5, dtype=torch.bool)
    found = iic_loss(probs, others, mask if masked else None, displacement, marginal_weight)
    arrays = (x.detach().numpy() for x in (probs, others, mask))
    assert found.item() == pytest.approx(statement(*arrays, displacement, marginal_weight), rel=1e-12)


def test_its_gradient():
    probs, others = assignments(h=3, w=3)
    assert torch.autograd.gradcheck(lambda a, b: iic_loss(a, b, None, 1, 1.3), (probs, others))


def test_the_joint_is_the_convolution_of_the_published_code():
    probs, others = assignments()
    convolved = torch.nn.functional.conv2d(others.movedim(1, 0), probs.movedim(1, 0), padding=2)
    expected = convolved.permute(2, 3, 1, 0).flatten(0, 1)
    torch.testing.assert_close(displaced_joint(probs, others, 2), expected)


def test_equal_and_certain_views_have_the_information_of_k_classes():
    certain = torch.eye(4, dtype=torch.float64)[torch.arange(16) % 4].T.reshape(1, 4, 4, 4)
    assert iic_loss(certain, certain, None, 0, 1.0).item() == pytest.approx(-np.log(4))
    alike = torch.full_like(certain, 0.25)
    assert iic_loss(certain, alike, None, 0, 1.0).item() == pytest.approx(0, abs=1e-9)


def test_the_second_view_of_a_part_is_that_of_the_whole_batch():
    settings = Settings(recipe="iic", width=4, depth=0, dim=8, seed=3, overcluster=1.0)
    recipe, images = IICRecipe(settings, DataInfo(3, 4, None, [0.5] * 3, [0.3] * 3)), torch.rand(5, 3, 32, 32)
    whole, mirrored = recipe.second_view(7, images)
    assert 0 < mirrored.sum() < 5
    for first, stop in ((0, 2), (2, 5)):
        recipe.part = Part(first, stop, 5)
        assert torch.equal(recipe.second_view(7, images[first:stop])[0], whole[first:stop])


@pytest.fixture
def how(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "write", lambda *_: None)  # takes longer than the training
    monkeypatch.setenv("INFOSEG_CACHE", str(tmp_path / "cache"))
    data = write_folder(tmp_path / "data", number=8, side=40)
    sizes = {"data": str(data), "recipe": "iic", "width": 8, "depth": 0, "crop": 30, "batch_size": 4}
    return sizes | {"steps": 6, "checkpoint_every": 3, "log_every": 2, "lr": 3e-3, "warmup": 1}


def test_it_learns_and_resumes_to_the_same_bits(how, tmp_path):
    assert gain_of_a_resumed_run(how, tmp_path) > 0.05


@pytest.mark.parametrize("backbone", [{}, {"backbone": "tiny_backbones:pyramid", "freeze_backbone": True}])
def test_its_labels_are_written_and_exported(backbone, how, tmp_path):
    if backbone:
        how = {name: value for name, value in how.items() if name not in ("width", "depth")} | backbone
    train(out=tmp_path / "run", **how | {"overcluster": 1.0})
    assert main(["predict", str(tmp_path / "run"), f"{how['data']}/images", "--out", str(tmp_path / "labels")]) == 0
    made = isf.load(tmp_path / "run")
    image = torch.tensor(np.asarray(Image.open(f"{how['data']}/images/im0.png"))).movedim(2, 0)[None].float() / 255
    predicted = np.asarray(Image.open(tmp_path / "labels" / "im0.png"))
    assert np.array_equal(predicted, made.segment(image)[0].numpy())
    network = made.labelling.network
    logits = network.local_projection(network(image)[0])
    torch.testing.assert_close(made.labelling.probabilities(image), logits.softmax(1))
    export(made, "torchscript", tmp_path / "model.pt")
    model, images = torch.jit.load(tmp_path / "model.pt"), torch.rand(3, 3, 44, 50)
    assert (model(image)[0].numpy() == predicted).mean() > 0.999
    assert (model(images) == made.segment(images)).float().mean() > 0.999


def test_a_part_of_a_step_needs_one_image_since_there_are_no_negatives():
    given = {"data": "x", "recipe": "iic", "batch_size": 3}
    assert Settings.create(given).least_batch == 1
    assert Settings.create(given | {"accumulate": 3}).least_batch == 3
    with pytest.raises(DataError, match="--batch-size must be at least 4 for 1 ranks, --accumulate 4, not 3"):
        Settings.create(given | {"accumulate": 4})
