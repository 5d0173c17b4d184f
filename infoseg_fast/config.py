"""The settings of a training run: each with its default, its bounds and its help text."""

import argparse
import dataclasses
import difflib
import logging
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from .data import ImageSet, ReadOptions, open_set
from .data.crops import steps_per_epoch
from .data.reader import MAX_BYTES
from .distributed.world import across_ranks, ranks
from .errors import DataError
from .model import INPUTS, MAX_DEPTH
from .ops.mutual_information_loss import ESTIMATORS, NEGATIVES
from .recipe import COMMON_DEFAULTS, recipe_class
from .recipe.colours import MAX_COLOURS
from .recipe.smoothing import AUTO, MAX_RADIUS

logger = logging.getLogger("infoseg_fast")

DEFAULT_STEPS = 800
DEFAULT_CROP = 128  # pixels
MAX_SCALE = 16.0
MAX_SEED = 2**63 - 1  # the largest that PyTorch takes
MAX_TIMEOUT = 1e6  # seconds; PyTorch counts milliseconds in 32 bits
LOSS_MASKS = ("none", "gt")
GROUPS = ("data", "network", "objective", "labels", "run")  # groups of options in `infoseg train --help`
# Bounds of numbers: the key in the metadata of a field, its words in an error, and the test.
BOUNDS = (
    ("minimum", "at least", operator.ge),
    ("above", "above", operator.gt),
    ("below", "below", operator.lt),
    ("maximum", "at most", operator.le),
)
# The settings that a resumed run may change: its length and its logs, but not what it computes.
# The data may have moved: the fingerprint says whether they are the same.
CHANGEABLE = (
    "data", "steps", "epochs", "log_every", "eval_every", "checkpoint_every", "device", "workers", "rgb",
    "skip_damaged", "skip_nonfinite", "rank_timeout", "cuda_graph",
)  # fmt: skip


def setting(group: str, default: Any, help: str, **how: Any) -> Any:
    """A field of `Settings`.

    Args:
        group: its group of options in `infoseg train --help`.
        default: its default.
        help: its help text, without the default.
        how: bounds of a number: `minimum` and `maximum` (included), `above` and `below` (excluded).
            `type`, `choices` and `metavar` are for argparse. `switch=True` makes the two options
            --name and --no-name.
    """
    return field(default=default, metadata={"group": group, "help": help, **how})


def numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"takes numbers as 4,3,2, not {text!r}") from None


def number_or(word: str) -> Callable[[str], int | str]:
    """The type of an option that takes a whole number or this word."""

    def read(text: str) -> int | str:
        try:
            return text if text == word else int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"takes a whole number or {word}, not {text!r}") from None

    return read


@dataclass(frozen=True)
class Settings:
    """The settings of a run. None: the recipe or the data decide (`create`, `resolve`)."""

    # fmt: off
    data: str = setting("data", "", "name of a set, or a folder with images/", metavar="NAME|DIR")
    classes: int | None = setting(
        "data", None, "number of classes K (default: the lines of classes.txt, else the largest label + 1)", type=int,
        minimum=2, maximum=256)
    crop: int | None = setting(
        "data", None,
        f"side of the training crops (default: a benchmark's own, else {DEFAULT_CROP}, or the shortest side if less)",
        type=int, minimum=4, metavar="PX")
    bands: tuple[int, ...] | None = setting(
        "data", None, "bands of the files in the order of the channels, numbered from 1, as 4,3,2 (default: all)",
        type=numbers, metavar="LIST")
    rgb: tuple[int, ...] | None = setting(
        "data", None, "channels that the report shows as red, green and blue, from 1 (default: the first three)",
        type=numbers, metavar="LIST")
    nodata: float | None = setting("data", None, "stored value of pixels without data", type=float, metavar="V")
    alpha: str = setting("data", "band", "alpha channel of a file: a band, or a mask of data", choices=("band", "mask"))
    pages: str | None = setting(
        "data", None, "pages to read of a file with several pages (default: such a file is refused)",
        choices=("first", "each"))
    max_bytes: int = setting(
        "data", MAX_BYTES, "largest decoded size of an image, or of the part read at once, bytes", type=int, minimum=1)
    scale: float = setting(
        "data", 1.0, "factor by which images are resized when they are read", type=float, above=0, maximum=MAX_SCALE)
    flip: bool = setting("data", True, "mirror crops at random", switch=True)
    rotate: bool = setting("data", True, "turn crops by random quarter turns", switch=True)
    jitter: float = setting(
        "data", 0.0, "greatest relative change of brightness, contrast and colour", type=float, minimum=0)
    loss_mask: str = setting(
        "data", "none", "gt: the loss excludes pixels without ground truth. This uses labels", choices=LOSS_MASKS)

    width: int | None = setting("network", None, "channels of the network's first block", type=int, minimum=1)
    depth: int | None = setting(
        "network", None, "residual blocks of block C. A local feature sees 7 + 16 N pixels a side", type=int, minimum=0,
        maximum=MAX_DEPTH)
    dim: int | None = setting("network", None, "embedding dimension D", type=int, minimum=1)
    inputs: str = setting(
        "network", "rgb", "input of the network: the image, its grey, or the image and Sobel gradients", choices=INPUTS)

    position: str | None = setting(
        "network",
        None,
        "give the network the vertical position of the pixels. auto: if the appearance of the images depends on it",
        choices=("auto", "on", "off"),
    )

    backbone: str | None = setting(
        "network", None,
        "network to build on instead of the package's own: timm:NAME, or a function that returns a module",
        metavar="timm:NAME|MODULE:FUNCTION")
    backbone_weights: str | None = setting(
        "network", None,
        "weights of the backbone: .safetensors, or a state dict written by torch.save (default: the backbone's own)",
        metavar="FILE")
    freeze_backbone: bool = setting(
        "network", False,
        "do not train the backbone, and cache its features. The recipe is then features, without --flip and "
        "--rotate, unless other options are given", switch=True)
    local_index: tuple[int, ...] | None = setting(
        "network", None, "maps of the backbone that are the local features, as 4,10 (default: -1, the last)",
        type=numbers, metavar="LIST")
    global_index: int | None = setting(
        "network", None, "map of the backbone whose mean gives the global features (default: -1)", type=int,
        metavar="N")

    recipe: str = setting(
        "objective", "default",
        "objective with its settings: default, paper, iic, features (for a frozen backbone), or MODULE:CLASS, a "
        "class of your own", metavar="RECIPE")
    estimator: str | None = setting("objective", None, "estimator of the mutual information", choices=ESTIMATORS)
    negatives: str | None = setting("objective", None, "negative pairs of the jsd estimator", choices=NEGATIVES)
    num_negatives: int | str | None = setting(
        "objective", None, "other images that an image is compared with, or all", type=number_or("all"), minimum=1)
    temperature: float = setting("objective", 1.0, "tau, the factor of the similarities", type=float, above=0)
    balance: float | None = setting("objective", None, "weight of the class-usage term", type=float, minimum=0)
    appearance: float | None = setting(
        "objective", None,
        "weight of the appearance term: information of the class about colour and texture. 0 disables it", type=float,
        minimum=0)
    overcluster: float | None = setting(
        "objective", None,
        "classes of the network per class of the labels, which are merged. 1 disables over-clustering", type=float,
        minimum=1)
    displacement: int = setting(
        "objective", 2, "iic: largest shift between the two views, positions each way", type=int, minimum=0, maximum=10)
    marginal_weight: float = setting(
        "objective", 1.0, "iic: lambda, the weight of the entropies of the classes", type=float, minimum=0)
    batch_size: int | None = setting("objective", None, "images B of a step", type=int, minimum=2)
    positions: int | None = setting(
        "objective", None,
        "positions of an image, drawn anew in each step, at which the mutual information is estimated (default: all)",
        type=int, minimum=1)
    lr: float | None = setting("objective", None, "learning rate of AdamW", type=float, above=0)
    weight_decay: float = setting("objective", 1e-2, "weight decay of AdamW", type=float, minimum=0)
    warmup: int = setting("objective", 100, "steps over which the learning rate rises to --lr", type=int, minimum=0)

    average: float | None = setting(
        "labels", None,
        "decay of the averaged weights that make labels: a mean over about 1 / (1 - X) steps. 0 disables averaging",
        type=float, minimum=0, below=1)
    smooth: int | str | None = setting(
        "labels", None,
        "probabilities are averaged over 2 N + 1 positions a side. auto: N = 1 for noisy images, else 0",
        type=number_or(AUTO), minimum=0, maximum=MAX_RADIUS)
    refine: bool | None = setting(
        "labels", None, "refine labels at the pixels by the colours of each class", switch=True)

    steps: int | None = setting("run", None, f"training steps (default: {DEFAULT_STEPS})", type=int, minimum=1)
    epochs: int | None = setting("run", None, "passes over the images, instead of --steps", type=int, minimum=1)
    seed: int = setting("run", 0, "seed of all random numbers", type=int, minimum=0, maximum=MAX_SEED)
    log_every: int = setting("run", 50, "steps between lines of metrics.jsonl", type=int, minimum=1)
    eval_every: int = setting(
        "run", 500, "steps between evaluations where there are labels. 0: only at the end", type=int, minimum=0)
    checkpoint_every: int = setting("run", 250, "steps between checkpoints", type=int, minimum=1)
    device: str = setting("run", "auto", "device that trains", choices=("auto", "cpu", "cuda"))
    workers: int | None = setting(
        "run", None, "processes, or threads for a scene, that read images (default: by the size of the set)", type=int,
        minimum=0)

    precision: str = setting(
        "run", "auto",
        "dtype of the convolutions. auto: bfloat16 if a measurement finds it 1.5 times as fast",
        choices=("auto", "float32", "bfloat16"))
    cuda_graph: str = setting(
        "run", "auto",
        "replay the steps as one CUDA graph. auto: on a GPU if the steps can be captured, else a line says why not",
        choices=("auto", "on", "off"))
    compile: bool = setting("run", False, "torch.compile the loss: a minute at the start, faster steps", switch=True)
    accumulate: int = setting(
        "run", 1, "parts in which the images of a step go through the network", type=int, minimum=1)
    sync_batchnorm: bool = setting("run", True, "batch statistics over the images of all ranks (torchrun)", switch=True)
    negatives_across_ranks: bool = setting(
        "run", True, "compare images with those of other ranks (torchrun); same_position never does", switch=True)
    rank_timeout: float = setting(
        "run", 600.0, "seconds after which a rank that does not answer ends the run", type=float, above=0,
        maximum=MAX_TIMEOUT)
    skip_damaged: bool = setting(
        "run", False, "train on another image if one cannot be read, and name the damaged one once", switch=True)
    skip_nonfinite: bool = setting(
        "run", False, "skip the update of a step whose loss or gradient is NaN or infinite", switch=True)
    # fmt: on

    def __post_init__(self) -> None:
        for name in ("bands", "rgb", "local_index"):  # JSON gives lists
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))

    @classmethod
    def create(cls, given: dict) -> "Settings":
        """The settings that the user gave, with the recipe's defaults for the others.

        Raises:
            DataError: there is no data, a setting is out of its bounds, or two settings contradict
                each other.
        """
        if not given.get("data"):
            raise DataError("--data is missing: give the name of a set, a folder, an image or a list of images")
        _check_backbone(given)
        if given.get("backbone") or given.get("inputs", "rgb") != "rgb":
            if given.get("position") == "on":
                raise DataError("--position on needs the package's own network and --inputs rgb")
            given = {**given, "position": "off"}
        if given.get("freeze_backbone"):  # features of repeated crops are read from the cache
            given = {"flip": False, "rotate": False, "recipe": "features", **given}
        _check_length(given)
        name = given.get("recipe", cls.recipe)
        defaults = recipe_class(name).defaults
        try:
            checked({key: value for key, value in defaults.items() if value is not None})
        except DataError as error:
            raise DataError(f"--recipe {name}: defaults: {error}") from error
        settings = cls(**{**COMMON_DEFAULTS, **defaults, **given})
        if settings.steps is None and settings.epochs is None:
            settings = dataclasses.replace(settings, steps=DEFAULT_STEPS)
        settings._check()
        return settings

    def changed(self, given: dict) -> "Settings":
        """The settings of a resumed run.

        Raises:
            DataError: a setting outside CHANGEABLE differs from the recorded one, or is out of its
                bounds.
        """
        decided = ["precision"]  # when the run began
        if self.backbone or self.inputs != "rgb":
            decided.append("position")
        given = {name: value for name, value in given.items() if not (name in decided and value == "auto")}
        for name, value in given.items():
            if name not in CHANGEABLE and getattr(self, name) != value:
                raise DataError(
                    f"--resume: the run was started with {option(name)} {getattr(self, name)}, not {value}; "
                    "resume it with its own settings, or start a new run in another --out"
                )
        _check_length(given)
        replaced = {"epochs": {"steps": None}, "steps": {"epochs": None}}
        cleared = {k: v for name in given if name in replaced for k, v in replaced[name].items() if k not in given}
        settings = dataclasses.replace(self, **given | cleared)
        settings._check()
        return settings

    def resolve(self, train_set: ImageSet, labelled_set: ImageSet) -> "Settings":
        """The settings with classes, crop and steps from the data.

        Raises:
            DataError: the settings do not fit the data.
        """
        classes = self.classes or labelled_set.num_classes
        if classes is None:
            raise DataError(
                f"--classes is required: {self.data} has neither labels for its eval split nor a classes.txt"
            )
        if not 2 <= classes <= 256:
            raise DataError(f"--classes must be from 2 to 256, not {classes} (as {self.data} has it)")
        if self.loss_mask == "gt" and not train_set.has_labels:
            raise DataError(f"--loss-mask gt needs a label for every training image of {self.data}; leave it out")
        of_train, of_eval = ((s.channels, s.dtype == "uint8") for s in (train_set, labelled_set))
        if labelled_set.has_labels and of_eval != of_train:
            raise DataError(
                f"{self.data}: images of the eval split have {labelled_set.channels} channels of "
                f"{labelled_set.dtype}, those of the train split {train_set.channels} of {train_set.dtype}; they must "
                "agree"
            )
        crop = self.crop or train_set.crop_side or min(DEFAULT_CROP, train_set.shortest_side)
        if small := train_set.num_smaller(crop):
            logger.warning(
                "%d of %d training images are smaller than the crop of %d px: they are padded, and padding does not "
                "count", small, len(train_set), crop,
            )  # fmt: skip
        if self.rgb and (len(self.rgb) not in (1, 3) or min(self.rgb) < 1 or max(self.rgb) > train_set.channels):
            raise DataError(f"--rgb takes 1 or 3 channels from 1 to {train_set.channels}, not {list(self.rgb)}")
        if train_set.channels > MAX_COLOURS and (self.appearance or self.refine):
            logger.warning(
                "%d bands: the appearance term and the refinement see %d means of neighbouring bands; the network "
                "sees every band", train_set.channels, MAX_COLOURS,
            )  # fmt: skip
        least = self.least_batch
        if len(train_set) < least:
            found = f"{self.data} has {len(train_set)}"
            if not self.compares_images:
                raise DataError(f"{found} training images; ranks and --accumulate need a batch of {least} at least")
            raise DataError(f"{found} training images; negatives need a batch of {least} at least")
        steps = self.steps or self.epochs * steps_per_epoch(len(train_set), self.batch_size, least)
        return dataclasses.replace(self, classes=classes, crop=crop, steps=steps)

    @property
    def reading(self) -> ReadOptions:
        """The options of reading image files."""
        return ReadOptions(self.bands, self.nodata, self.alpha, self.pages, self.max_bytes)

    def open(self, split: str) -> ImageSet:
        """A split of the data."""
        return open_set(self.data, split, num_classes=self.classes, scale=self.scale, options=self.reading)

    @property
    def compares_images(self) -> bool:
        """Whether a step needs negatives (`Recipe.compares_images`)."""
        return recipe_class(self.recipe).compares_images

    @property
    def least_batch(self) -> int:
        """The smallest number of images of a step: each of its parts needs negatives, and each rank
        needs an image.
        """
        least = self.num_negatives + 1 if isinstance(self.num_negatives, int) else 2
        parts = self.accumulate * ranks()
        if not self.compares_images:
            return parts
        if self.negatives_across_ranks and across_ranks(self.estimator, self.negatives):
            return max(self.accumulate * least, parts)
        return parts * least

    def _check(self) -> None:
        """Raise DataError for a setting out of its bounds."""
        for one in dataclasses.fields(self):
            _check_bounds(one.name, getattr(self, one.name), one.metadata)
        if isinstance(self.num_negatives, int) and self.num_negatives >= self.batch_size:
            most = self.batch_size - 1
            raise DataError(
                f"--num-negatives must be 'all' or from 1 to {most} (--batch-size less one), not {self.num_negatives}"
            )
        if self.batch_size < self.least_batch:
            negatives = f" and --num-negatives {self.num_negatives}" if self.compares_images else ""
            raise DataError(
                f"--batch-size must be at least {self.least_batch} for {ranks()} ranks, --accumulate {self.accumulate}"
                f"{negatives}, not {self.batch_size}"
            )


def _check_length(given: dict[str, Any]) -> None:
    """Raise DataError if both lengths of a run are given."""
    if "steps" in given and "epochs" in given:
        raise DataError("--steps and --epochs exclude each other; give one of them")


def _check_bounds(name: str, value: Any, how: Mapping[str, Any]) -> None:
    """Raise DataError for a number that is not finite or out of the bounds in the metadata `how`."""
    if value is None or isinstance(value, (str, bool, tuple)):
        return
    broken = [f"{words} {how[key]}" for key, words, holds in BOUNDS if key in how and not holds(value, how[key])]
    if broken or not math.isfinite(value):
        raise DataError(f"{option(name)} must be {' and '.join(broken) or 'finite'}, not {value}")


def _check_backbone(given: dict) -> None:
    """Raise DataError for settings that need a backbone, or that need the package's own network."""
    if given.get("backbone") is None:
        for name in ("backbone_weights", "freeze_backbone", "local_index", "global_index"):
            if given.get(name) not in (None, False):
                raise DataError(f"{option(name)} needs --backbone timm:NAME or --backbone MODULE:FUNCTION")
        return
    if not str(given["backbone"]).partition(":")[2]:
        raise DataError(f"--backbone must be timm:NAME or MODULE:FUNCTION, not {given['backbone']!r}")
    for name in ("width", "depth", "inputs"):
        if name in given:
            raise DataError(f"{option(name)} belongs to the package's own network; leave it out with --backbone")


def checked(given: dict[str, Any]) -> dict[str, Any]:
    """Settings given in Python, converted as the command line converts them.

    Raises:
        DataError: there is no setting of that name, it does not take the value, or the value is out
            of its bounds.
    """
    fields = {field.name: field.metadata for field in dataclasses.fields(Settings)}
    found = {}
    for name, value in given.items():
        if name not in fields:
            near = difflib.get_close_matches(name, fields, 1)
            hint = f"; did you mean {near[0]}?" if near else " (see infoseg train --help)"
            raise DataError(f"there is no setting {name!r}{hint}")
        how = fields[name]
        text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        kind = how.get("type", str)
        try:
            found[name] = {"True": True, "False": False}[text] if how.get("switch") else kind(text)
        except KeyError:
            raise DataError(f"{option(name)} must be True or False, not {value!r}") from None
        except ValueError:
            raise DataError(f"{option(name)} takes a {'whole ' * (kind is int)}number, not {value!r}") from None
        except argparse.ArgumentTypeError as error:
            raise DataError(f"{option(name)} {error}") from None
        if "choices" in how and found[name] not in how["choices"]:
            raise DataError(f"{option(name)} must be {' or '.join(how['choices'])}, not {value!r}")
        _check_bounds(name, found[name], how)
    return found


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


def pick_device(name: str) -> torch.device:
    """The device for "auto", "cpu" or "cuda".

    Raises:
        DataError: there is no CUDA device.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise DataError("--device cuda: torch sees no CUDA device here; use --device cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")
