"""The table of protocols against the published label maps, lists and palette."""

import numpy as np
import pytest

from infoseg_fast.data import potsdam
from infoseg_fast.data.protocols import COARSE, PALETTE, PROTOCOLS
from infoseg_fast.data.raw import class_table

# COCO-Stuff's value -> coarse class, and -> class of the benchmark (-1: ignored), as published.
COARSE27 = [
    9, 11, 11, 11, 11, 11, 11, 11, 11, 8, 8, 8, 8, 8, 8, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 6,
    6, 6, 6, 6, 6, 6, 6, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 5, 5, 5, 5, 5, 5, 5, 5, 2,
    2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 0, 0, 0, 0, 0, 0, 1,
    1, 1, 1, 1, 1, 4, 4, 4, 4, 4, 4, 4, 4, 17, 17, 22, 20, 20, 22, 15, 25, 16, 13, 12, 12, 17,
    17, 23, 15, 15, 17, 15, 21, 15, 25, 13, 13, 13, 13, 13, 22, 26, 14, 14, 15, 22, 21, 21, 24, 20, 22, 15,
    17, 16, 15, 22, 24, 21, 17, 25, 16, 21, 17, 22, 16, 21, 21, 25, 21, 26, 21, 24, 20, 17, 14, 21, 26, 15,
    23, 20, 21, 24, 15, 24, 22, 25, 15, 20, 17, 17, 22, 14, 18, 18, 18, 18, 18, 18, 18, 26, 26, 19, 19, 24,
]  # fmt: skip
STUFF15 = [
    -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
    -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
    -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
    -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 5, 5, 10, 8, 8, 10, 3, 13, 4, 1, 0, 0, 5,
    5, 11, 3, 3, 5, 3, 9, 3, 13, 1, 1, 1, 1, 1, 10, 14, 2, 2, 3, 10, 9, 9, 12, 8, 10, 3,
    5, 4, 3, 10, 12, 9, 5, 13, 4, 9, 5, 10, 4, 9, 9, 13, 9, 14, 9, 12, 8, 5, 2, 9, 14, 3,
    11, 8, 9, 12, 3, 12, 10, 13, 3, 8, 5, 5, 10, 2, 6, 6, 6, 6, 6, 6, 6, 14, 14, 7, 7, 12,
]  # fmt: skip
STUFF3 = [
    -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
    -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
    -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
    -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 1, -1, -1, 1, -1, -1, -1, -1, -1, -1, -1,
    -1, 0, -1, -1, -1, -1, 2, -1, -1, -1, -1, -1, -1, -1, 1, -1, -1, -1, -1, 1, 2, 2, -1, -1, 1, -1,
    -1, -1, -1, 1, -1, 2, -1, -1, -1, 2, -1, 1, -1, 2, 2, -1, 2, -1, 2, -1, -1, -1, -1, 2, -1, -1,
    0, -1, 2, -1, -1, -1, 1, -1, -1, -1, -1, -1, 1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
]  # fmt: skip


def test_the_coarse_classes_are_the_published_27():
    found = np.full(182, -1)
    for label, members in enumerate(COARSE.values()):
        assert (found[list(members)] == -1).all()
        found[list(members)] = label
    assert found.tolist() == COARSE27 and len(COARSE) == 27


@pytest.mark.parametrize(("name", "published"), [("coco-stuff-15", STUFF15), ("coco-stuff-3", STUFF3)])
def test_coco_stuff_labels_are_the_published_ones(name, published):
    table = class_table(PROTOCOLS[name])
    assert np.where(table[:182] == 255, -1, table[:182].astype(int)).tolist() == published
    # Unlabelled pixels have their own value only where the published code makes them a class.
    assert (table[182:255] == 255).all() and table[255] == (254 if name == "coco-stuff-3" else 255)
    assert PROTOCOLS[name].num_classes == max(published) + 1


def test_potsdam_colours_and_classes_are_the_published_ones():
    colours = np.array(
        [[(255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0)]], np.uint8
    )
    rows = potsdam.palette_rows(colours, None)
    assert rows.tolist() == [[0, 1, 2, 3, 4, 5]] and len(PALETTE) == 6
    assert class_table(PROTOCOLS["potsdam-6"])[rows].tolist() == [[0, 1, 2, 3, 4, 5]]
    assert class_table(PROTOCOLS["potsdam-3"])[rows].tolist() == [[0, 1, 2, 2, 0, 1]]


def test_numbers_of_images_are_the_published_ones():
    for name, numbers in (("coco-stuff-15", (49629, 2175)), ("coco-stuff-3", (35228, 1432))):
        assert tuple(listed.count for listed in PROTOCOLS[name].lists) == numbers
        assert [listed.part for listed in PROTOCOLS[name].lists] == ["train2017", "val2017"]
        assert all(len(listed.sha256) == 64 for listed in PROTOCOLS[name].lists)
    for name in ("potsdam-6", "potsdam-3"):
        protocol = PROTOCOLS[name]
        patches = (protocol.tile_side // 2 // protocol.patch) ** 2
        assert (protocol.tiles * patches, protocol.labelled_tiles * patches, protocol.held_out) == (8550, 5400, 855)
    known = [(row, column) for row, columns in potsdam.GRID.items() for column in columns]
    assert len(known) == 38 and sum(column <= 12 for _, column in known) == 24


def test_geometry_is_the_published_one():
    for protocol in PROTOCOLS.values():
        if protocol.name.startswith("coco"):
            assert (protocol.scale, protocol.window, protocol.channels) == (0.33, 128, 3)
        else:
            assert (protocol.scale, protocol.window, protocol.channels) == (0.5, 200, 4)
