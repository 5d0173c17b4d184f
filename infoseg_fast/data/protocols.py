"""The protocols of the benchmarks as data: images, classes, geometry, partitions and addresses of
the raw files. docs/benchmarks.md describes each protocol.
"""

from dataclasses import dataclass

# The 27 coarse classes of COCO-Stuff, each with its values in the stuffthingmaps PNGs (0 to 181;
# 255 is unlabelled).
COARSE = {
    "electronic-things": (71, 72, 73, 74, 75, 76),
    "appliance-things": (77, 78, 79, 80, 81, 82),
    "food-things": (51, 52, 53, 54, 55, 56, 57, 58, 59, 60),
    "furniture-things": (61, 62, 63, 64, 65, 66, 67, 68, 69, 70),
    "indoor-things": (83, 84, 85, 86, 87, 88, 89, 90),
    "kitchen-things": (43, 44, 45, 46, 47, 48, 49, 50),
    "accessory-things": (25, 26, 27, 28, 29, 30, 31, 32),
    "animal-things": (15, 16, 17, 18, 19, 20, 21, 22, 23, 24),
    "outdoor-things": (9, 10, 11, 12, 13, 14),
    "person-things": (0,),
    "sports-things": (33, 34, 35, 36, 37, 38, 39, 40, 41, 42),
    "vehicle-things": (1, 2, 3, 4, 5, 6, 7, 8),
    "ceiling-stuff": (101, 102),
    "floor-stuff": (100, 113, 114, 115, 116, 117),
    "food-stuff": (120, 121, 152, 169),
    "furniture-stuff": (97, 106, 107, 109, 111, 122, 129, 132, 155, 160, 164),
    "rawmaterial-stuff": (99, 131, 138, 142),
    "textile-stuff": (91, 92, 103, 104, 108, 130, 136, 140, 151, 166, 167),
    "wall-stuff": (170, 171, 172, 173, 174, 175, 176),
    "window-stuff": (179, 180),
    "building-stuff": (94, 95, 127, 150, 157, 165),
    "ground-stuff": (110, 124, 125, 135, 139, 143, 144, 146, 148, 153, 158),
    "plant-stuff": (93, 96, 118, 123, 128, 133, 141, 162, 168),
    "sky-stuff": (105, 156),
    "solid-stuff": (126, 134, 149, 159, 161, 181),
    "structural-stuff": (98, 112, 137, 145, 163),
    "water-stuff": (119, 147, 154, 177, 178),
}
FINE_VALUES, FINE_UNLABELLED = 182, 255
STUFF15 = tuple(name for name in COARSE if name.endswith("-stuff"))
STUFF3 = ("sky-stuff", "plant-stuff", "ground-stuff")

# The colours of the six classes in the ISPRS label tiles.
PALETTE = {
    (255, 255, 255): "impervious surfaces",
    (0, 0, 255): "building",
    (0, 255, 255): "low vegetation",
    (0, 255, 0): "tree",
    (255, 255, 0): "car",
    (255, 0, 0): "clutter",
}

# Addresses of the raw files, for messages and manifests.
WHERE = {
    "train2017": "http://images.cocodataset.org/zips/train2017.zip (18 GB)",
    "val2017": "http://images.cocodataset.org/zips/val2017.zip (1 GB)",
    "stuffthingmaps": "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/"
    "stuffthingmaps_trainval2017.zip (659 MB)",
    "curated": "https://www.robots.ox.ac.uk/~xuji/datasets/COCOStuff164kCurated.tar.gz",
    "instances": "http://images.cocodataset.org/annotations/annotations_trainval2017.zip (241 MB)",
    "potsdam": "https://www.isprs.org/education/benchmarks/UrbanSemLab/default.aspx",
    "potsdam.mat": "https://www.robots.ox.ac.uk/~xuji/datasets/Potsdam.tar.gz",
}
REFERENCE = "IIC (Ji, Henriques and Vedaldi, 2019)"


@dataclass(frozen=True)
class ImageList:
    """A curated list of COCO images: ROOT/curated/PART/NAME.txt, one stem a line."""

    part: str
    name: str
    count: int
    sha256: str


@dataclass(frozen=True)
class Protocol:
    """One benchmark.

    Attributes:
        name: NAME of `infoseg prepare`.
        source: download that has the raw files, a key of OPTIONS_OF.
        classes: names of the label values 0, 1, ...
        values: the raw label values of each class (COCO-Stuff: PNG values; Potsdam: rows of
            PALETTE).
        unlabelled_as: class that the code of REFERENCE gives to unlabelled pixels
            ("unlabelled=iic"). None: it ignores them, as "unlabelled=ignore" does.
        scale: factor by which images (bilinear) and labels (nearest) are resized first.
        window: side of the scored centre window and of the training crops, pixels. Images that are
            smaller after scaling are framed with zeros without label.
        channels: number of channels, in the order R, G, B, infrared.
        lists: the images, for the COCO-Stuff protocols.
        tiles, labelled_tiles: Potsdam: number of tiles, and of those with labels.
        tile_side: Potsdam: side of a tile, pixels.
        patch: Potsdam: side of a patch after scaling, pixels.
        held_out: Potsdam: number of patches that are kept for scoring.
    """

    name: str
    source: str
    classes: tuple[str, ...]
    values: tuple[tuple[int, ...], ...] = ()
    unlabelled_as: int | None = None
    scale: float = 1.0
    window: int = 128
    channels: int = 3
    lists: tuple[ImageList, ...] = ()
    tiles: int = 0
    labelled_tiles: int = 0
    tile_side: int = 0
    patch: int = 0
    held_out: int = 0

    @property
    def num_classes(self) -> int:
        return len(self.classes)


COCO = {"scale": 0.33, "window": 128, "channels": 3}
POTSDAM = {
    "source": "potsdam", "scale": 0.5, "window": 200, "channels": 4,
    "tiles": 38, "labelled_tiles": 24, "tile_side": 6000, "patch": 200, "held_out": 855,
}  # fmt: skip

# fmt: off
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "coco-stuff-15", "coco-stuff",
            classes=tuple(name.removesuffix("-stuff") for name in STUFF15),
            values=tuple(COARSE[name] for name in STUFF15),
            lists=(ImageList("train2017", "Coco164kFull_Stuff_Coarse_7", 49629,
                             "3b837594a81880a70f177afab906fc45147d8b9c2c4f51132f784e41941812f9"),
                   ImageList("val2017", "Coco164kFull_Stuff_Coarse_7", 2175,
                             "7c629734c88f1a74bba6311e01d4d9fe976df84f07cb4fc86452ce5116e51655")),
            **COCO,
        ),
        Protocol(
            "coco-stuff-3", "coco-stuff",
            classes=tuple(name.removesuffix("-stuff") for name in STUFF3),
            values=tuple(COARSE[name] for name in STUFF3),
            unlabelled_as=0,
            lists=(ImageList("train2017", "Coco164kFew_Stuff_6", 35228,
                             "5f78b43a1ad7408f590f0404ea86cdfc55e3a991d748a9cb64e5f86663541a6b"),
                   ImageList("val2017", "Coco164kFew_Stuff_6", 1432,
                             "b5b09cbb5258417a40c7a57dfe65f6be455fa64d5a14b6a93bda91642d431fce")),
            **COCO,
        ),
        Protocol("potsdam-6", classes=tuple(PALETTE.values()), values=((0,), (1,), (2,), (3,), (4,), (5,)), **POTSDAM),
        Protocol(
            "potsdam-3", classes=("roads and cars", "buildings and clutter", "vegetation and trees"),
            values=((0, 4), (1, 5), (2, 3)), **POTSDAM,
        ),
        # The selection of images is this project's (`persons`).
        Protocol("coco-persons", "coco-persons", classes=("background", "person"), **COCO),
    )
}
# fmt: on


@dataclass(frozen=True)
class Options:
    """Choices that a protocol leaves open. The manifest records them, and every result prints them.

    Attributes:
        partition: "iid", train and score on the same images (REFERENCE's unsupervised protocol);
            "iid+", train on train2017 and score on val2017 (Potsdam: score on `held_out` labelled
            patches, train on the others).
        unlabelled: "ignore", or "iic" for `Protocol.unlabelled_as`.
        split_seed: seed of Potsdam's held-out patches (the .mat archive has its own).
        min_side: COCO-Persons: least side of an image, pixels.
        person_min, person_max: COCO-Persons: range of the share of persons in the scored window.
        crowd: COCO-Persons: crowd regions count as "person", or are ignored ("ignore").
    """

    partition: str = "iid"
    unlabelled: str = "ignore"
    split_seed: int = 0
    min_side: int = 360
    person_min: float = 0.1
    person_max: float = 0.9
    crowd: str = "person"


PARTITIONS = ("iid", "iid+")
UNLABELLED = ("ignore", "iic")
CROWDS = ("person", "ignore")
# The options that apply to each source.
OPTIONS_OF = {
    "coco-stuff": {"partition", "unlabelled"},
    "coco-persons": {"partition", "min_side", "person_min", "person_max", "crowd"},
    "potsdam": {"partition", "split_seed"},
}
