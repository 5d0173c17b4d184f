"""`infoseg prepare landcover` writes a landcover set as a folder, `infoseg prepare shards` a folder
as shards.
"""

import itertools
import json
import logging
import shutil
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from ..checkpoint import write_atomically
from ..errors import DataError
from ..output_folder import new_folder, require_new
from .folder import FolderSet
from .images import companions
from .landcover import LandcoverSet
from .shards import INDEX, LABEL, RANGE, members_in

logger = logging.getLogger("infoseg_fast")

SHARD_BYTES = 2**28  # size of a shard


def export_landcover(name: str, out: Path) -> int:
    """Write the tiles of a landcover set as a folder for `--data`. Returns the number of images.

    The eval split has the eval tiles, the train split the other tiles of the grid, because the
    images of a folder do not overlap. The folder gets its name when it is complete.

    Raises:
        DataError: `out` exists or cannot be written, or a wheel is not installed.
    """
    tiles, held_out = LandcoverSet(name, "all"), set(LandcoverSet(name, "eval").stems)
    with new_folder(out, "prepare") as scratch:
        for folder in ("images", "labels"):
            (scratch / folder).mkdir()
        for index, stem in enumerate(tiles.stems):
            pixels = np.ascontiguousarray(tiles.native_image(index).transpose(1, 2, 0))
            Image.fromarray(pixels).save(scratch / "images" / f"{stem}.png")
            Image.fromarray(tiles.label(index)).save(scratch / "labels" / f"{stem}.png")
        lists = {
            "classes": tiles.classes,
            "eval": [stem for stem in tiles.stems if stem in held_out],
            "train": [stem for stem in tiles.stems if stem not in held_out],
        }
        for list_name, lines in lists.items():
            (scratch / f"{list_name}.txt").write_text("\n".join(lines) + "\n")
    return len(tiles)


def write_shards(root: Path, out: Path, shard_bytes: int = SHARD_BYTES) -> tuple[int, str]:
    """Write the images and label maps of a folder as shards with their indices. The bytes of the
    files do not change.

    Args:
        root: a folder with images (see `FolderSet`).
        out: the folder to be made. It gets its name when it is complete.
        shard_bytes: a shard ends after the image that reaches this size.

    Returns:
        The number of images, and the pattern for `--data`.

    Raises:
        DataError: the folder is not accepted, or `out` exists or cannot be written.
    """
    require_new(out)
    if RANGE.search(str(out)):
        raise DataError(f"--out {out} holds {{first..last}}, which --data would take for numbers of shards")
    if not root.is_dir():
        raise DataError(f"--root {root} is no folder with images")
    source = FolderSet(root, "all")
    if lists := [name for name in ("train.txt", "eval.txt") if (root / name).exists()]:
        logger.warning("%s not taken: shards have the same images in every split", " and ".join(lists))
    files, headers = source._files, source._headers
    keys = [file.stem.replace(".", "_") for file in files]
    if len(set(keys)) < len(keys):
        twice = next(key for place, key in enumerate(keys) if key in keys[:place])
        raise DataError(f"{root}: two images would have the key {twice}, in which a dot becomes _")
    for file in files:
        if others := companions(file.path):
            raise DataError(
                f"image {file.path} needs {others[0]} too, which a shard does not hold; write it as one file"
            )
    with new_folder(out, "prepare") as scratch:
        number = 0
        waiting = iter(zip(keys, files, headers, strict=True))
        while (first := next(waiting, None)) is not None:
            shard = scratch / f"shards-{number:04d}.tar"
            images = {}
            # A shard holds files, not links: neither to other files nor to an earlier member.
            with tarfile.open(shard, "w", format=tarfile.PAX_FORMAT, dereference=True) as archive:
                for key, file, header in itertools.chain([first], waiting):
                    name = key + file.path.suffix.lower()
                    archive.add(file.path, name)
                    images[name] = header._replace(dtype=str(header.dtype))
                    if file.label is not None:
                        archive.add(file.label, key + LABEL)
                    if archive.offset >= shard_bytes:
                        break
            record = {"bytes": shard.stat().st_size, "members": members_in(shard), "images": images}
            write_atomically(shard.with_name(shard.name + INDEX), json.dumps(record).encode())
            number += 1
        if (root / "classes.txt").is_file():
            shutil.copy(root / "classes.txt", scratch)
    return len(files), str(out / f"shards-{{0000..{number - 1:04d}}}.tar")
