"""ISPRS Potsdam as downloaded: GeoTIFF tiles

    ROOT/4_Ortho_RGBIR/*_RGBIR.tif               38 tiles, 6000 x 6000 x 4: R, G, B, infrared
    ROOT/5_Labels_for_participants/*_label.tif   24 tiles, 6000 x 6000 x 3: the colours of PALETTE

or the ready-made .mat patches

    ROOT/imgs/<n>.mat "img", ROOT/gt/<n>.mat "gt"
    ROOT/{unlabelled_train,labelled_train,labelled_test}.txt
"""

import hashlib
import io
import re
from pathlib import Path

import numpy as np

from ..errors import DataError, first_line
from .images import IGNORE
from .protocols import PALETTE, WHERE, Options, Protocol
from .raw import Raw, class_table, files_in, read_bytes, require_files, require_folder, require_package
from .resize import halved

IMAGES, LABELS = "4_Ortho_RGBIR", "5_Labels_for_participants"
IMAGE_ENDING, LABEL_ENDING = "_RGBIR.tif", "_label.tif"
LISTS = ("unlabelled_train", "labelled_train", "labelled_test")
# The columns of each row of tiles: 38 tiles, of which the 24 with a column up to 12 are labelled.
GRID = {2: range(10, 15), 3: range(10, 15), 4: range(10, 16), 5: range(10, 16), 6: range(7, 16), 7: range(7, 14)}
MAT_PER_SHARD = 450  # patches
WRONG_TILE = "a later release of the labels (5_Labels_all.zip) has a wrong top_potsdam_4_12"


def find(protocol: Protocol, options: Options, root: Path) -> Raw:
    """The patches, in the order of the tiles or of the archive's lists.

    Raises:
        DataError: a file is missing, or the numbers are not the protocol's.
    """
    if (root / "imgs").is_dir():
        return _find_mat(protocol, root)
    require_folder(root / IMAGES, f"{WHERE['potsdam']}; the ready-made archive is {WHERE['potsdam.mat']}")
    require_folder(root / LABELS, WHERE["potsdam"])
    require_package("tifffile")
    require_package("imagecodecs")
    tiles = sorted(files_in(root / IMAGES, IMAGE_ENDING))
    labels = sorted(files_in(root / LABELS, LABEL_ENDING))
    without_image = [tile for tile in labels if tile not in set(tiles)]
    if without_image:
        raise DataError(
            f"label {root / LABELS / without_image[0]}{LABEL_ENDING} has no image in {root / IMAGES}; "
            f"it is in {WHERE['potsdam']}"
        )
    for found, number, folder in ((tiles, protocol.tiles, IMAGES), (labels, protocol.labelled_tiles, LABELS)):
        if len(found) != number:
            raise DataError(
                f"{root / folder} has {len(found)} tiles, the protocol {number}{_missing(found, folder == LABELS)}; "
                f"they are in {folder}.zip of {WHERE['potsdam']}"
            )
    side = protocol.tile_side // 2 // protocol.patch
    items, stems, labelled = [], [], []
    for tile in tiles:
        label = root / LABELS / f"{tile}{LABEL_ENDING}" if tile in set(labels) else None
        items.append((root / IMAGES / f"{tile}{IMAGE_ENDING}", label))
        stems += [f"{tile}_{row:02d}_{column:02d}" for row in range(side) for column in range(side)]
        labelled += [label is not None] * side**2
    chosen = np.flatnonzero(labelled)
    draw = np.random.default_rng(options.split_seed).permutation(chosen)[: protocol.held_out]
    held_out = np.zeros(len(stems), dtype=bool)
    held_out[draw] = True
    sources = {folder: {"tiles": n, "from": WHERE["potsdam"]} for folder, n in
               ((IMAGES, len(tiles)), (LABELS, len(labels)))}  # fmt: skip
    parts = ["labelled" if known else "unlabelled" for known in labelled]
    note = f"{protocol.held_out} held-out patches drawn with seed {options.split_seed}"
    return Raw(items, stems, parts, labelled, held_out.tolist(), side**2, 1, sources, notes=[note])


def _missing(found: list[str], labelled: bool) -> str:
    """The missing tiles of the known grid, as the end of a message."""
    numbers = {tuple(map(int, m.groups())) for tile in found if (m := re.search(r"_(\d+)_(\d+)$", tile))}
    known = [(row, column) for row, columns in GRID.items() for column in columns if not labelled or column <= 12]
    missing = [f"{row}_{column}" for row, column in known if (row, column) not in numbers]
    return f" (missing: {', '.join(missing)})" if found and len(found) + len(missing) == len(known) else ""


def _find_mat(protocol: Protocol, root: Path) -> Raw:
    names, sources = {}, {}
    for listed in LISTS:
        path = root / f"{listed}.txt"
        try:
            data = path.read_bytes()
        except OSError:
            raise DataError(f"patch list {path} is missing; it is in {WHERE['potsdam.mat']}") from None
        names[listed] = data.decode("ascii", "replace").split()
        sources[path.name] = {
            "patches": len(names[listed]), "sha256": hashlib.sha256(data).hexdigest(), "from": WHERE["potsdam.mat"]
        }  # fmt: skip
    stems = [stem for listed in LISTS for stem in names[listed]]
    if len(set(stems)) != len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise DataError(f"patch {twice} is listed twice in {root}/{{{','.join(LISTS)}}}.txt; get them again")
    patches = (protocol.tile_side // 2 // protocol.patch) ** 2
    for number, expected, what in (
        (len(stems), protocol.tiles * patches, "patches"),
        (len(stems) - len(names[LISTS[0]]), protocol.labelled_tiles * patches, "labelled patches"),
        (len(names[LISTS[2]]), protocol.held_out, "patches in labelled_test.txt"),
    ):
        if number != expected:
            raise DataError(
                f"{root} lists {number} {what}, the protocol has {expected}; get the archive again from "
                f"{WHERE['potsdam.mat']}"
            )
    labelled = [listed != LISTS[0] for listed in LISTS for _ in names[listed]]
    require_files(root / "imgs", stems, ".mat", "patch", WHERE["potsdam.mat"])
    known = [stem for stem, has in zip(stems, labelled, strict=True) if has]
    require_files(root / "gt", known, ".mat", "label", WHERE["potsdam.mat"])
    items = [
        (root / "imgs" / f"{stem}.mat", root / "gt" / f"{stem}.mat" if has else None)
        for stem, has in zip(stems, labelled, strict=True)
    ]
    parts = ["labelled" if has else "unlabelled" for has in labelled]
    held_out = [listed == LISTS[2] for listed in LISTS for _ in names[listed]]
    note = f"{protocol.held_out} held-out patches by the archive's labelled_test.txt"
    return Raw(items, stems, parts, labelled, held_out, 1, MAT_PER_SHARD, sources, notes=[note])


def measure(protocol: Protocol, item: tuple) -> tuple[int, int]:
    """(rows, columns) of a patch. The headers of a tile are checked."""
    if item[0].suffix == ".tif":
        for path, channels in zip(item, (protocol.channels, 3), strict=True):
            if path is not None:
                _checked_header(path, (protocol.tile_side, protocol.tile_side, channels))
    return protocol.patch, protocol.patch


def read(protocol: Protocol, options: Options, item: tuple, digest):
    """The patches of a tile, row by row, or the patch of a .mat file: uint8 [4, 200, 200], with
    labels uint8 [200, 200].
    """
    image, label = item
    if image.suffix == ".mat":
        yield _read_mat(protocol, image, label, digest)
        return
    n, side = protocol.patch, protocol.tile_side
    read_bytes_into(image, digest)
    tile = _read_tile(image, (side, side, protocol.channels))
    if label is not None:
        read_bytes_into(label, digest)
        colours = _read_tile(label, (side, side, 3))
    labels = np.full((n, side // 2), IGNORE, dtype=np.uint8)
    for top in range(0, side // 2, n):
        band = slice(2 * top, 2 * (top + n))  # a row of patches at a time: a tile is 144 MB
        pixels = halved(tile[band]).transpose(2, 0, 1)
        if label is not None:
            labels = class_table(protocol)[palette_rows(colours[band], label)[::2, ::2]]
        for left in range(0, side // 2, n):
            yield pixels[:, :, left : left + n], labels[:, left : left + n]


def palette_rows(colours: np.ndarray, path: Path) -> np.ndarray:
    """The row of PALETTE of each pixel, uint8 [rows, columns], from colours [rows, columns, 3].

    Raises:
        DataError: PALETTE has not this colour.
    """
    table = np.full((2, 2, 2), 255, dtype=np.uint8)
    for row, colour in enumerate(PALETTE):
        table[tuple(int(part > 127) for part in colour)] = row
    pure = (colours == 0) | (colours == 255)
    high = colours >> 7
    rows = table[high[..., 0], high[..., 1], high[..., 2]]
    bad = ~pure.all(axis=2) | (rows == 255)
    if bad.any():
        colour = tuple(map(int, colours[bad][0]))
        raise DataError(
            f"label {path} holds the colour {colour}, which is none of the six classes'; "
            f"{WRONG_TILE}: take {LABELS}.zip of {WHERE['potsdam']}"
        )
    return rows


def read_bytes_into(path: Path, digest) -> None:
    """Update the digest with the content of a file, block by block."""
    try:
        with open(path, "rb") as file:
            while block := file.read(2**22):
                digest.update(block)
    except OSError as error:
        raise DataError(f"tile {path} cannot be read: {error.strerror}") from error


def _checked_header(path: Path, shape: tuple[int, int, int]) -> None:
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            found, dtype = tuple(page.shape), page.dtype
    except Exception as error:  # tifffile raises many kinds on a damaged file
        raise DataError(
            f"tile {path} is damaged ({first_line(error)}); get it again from {WHERE['potsdam']}"
        ) from error
    if found != shape or dtype != np.uint8:
        raise DataError(
            f"tile {path} is {' x '.join(map(str, found))} of {dtype}; {' x '.join(map(str, shape))} of uint8 "
            f"is accepted ({WHERE['potsdam']})"
        )


def _read_tile(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    import tifffile

    try:
        pixels = tifffile.imread(path)
    except Exception as error:
        raise DataError(
            f"tile {path} is damaged ({first_line(error)}); get it again from {WHERE['potsdam']}"
        ) from error
    if pixels.shape != shape or pixels.dtype != np.uint8:
        raise DataError(f"tile {path} holds {pixels.dtype} {pixels.shape}; uint8 {shape} is accepted")
    return pixels


def _read_mat(protocol: Protocol, image: Path, label: Path | None, digest) -> tuple[np.ndarray, np.ndarray]:
    n = protocol.patch
    pixels = _mat_array(image, "img", (n, n, protocol.channels), digest)
    if label is None:
        return pixels.transpose(2, 0, 1), np.full((n, n), IGNORE, dtype=np.uint8)
    rows = _mat_array(label, "gt", (n, n), digest)
    if not ((rows >= 0) & (rows < len(PALETTE))).all():
        raise DataError(f"label {label} holds values from {rows.min()} to {rows.max()}; 0 to 5 are accepted")
    return pixels.transpose(2, 0, 1), class_table(protocol)[rows]


def _mat_array(path: Path, key: str, shape: tuple[int, ...], digest) -> np.ndarray:
    import scipy.io

    data = read_bytes(path, "patch", digest)
    try:
        array = scipy.io.loadmat(io.BytesIO(data), variable_names=[key])[key]
    except Exception as error:  # scipy raises many kinds on a damaged file, KeyError on a missing key
        raise DataError(
            f"patch {path} is damaged or has no {key!r} ({first_line(error)}); get it again from {WHERE['potsdam.mat']}"
        ) from error
    if array.shape != shape or array.dtype.kind not in "iu" or (key == "img" and array.dtype != np.uint8):
        raise DataError(
            f"patch {path} holds {array.dtype} of {' x '.join(map(str, array.shape))}; "
            f"{' x '.join(map(str, shape))} is accepted"
        )
    return array
