"""Images and their label maps, reduced for a report, and pictures as data URLs."""

import base64
import io
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from .data.base import ImageSet, Pixels, cut
from .data.images import IGNORE
from .palette import as_rgb
from .segmenter import Segmenter
from .tiling import Band

SIDE = 512  # pixels, largest side of a picture: every n-th pixel of a larger image is shown
LARGEST_SEGMENTED = 2**28  # pixels: a larger scene is shown without labels
LARGEST_WHOLE = 2**24  # pixels, the same if the network needs the whole image at once


class Shown(NamedTuple):
    """An image and its clusters.

    Attributes:
        stem: stem of the image file.
        step: every step-th pixel is shown.
        picture: RGB uint8 [rows, columns, 3].
        labels: clusters, uint8 [rows, columns], 255 where there is no data. None: the image is too
            large to be segmented.
    """

    stem: str
    step: int
    picture: np.ndarray
    labels: np.ndarray | None


def show(segmenter: Segmenter, images: ImageSet, index: int, rgb: Sequence[int] | None = None) -> Shown:
    """An image of a set, and the labels that `infoseg predict` gives it.

    Args:
        rgb: the channels, from 1, that are shown as red, green and blue (or one as grey). None: the
            first three.
    """
    rows, columns = images.sizes[index]
    step = -(-max(rows, columns) // SIDE)
    picture = _colours(segmenter, images.overview(index, SIDE), rgb)
    if rows * columns > (LARGEST_SEGMENTED if segmenter.tiled else LARGEST_WHOLE):
        return Shown(images.stems[index], step, picture, None)
    labels = np.full(picture.shape[:2], IGNORE, np.uint8)
    whole = None if images.windowed else images.read(index)
    plan = segmenter.plan((rows, columns))

    def bands() -> Iterator[Band]:
        for y, x in plan.regions():
            if whole is None:
                pixels, valid = images.read_window(index, y.start, x.start, len(y), len(x))
            else:
                pixels, valid = cut(whole, slice(y.start, y.stop), slice(x.start, x.stop))
            yield segmenter.band(pixels, (y, x), valid)

    for part in segmenter.parts(plan, bands()):
        (y, x), found = part.area, part.labels[0].cpu().numpy()
        seen = found[-y.start % step :: step, -x.start % step :: step]
        top, left = -(-y.start // step), -(-x.start // step)
        labels[top : top + seen.shape[0], left : left + seen.shape[1]] = seen
    return Shown(images.stems[index], step, picture, labels)


def _colours(segmenter: Segmenter, image: Pixels, rgb: Sequence[int] | None) -> np.ndarray:
    """Stored values as colours by the scaling of the run. Pixels without data are black."""
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
    """A figure as a data URL. The figure is closed."""
    from matplotlib import pyplot

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot.close(figure)
    return data_url(buffer.getvalue())
