"""Images beside their label maps, small enough for a report; large scenes are read window by window.
And pictures as the data URLs of a page.
"""

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from .data.base import ImageSet, Pixels
from .data.images import IGNORE
from .palette import as_rgb
from .segmenter import Segmenter

SIDE = 512  # pixels; of larger images every n-th pixel is shown
WINDOW = 1024  # pixels that are segmented at once
MARGIN = 64  # pixels around a window that its labels may depend on
LARGEST_SEGMENTED = 2**28  # pixels; of larger scenes the image alone is shown


class Shown(NamedTuple):
    """An image, and its clusters.

    Attributes:
        stem: of the image. step: every n-th pixel is shown.
        picture: RGB uint8 [rows, columns, 3].
        labels: clusters, uint8 [rows, columns], 255 where there is no data; None for a scene that
            was not segmented.
    """

    stem: str
    step: int
    picture: np.ndarray
    labels: np.ndarray | None


def show(
    segmenter: Segmenter, images: ImageSet, index: int, device: torch.device, rgb: Sequence[int] | None = None
) -> Shown:
    """An image of a set as the segmenter sees it.

    Args:
        rgb: the channels, from 1, that are shown as red, green and blue (or one as grey). None: the
            first three.
    """
    rows, columns = images.sizes[index]
    step = -(-max(rows, columns) // SIDE)
    size = -(-rows // step), -(-columns // step)
    picture = np.zeros((*size, 3), np.uint8)
    if rows * columns > LARGEST_SEGMENTED:
        return Shown(images.stems[index], step, _colours(segmenter, images.overview(index, SIDE), rgb), None)
    labels = np.full(size, IGNORE, np.uint8)
    whole = None if images.windowed else images.read(index)
    stride = max(1, WINDOW // step) * step
    for row in range(0, rows, stride):
        for column in range(0, columns, stride):
            top, left = max(row - MARGIN, 0), max(column - MARGIN, 0)
            height = min(row + stride + MARGIN, rows) - top
            width = min(column + stride + MARGIN, columns) - left
            if whole is None:
                pixels, valid = images.read_window(index, top, left, height, width)
            else:
                pixels, valid = _part(whole, slice(top, top + height), slice(left, left + width))
            scaled = segmenter.labelling.data.scaling.to_float(pixels)
            found = segmenter.segment(scaled[None].to(device))[0].cpu().numpy()
            if valid is not None:
                found = np.where(valid, found, np.uint8(IGNORE))
            seen = slice(row - top, row - top + stride, step), slice(column - left, column - left + stride, step)
            place = (
                slice(row // step, -(-min(row + stride, rows) // step)),
                slice(column // step, -(-min(column + stride, columns) // step)),
            )
            labels[place] = found[seen]
            picture[place] = _colours(segmenter, (pixels[:, seen[0], seen[1]], None), rgb)
    return Shown(images.stems[index], step, picture, labels)


def _part(image: Pixels, rows: slice, columns: slice) -> Pixels:
    pixels, valid = image
    return pixels[:, rows, columns], None if valid is None else valid[rows, columns]


def _colours(segmenter: Segmenter, image: Pixels, rgb: Sequence[int] | None) -> np.ndarray:
    """Stored values as colours, stretched by the limits of the run; black where there is no data."""
    scaled = segmenter.labelling.data.scaling.to_float(np.ascontiguousarray(image[0])).numpy()
    found = as_rgb(scaled if rgb is None else scaled[[channel - 1 for channel in rgb]])
    return found if image[1] is None else np.where(image[1][..., None], found, np.uint8(0))


def png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def figure_url(figure: Figure) -> str:
    """A figure as a data URL; it is closed."""
    from matplotlib import pyplot

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot.close(figure)
    return data_url(buffer.getvalue())
