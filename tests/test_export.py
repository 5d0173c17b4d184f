"""Export: the labels of the written model are those of the segmenter, at any batch and size."""

import logging
import os

import pytest
import torch
from test_backbones import PYRAMID, segmenter_of

import infoseg_fast as isf
from infoseg_fast.config import Settings
from infoseg_fast.errors import DataError
from infoseg_fast.export import export
from infoseg_fast.position import with_position
from infoseg_fast.recipe import DataInfo, recipe_class
from infoseg_fast.recipe.sample import Sample

SIZES = ((1, 3, 40, 52), (2, 3, 33, 64), (3, 3, 20, 97))
SETTINGS = ({"overcluster": 1.0, "position": "on"}, {"refine": False, "smooth": 1}, {"recipe": "paper"})


def segmenter(scale: float = 1.0, **given) -> isf.Segmenter:
    sizes = {"data": "any", "classes": 3, "width": 8, "dim": 16, "crop": 32}
    settings, images = Settings.create(sizes | given), torch.rand(8, 3, 32, 32)
    position = settings.position == "on"
    data = DataInfo(3, 3, None, [0.5] * 3, [0.3] * 3, scale=scale, position=position)
    images = with_position(images) if position else images
    recipe = recipe_class(settings.recipe)(settings, data)
    return isf.Segmenter(recipe.labelling(Sample(lambda: iter([(images, None)]), position)))


@pytest.mark.parametrize("given", SETTINGS)
def test_torchscript_gives_the_labels(given, tmp_path):
    made, file = segmenter(**given), tmp_path / "model.pt"
    export(made, "torchscript", file)
    model = torch.jit.load(file)
    for size in SIZES:
        images = torch.rand(size)
        assert (model(images) == made.segment(images)).float().mean() > 0.9999
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


@pytest.mark.long
@pytest.mark.parametrize("given", [*SETTINGS[:2], "backbone"])
def test_onnx_gives_the_labels(given, tmp_path, caplog):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    made = segmenter_of(PYRAMID, local_index=(3, 1)) if given == "backbone" else segmenter(**given)
    file = tmp_path / "model.onnx"
    export(made, "onnx", file)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    model = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for size in SIZES:
        images = torch.rand(size)
        labels = torch.from_numpy(model.run(None, {"images": images.numpy()})[0])
        assert labels.dtype == torch.uint8 and (labels == made.segment(images)).float().mean() > 0.9999


def test_a_run_that_resizes_its_images_is_refused(tmp_path):
    with pytest.raises(DataError, match="--scale 1, not 0.5"):
        export(segmenter(scale=0.5), "torchscript", tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())


def test_a_pipe_or_a_device_is_not_replaced_by_the_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="--out .*pipe is no regular file"):
        export(segmenter(), "torchscript", tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo() and len(list(tmp_path.iterdir())) == 1
