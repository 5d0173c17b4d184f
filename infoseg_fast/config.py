"""What a training run is told: every setting, its default and its meaning, once, for the command line and the RUN."""

import dataclasses
from dataclasses import dataclass, field

from .errors import DataError
from .model import INPUTS, MAX_DEPTH
from .ops.mutual_information_loss import ESTIMATORS, NEGATIVES
from .recipe.appearance import RESOLUTION
from .recipe.refinement import MAX_PASSES, PASSES
from .segmenter import MAX_SMOOTH

AUTO = "auto"
# Settings that a recipe fixes unless the user gives them. "paper" is the objective of the InfoSeg paper, whose text
# leaves the negatives, the temperature, the sizes and the optimiser's settings open; "default" is what trials on real
# images chose (docs/recipe.md).
RECIPES = {
    "default": {
        "estimator": "infonce", "num_negatives": "all", "balance": 4.0, "appearance": 10.0, "smooth": AUTO,
        "width": 16, "depth": 0, "dim": 32, "batch_size": 32, "lr": 3e-3, "average": 0.99,
        "resolution": 0.08, "overcluster": 3.0, "refine": True, "passes": AUTO,
    },
    "paper": {
        "estimator": "jsd", "num_negatives": 1, "balance": 0.0, "appearance": 0.0, "smooth": 0,
        "width": 64, "depth": 2, "dim": 512, "batch_size": 16, "lr": 1e-3, "average": 0.0,
        "resolution": RESOLUTION, "overcluster": 1.0, "refine": False, "passes": 0,
    },
}  # fmt: skip
DEFAULT_STEPS = 800
LOSS_MASKS = ("none", "gt")


def setting(default, help: str, **argument):
    """A field with what the command line says of it and takes for it."""
    return field(default=default, metadata={"help": help, **argument})


def count_or_all(text: str) -> int | str:
    return text if text == "all" else int(text)


def number_or_auto(text: str) -> int | str:
    return text if text == AUTO else int(text)


@dataclass
class TrainConfig:
    """Settings of a run. None means: decided from the data or the recipe, and then recorded."""

    data: str = setting("", "a set's name or a folder with images/")
    classes: int | None = setting(None, "number of classes K (default: as many as the ground truth has)", type=int)
    steps: int | None = setting(None, f"training steps (default: {DEFAULT_STEPS})", type=int)
    epochs: int | None = setting(None, "passes over the images, instead of --steps", type=int)
    batch_size: int | None = setting(None, "images B of a step (default: the recipe's)", type=int)
    seed: int = setting(0, "seed of everything random", type=int)
    starts: int = setting(
        1,
        "initial networks, of which the one is trained whose classes are worth most after 100 steps, or where there is "
        "no second network, whose loss is lowest",
        type=int,
    )
    overcluster: float | None = setting(
        None,
        "a second network has X times the classes, which are taken together at the end; labels are of those that tell "
        "more; 1: none (default: the recipe's)",
        type=float,
    )
    crop: int | None = setting(
        None,
        "side of the training crops in pixels (default: a benchmark's own, else 128, or the shortest side if less)",
        type=int,
    )
    scale: float = setting(1.0, "factor by which images are resized when read", type=float)
    inputs: str = setting("rgb", "the images as they are, their grey, or with Sobel gradients too", choices=INPUTS)
    loss_mask: str = setting(
        "none", "gt leaves pixels without ground truth out of the loss, which is a use of labels", choices=LOSS_MASKS
    )
    width: int | None = setting(None, "channels of the network's first block (default: the recipe's)", type=int)
    depth: int | None = setting(
        None,
        "residual blocks of block C: a local feature sees 7 + 16 N pixels a side (default: the recipe's)",
        type=int,
    )
    dim: int | None = setting(None, "embedding dimension D (default: the recipe's)", type=int)
    recipe: str = setting("default", "the objective's settings", choices=tuple(RECIPES))
    estimator: str | None = setting(None, "of the mutual information (default: the recipe's)", choices=ESTIMATORS)
    negatives: str | None = setting(None, "of the jsd estimator (default: same_position)", choices=NEGATIVES)
    num_negatives: int | str | None = setting(
        None, "other images an image is compared with, or all (default: the recipe's)", type=count_or_all
    )
    balance: float | None = setting(None, "weight of the class-usage term (default: the recipe's)", type=float)
    appearance: float | None = setting(
        None, "weight of what the classes tell of colour and texture (default: the recipe's)", type=float
    )
    resolution: float | None = setting(
        None,
        f"smallest difference of appearance that counts in the end, in standard deviations; {RESOLUTION} until step "
        "500, from there to step 550 it changes (default: the recipe's)",
        type=float,
    )
    smooth: int | str | None = setting(
        None,
        "probabilities are averaged over 2 N + 1 positions each way; auto: N = 1 for images that are grainy at the "
        "scale of a position, else 0 (default: the recipe's)",
        type=number_or_auto,
    )
    refine: bool | None = setting(
        None,
        "labels follow the pixels' colours, by what the pixels of each class look like (default: the recipe's)",
        switch=True,
    )
    passes: int | None = setting(
        None,
        f"how often what the pixels around tell becomes part of what --refine begins with; auto: {PASSES} times where "
        "the pixels' colours tell classes apart, else 0 (default: the recipe's)",
        type=number_or_auto,
    )
    temperature: float = setting(1.0, "tau, which multiplies the similarities", type=float)
    lr: float | None = setting(None, "learning rate of AdamW (default: the recipe's)", type=float)
    weight_decay: float = setting(1e-2, "weight decay of AdamW", type=float)
    warmup: int = setting(100, "steps over which the learning rate rises", type=int)
    average: float | None = setting(
        None,
        "labels are made by weights averaged over about 1 / (1 - X) steps; 0: by the last ones (default: the recipe's)",
        type=float,
    )
    flip: bool = setting(True, "random flips", switch=True)
    rotate: bool = setting(True, "random quarter turns", switch=True)
    jitter: float = setting(0.0, "greatest relative change of brightness, contrast and colour", type=float)
    log_every: int = setting(50, "steps between lines of metrics.jsonl", type=int)
    eval_every: int = setting(500, "steps between evaluations, if there are labels (0: only at the end)", type=int)
    checkpoint_every: int = setting(250, "steps between checkpoints", type=int)
    device: str = setting("auto", "where to train", choices=("auto", "cpu", "cuda"))
    workers: int | None = setting(None, "processes that read images (default: by the set's size)", type=int)

    def complete(self) -> None:
        """Fill in what the recipe decides, and check every number."""
        for name, value in ({"negatives": NEGATIVES[0]} | RECIPES[self.recipe]).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.steps is not None and self.epochs is not None:
            raise DataError("--steps and --epochs are two ways to say one thing; give one of them")
        if self.steps is None and self.epochs is None:
            self.steps = DEFAULT_STEPS
        least = {
            "classes": 2, "steps": 1, "epochs": 1, "batch_size": 2, "seed": 0, "starts": 1, "overcluster": 1,
            "crop": 4, "width": 1, "depth": 0, "dim": 1, "balance": 0, "appearance": 0, "smooth": 0, "passes": 0,
            "weight_decay": 0, "warmup": 0, "average": 0, "jitter": 0, "log_every": 1, "eval_every": 0,
            "checkpoint_every": 1, "workers": 0,
        }  # fmt: skip
        for name, bound in least.items():
            value = getattr(self, name)
            if value not in (None, AUTO) and not bound <= value < float("inf"):
                raise DataError(f"{option(name)} must be at least {bound}, not {value}")
        for name in ("scale", "temperature", "lr", "resolution"):
            if not 0 < getattr(self, name) < float("inf"):
                raise DataError(f"{option(name)} must be above 0, not {getattr(self, name)}")
        for name, most in (("depth", MAX_DEPTH), ("smooth", MAX_SMOOTH), ("passes", MAX_PASSES)):
            if getattr(self, name) != AUTO and getattr(self, name) > most:
                raise DataError(f"{option(name)} must be at most {most}, not {getattr(self, name)}")
        if self.average >= 1:
            raise DataError(f"--average must be below 1, not {self.average}")
        if self.classes is not None and self.classes > 256:
            raise DataError(f"--classes must be from 2 to 256, not {self.classes}")
        n = self.num_negatives
        if n != "all" and not 1 <= n < self.batch_size:
            most = self.batch_size - 1
            raise DataError(f"--num-negatives must be 'all' or from 1 to {most} (--batch-size less one), not {n}")


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


# What a resumed run may change: how long it goes on and how it is watched, not what it computes.
CHANGEABLE = ("steps", "epochs", "log_every", "eval_every", "checkpoint_every", "device", "workers")
# What runs from before a setting existed were trained with, where that is not the recipe's.
FORMERLY = {"resolution": RESOLUTION, "passes": 0}


def resumed(stored: dict, given: dict) -> TrainConfig:
    """The configuration of a run on disk, with what was `given` anew; only CHANGEABLE settings may differ."""
    known = {f.name for f in dataclasses.fields(TrainConfig)}
    config = TrainConfig(**FORMERLY | {name: value for name, value in stored.items() if name in known})
    for name, value in given.items():
        if name not in CHANGEABLE and getattr(config, name) != value:
            raise DataError(
                f"--resume: the run was started with {option(name)} {getattr(config, name)}, not {value}; "
                "resume it with its own settings, or start a new run in another --out"
            )
        setattr(config, name, value)
    if "epochs" in given:
        config.steps = None
    elif "steps" in given:
        config.epochs = None
    return config
