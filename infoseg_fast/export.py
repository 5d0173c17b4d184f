"""Export of a segmenter to ONNX or TorchScript: images in, label maps out, without this package."""

from __future__ import annotations

import io
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import reference
from .checkpoint import check_target, write_atomically
from .defaults import float32_on_cpu
from .errors import DataError
from .model import padded
from .position import with_position
from .recipe.colours import colour_channels
from .recipe.labelling import Labelling
from .recipe.refinement import SURROUNDINGS_RADIUS, log_colours, spread
from .segmenter import Segmenter

EXAMPLE_SIDE = 64  # pixels, side of the images that the graph is recorded with
ONNX_OPSET = 18


class LabelModel(nn.Module):
    """A labelling in plain PyTorch: images, float [B, c, H, W] in [0, 1] -> labels [B, H, W] uint8.

    Batch, height and width are dynamic. Large images are not split into tiles.
    """

    def __init__(self, labelling: Labelling) -> None:
        super().__init__()
        self.network, self.labelling, self.refinement = labelling.network, labelling, labelling.refinement
        if self.refinement is not None:
            self.register_buffer("residual", self.refinement.residual)
            self.register_buffer("log_scale", self.refinement.log_scale)
        example = torch.zeros(1, labelling.data.inputs, EXAMPLE_SIDE, EXAMPLE_SIDE)
        with torch.no_grad():
            self.stride = EXAMPLE_SIDE // self.network(example)[0].shape[2]  # pixels of a position

    def forward(self, images: Tensor) -> Tensor:
        rows, columns = images.shape[2], images.shape[3]
        position = self.labelling.data.position
        probs = self.labelling.probabilities(with_position(images) if position else images)
        images = padded(images)
        if self.refinement is None:
            size = images.shape[2:]
            labels = F.interpolate(probs, size=size, mode="bilinear", align_corners=False).argmax(dim=1)
            return labels.to(torch.uint8)[:, :rows, :columns]
        images = colour_channels(images)
        pixels = log_colours(reference.neighbourhood_mean(images, self.refinement.radius))
        cells = log_colours(F.avg_pool2d(images, self.stride))
        around = reference.neighbourhood_mean(cells, SURROUNDINGS_RADIUS)
        labels = reference.refined_labels(spread(probs), pixels, around, self.residual, self.log_scale)
        return labels[:, :rows, :columns]


@float32_on_cpu()
def export(segmenter: Segmenter, format: str, out: str | Path) -> None:
    """Write the model of a segmenter on the CPU.

    Args:
        segmenter: the segmenter of a run.
        format: "onnx" (needs the extra [export]) or "torchscript".
        out: the file. It is written whole or not at all.

    Raises:
        DataError: the run resizes its images, a package is missing, or the file cannot be written.
    """
    info = segmenter.labelling.data
    if info.scale != 1:
        raise DataError(f"export takes runs with --scale 1, not {info.scale}: resize the images before the model")
    out = Path(out)
    check_target("--out", out)
    model = LabelModel(segmenter.labelling).eval()
    # Two images of unequal sides, so that no side is taken for another or for 1.
    example = torch.rand(2, info.channels, EXAMPLE_SIDE, EXAMPLE_SIDE + 32)
    scratch = out.with_name(f".{out.name}.new")
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if format == "onnx":
                _write_onnx(model, example, scratch)
                data = scratch.read_bytes()
            else:
                buffer = io.BytesIO()
                torch.jit.save(torch.jit.trace(model, example, check_trace=False), buffer)
                data = buffer.getvalue()
        write_atomically(out, data)
    finally:
        scratch.unlink(missing_ok=True)


def _write_onnx(model: nn.Module, example: Tensor, file: Path) -> None:
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise DataError("--format onnx needs onnx and onnxscript: pip install 'infoseg-fast[export]'") from error
    # PyTorch warns once for each op of torchvision. No graph of this package has one.
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    dimensions: dict[int, Any] = {0: torch.export.Dim("B", min=1), 2: torch.export.Dim("H"), 3: torch.export.Dim("W")}
    logger.addFilter(_not_of_torchvision)
    try:
        torch.onnx.export(
            model,
            (example,),
            str(file),
            input_names=["images"],
            output_names=["labels"],
            dynamic_shapes={"images": dimensions},
            opset_version=ONNX_OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    finally:
        logger.removeFilter(_not_of_torchvision)


def _not_of_torchvision(record: logging.LogRecord) -> bool:
    return "torchvision is not installed" not in record.getMessage()
