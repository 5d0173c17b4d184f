"""Colours of classes, and pictures of label maps."""

import colorsys

import numpy as np

# Eight colours that colour-blind readers tell apart. Later labels take hues in golden-ratio steps.
FIRST_COLOURS = ("4477aa", "228833", "ccbb44", "ee6677", "66ccee", "aa3377", "ee8866", "44bb99")


def palette(number: int) -> np.ndarray:
    """Colours of the labels below `number`, black for all other values: uint8 [256, 3]."""
    table = np.zeros((256, 3), dtype=np.uint8)
    for label in range(min(number, 256)):
        if label < len(FIRST_COLOURS):
            table[label] = list(bytes.fromhex(FIRST_COLOURS[label]))
        else:
            hue, value = (label * 0.6180339887) % 1, (0.95, 0.7, 0.5)[label % 3]
            table[label] = [round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.65, value)]
    return table


def coloured(labels: np.ndarray, number: int) -> np.ndarray:
    """Label map [rows, columns] -> RGB [rows, columns, 3] uint8."""
    return palette(number)[labels]


def as_rgb(pixels: np.ndarray) -> np.ndarray:
    """An image [c, rows, columns] in [0, 1] -> RGB [rows, columns, 3] uint8: its first three
    channels, or its first one as grey if it has fewer.
    """
    shown = pixels[:3] if len(pixels) >= 3 else np.repeat(pixels[:1], 3, axis=0)
    return np.rint(np.clip(shown, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)


def overlaid(rgb: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """The mean of a picture and colours, both [rows, columns, 3] uint8."""
    return np.rint(rgb * 0.5 + colours * 0.5).astype(np.uint8)
