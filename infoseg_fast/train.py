"""The training loop: images in, a segmenter out.

Everything random is a function of the seed and the step, and all that a step depends on is in the checkpoint, so a run
killed at any moment goes on from its last checkpoint to the same bits.
"""

import dataclasses
import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from . import augment, checkpoint, report
from .config import AUTO, TrainConfig
from .data import ImageSet, for_training, open_set
from .data.base import InMemory
from .data.crops import Batch, CropSampler, channel_statistics, crop_loader, held_in_memory, steps_per_epoch
from .data.base import WHITE
from .errors import DataError
from .model import STRIDE, padded, padded_side
from .recipe.appearance import RESOLUTION, appearance_statistics, local_appearance
from .recipe.learner import Learner
from .recipe.merging import CLEARLY, Sums, merged, sums_of, told
from .recipe.refinement import PASSES, TELLING, Refinement, class_colours, fitted, pixel_colours, uncertainty
from .recipe.smoothing import smoothing_radius
from .run_folder import METRICS, cut_metrics, settings_of, write_settings
from .scores.evaluate import add_training, as_text, evaluate
from .segmenter import Segmenter, record_evaluation

logger = logging.getLogger("infoseg_fast")

DEFAULT_CROP = 128  # pixels
SCORES = ("pixel_accuracy", "mean_iou", "nmi", "majority_accuracy")  # of an evaluation, in metrics.jsonl
MAX_WORKERS = 4
TRIAL_STEPS = 100  # of each of several starts; later the best of them tell no better (docs/recipe.md)
FIRST = 128  # crops, rounded up to whole batches, by which partitions are judged and the colours of classes told
STARTS_APART = 1_000_003  # their seeds; generators on the CPU take 32 bits


def train(given: dict, out: Path, resume: bool = False) -> dict | None:
    """Train, evaluate and report into the folder `out`.

    Args:
        given: settings of TrainConfig that differ from the defaults (of the run, when it is resumed).
        out: the RUN; it must not exist, unless `resume`, which goes on where its last checkpoint is.

    Returns:
        The scores of the last step on the eval split; None without labels, or when the run was finished already.

    Raises:
        DataError: the settings, the data or the run are not as they must be; nothing is half written.
    """
    config, dataset = settings_of(given, out, resume)
    device = pick_device(config.device)
    train_set, eval_set, fingerprint = _open_sets(config)
    if dataset not in (None, fingerprint):
        raise DataError(f"--resume: the images of {config.data} are no longer those that {out} was started with")
    state = checkpoint.load(out) if resume else None
    if state is not None and state["step"] >= config.steps and (out / report.REPORT).is_file():
        print(f"{out} is finished: {state['step']} steps are done (more --steps go further)")
        return None
    train_set = held_in_memory(train_set)  # reads every image of a small set before anything is written
    start = best_start(config, train_set, device) if state is None and config.starts > 1 else 0
    run = Run(config, train_set, device, state, start)
    if state is not None:
        print(f"resuming {out} at step {run.step}")
    write_settings(config, fingerprint, out)
    cut_metrics(out / METRICS, run.step)
    with SummaryWriter(str(out / "tensorboard"), purge_step=run.step + 1) as board:
        run.loop(out, eval_set, board)
    return _finish(run, out, eval_set)


class Choice(NamedTuple):
    """Whose classes labels are of: a learner's own, or groups of them."""

    learner: Learner
    groups: list[list[int]] | None


class Run:
    """Networks in training, with everything their next step depends on; `start` is the initial network's number.

    `learner` has as many classes as are wanted. `finer`, where the settings ask for it, has more and is trained on the
    same batches; labels are of its classes, taken together, where these tell more (`choice`).
    """

    def __init__(
        self, config: TrainConfig, images: ImageSet, device: torch.device, state: dict | None, start: int = 0
    ) -> None:
        self.config, self.images, self.device = config, images, device
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        normalization = channel_statistics(images) if state is None else None
        states = [None, None] if state is None else learner_states(state)

        def learner(config: TrainConfig, classes: int, seed: int, state: dict | None) -> Learner:
            return Learner(config, classes, images.channels, device, seed, normalization=normalization, state=state)

        self.learner, self.finer = learner(config, config.classes, config.seed + STARTS_APART * start, states[0]), None
        finer = finer_classes(config)
        if finer and len(states) > 1:
            # What its classes are worth together is told with this resolution (`merging`).
            self.finer = learner(dataclasses.replace(config, resolution=RESOLUTION), finer, config.seed, states[1])
        # Sums of the loss since the last log line and the last checkpoint, on the device: no step waits for a number.
        self.step, self.best_loss, self.scores = 0, float("inf"), None
        self.logged, self.saved = Mean(device), Mean(device)
        # By which partitions are judged and colours told, and their `appearance_statistics`: read when first needed.
        self.first_crops: list[Batch] | None = None
        self.seen: list[Tensor] | None = None
        self.chosen: tuple[int, Choice] | None = None  # and after which step
        if state is not None:
            self.step, self.best_loss = state["step"], state["best_loss"]
            self.logged, self.saved = Mean(device, *state["logged"]), Mean(device, *state["saved"])

    def learners(self) -> list[Learner]:
        return [self.learner] if self.finer is None else [self.learner, self.finer]

    def state(self) -> dict:
        """What a checkpoint holds: nothing but tensors, numbers and text."""
        (chosen, groups), refinement = self.choice(), self.refinement()
        return {
            "step": self.step,
            "best_loss": self.best_loss,
            "logged": self.logged.parts(),
            "saved": self.saved.parts(),
            "learners": [learner.state() for learner in self.learners()],
            # What labels are made with.
            "model": chosen.average.state_dict(),
            "network": chosen.network,
            "prediction": {
                "temperature": self.config.temperature,
                "scale": self.config.scale,
                "raw_scale": self.images.raw_scale,
                "smooth": self.config.smooth,
                "class_names": self.images.classes,
                "groups": groups,
                "refinement": refinement and refinement.to("cpu")._asdict(),
            },
        }

    def segmenter(self) -> Segmenter:
        return self._segmenter(*self.choice(), self.refinement())

    def _segmenter(
        self, learner: Learner, groups: list[list[int]] | None, refinement: Refinement | None = None
    ) -> Segmenter:
        config = self.config
        return Segmenter(
            learner.average,
            config.temperature,
            config.scale,
            self.images.classes,
            smooth=config.smooth,
            refinement=refinement,
            groups=groups,
        )

    def _first_crops(self) -> list[Batch]:
        if self.first_crops is None:
            config = self.config
            least = least_batch(config)
            steps = min(steps_per_epoch(len(self.images), config.batch_size, least), -(-FIRST // config.batch_size))
            sampler = CropSampler(len(self.images), config.batch_size, least, config.seed, 0, steps)
            loader = crop_loader(self.images, config.crop, sampler, 0, config.loss_mask == "gt")
            self.first_crops = [sound(batch) for batch in loader]
        return self.first_crops

    def statistics_of(self, batches: list[Batch]) -> list[Tensor]:
        """`appearance_statistics` of batches as of one, since what is seen is scaled by its deviation over all."""
        seen, masks = [], []
        for batch in batches:
            images, mask = self.on_device(batch)
            seen.append(local_appearance(padded(images), positions(images)))
            masks.append(mask)
        mask = None
        if any(one is not None for one in masks):  # of some batches every position counts
            everywhere = [torch.ones_like(x[:, 0], dtype=torch.bool) for x in seen]
            mask = torch.cat([a if one is None else one for one, a in zip(masks, everywhere, strict=True)])
        return list(appearance_statistics(torch.cat(seen), mask, self.config.smooth).split([len(x) for x in seen]))

    @torch.no_grad()
    def _assigned(self, learner: Learner, groups: list[list[int]] | None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Images, probabilities and mask of the first crops, a batch at a time."""
        segmenter, training = self._segmenter(learner, groups), learner.average.training
        learner.average.eval()
        try:
            for batch in self._first_crops():
                images, mask = self.on_device(batch)
                yield images, segmenter.assign(images), mask
        finally:
            learner.average.train(training)

    def choice(self) -> Choice:
        """Of which classes labels are after this step: those of as many as are wanted, or more, taken together."""
        if self.finer is None:
            return Choice(self.learner, None)
        if self.chosen is None or self.chosen[0] != self.step:
            own, finer = self.sums(self.learner), self.sums(self.finer)
            chosen = Choice(self.learner, None)
            if all(torch.isfinite(x).all() for sums in (own, finer) for x in sums):
                groups, whole = merged(finer, self.config.classes), told(finer)
                if told(finer.grouped(groups)).worth(whole) > told(own).worth(whole) + CLEARLY:
                    chosen = Choice(self.finer, groups)
            self.chosen = self.step, chosen
        return self.chosen[1]

    @torch.no_grad()
    def sums(self, learner: Learner) -> Sums:
        """Those of the learner's classes over the first crops."""
        if self.seen is None:
            self.seen = self.statistics_of(self._first_crops())
        parts = zip(self._assigned(learner, None), self.seen, strict=True)
        found = [sums_of(probs, statistics, mask) for (_, probs, mask), statistics in parts]
        return Sums(*(sum(x).cpu() for x in zip(*found, strict=True)))

    @torch.no_grad()
    def refinement(self) -> Refinement | None:
        """What the pixels of each class look like in the first crops; None where labels do not use it, or no pixel of
        these crops counts."""
        if not self.config.refine:
            return None
        smooth, passes = self.config.smooth, self.config.passes
        choice = self.choice()

        def over_crops(f: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> Tensor:
            return sum(f(probs, padded(images), mask) for images, probs, mask in self._assigned(*choice))

        moments = over_crops(lambda *crops: class_colours(*crops, smooth))
        if moments[:, 0, 0].sum() == 0:
            return None
        found = fitted(moments, smooth)
        if passes == AUTO:
            before, after = over_crops(lambda *crops: uncertainty(*crops, found)).tolist()
            passes = PASSES if after <= (1 - TELLING) * before else 0
        found = found._replace(passes=passes)
        if passes:
            # Anew, with what the pixels and those around them tell: their positions' probabilities blur every edge.
            moments = over_crops(lambda *crops: pixel_colours(*crops, found))
            found = fitted(moments, smooth)._replace(passes=passes)
        return found

    def batches(self, steps: int) -> tuple[CropSampler, Iterable[Batch | DataError]]:
        """From the next step to the last of so many, and what draws them."""
        config = self.config
        sampler = CropSampler(len(self.images), config.batch_size, least_batch(config), config.seed, self.step, steps)
        return sampler, crop_loader(self.images, config.crop, sampler, self._workers(), config.loss_mask == "gt")

    def trial(self, steps: int) -> float:
        """Train so many steps from the first; the mean loss of their second half, infinite where it is not finite."""
        mean = Mean(self.device)
        for batch in self.batches(steps)[1]:
            loss = self.train_step(sound(batch))[0]
            self.step += 1
            if 2 * self.step > steps:
                mean.add(loss)
        return mean.value() if math.isfinite(mean.value()) else math.inf

    def loop(self, out: Path, eval_set: ImageSet | None, board: SummaryWriter) -> None:
        """All steps that are left, with their log lines, evaluations and checkpoints."""
        config = self.config
        sampler, loader = self.batches(config.steps)
        for learner in self.learners():
            learner.model.train()
        seconds, seen, began = 0.0, 0, time.perf_counter()  # of training, without evaluations and checkpoints
        with tqdm(total=config.steps, initial=self.step, unit="step", desc="training", disable=None) as bar:
            for batch in loader:
                loss, features, global_features = self.train_step(sound(batch))
                self.step, seen = self.step + 1, seen + len(batch.images)
                self.logged.add(loss)
                self.saved.add(loss)
                bar.update()
                last = self.step == config.steps
                due = last or (config.eval_every and self.step % config.eval_every == 0)
                if due or self.step % config.log_every == 0:
                    value = self.require_finite(self.logged.value())
                    seconds += time.perf_counter() - began
                    row = {
                        "step": self.step,
                        "loss": value,
                        "epoch": self.step / sampler.steps_per_epoch,
                        "classes_in_use": self.learner.classes_in_use(features, global_features),
                        "lr": self.learner.optimizer.param_groups[0]["lr"],
                        "images_per_s": seen / seconds,
                    }
                    self.logged = Mean(self.device)
                    if due and eval_set is not None:
                        self.scores = evaluate(self.segmenter(), eval_set, self.device)
                        row |= {name: self.scores[name] for name in SCORES}
                    with open(out / METRICS, "a") as file:
                        file.write(json.dumps(row) + "\n")
                    for name, value in row.items():
                        board.add_scalar(name, value, self.step)
                    shown = {"loss": f"{row['loss']:.4f}", "images/s": f"{row['images_per_s']:.0f}"}
                    if "pixel_accuracy" in row:
                        shown["accuracy"] = f"{row['pixel_accuracy']:.3f}"
                    bar.set_postfix(shown)
                    began = time.perf_counter()
                if last or self.step % config.checkpoint_every == 0:
                    seconds += time.perf_counter() - began
                    self.save(out)
                    began = time.perf_counter()

    def train_step(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """One step on a batch of crops: `learner`'s loss and both kinds of features, detached, still on the device."""
        config, generator = self.config, torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        images, valid = self._pixels(batch)
        images, valid = augment.flip_and_rotate(images, valid, generator, config.flip, config.rotate)
        images = augment.jitter(images, config.jitter, generator)
        mask = valid_positions(valid, positions(images))
        own = self.learner.step(self.step, images, mask)
        if self.finer is not None:
            self.finer.step(self.step, images, mask)
        return own

    def _pixels(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Images float [B, c, crop, crop] in [0, 1], and which pixels count, on the device."""
        images = batch.images.to(self.device, non_blocking=True).float() / WHITE[self.images.dtype]
        return images, None if batch.valid is None else batch.valid.to(self.device, non_blocking=True)

    def on_device(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Images as they are, and which positions count."""
        images, valid = self._pixels(batch)
        return images, valid_positions(valid, positions(images))

    def save(self, out: Path) -> None:
        """Write a checkpoint, which is the best one when no mean loss between two checkpoints was lower."""
        mean = self.require_finite(self.saved.value())
        is_best, self.best_loss = mean < self.best_loss, min(mean, self.best_loss)
        self.saved = Mean(self.device)
        checkpoint.save(out, self.state(), is_best)

    def require_finite(self, loss: float) -> float:
        if abs(loss) < float("inf"):
            return loss
        raise DataError(
            f"the training loss became {loss} by step {self.step}; the last checkpoint is from before that. "
            "Try a lower --lr or a longer --warmup in a new run"
        )

    def _workers(self) -> int:
        if self.config.workers is not None:
            return self.config.workers
        return (
            0 if isinstance(self.images, InMemory) or self.images.in_process else min(MAX_WORKERS, os.cpu_count() or 1)
        )


def best_start(config: TrainConfig, images: ImageSet, device: torch.device) -> int:
    """The number of the start whose trial ends best, as k-means takes the best of several.

    Where there is a finer network, by what the start's classes are worth as a share of what the finer network's tell
    after as many steps; else by the loss of the trial's second half.
    """
    alone, finer, whole = dataclasses.replace(config, overcluster=1.0), finer_classes(config), None
    marks = []
    with tqdm(total=config.starts + bool(finer), unit="start", desc="starts", disable=None, leave=False) as bar:

        def tried(config: TrainConfig, start: int) -> tuple[Run, float]:
            run = Run(config, images, device, None, start)
            loss = run.trial(min(TRIAL_STEPS, config.steps))
            bar.update()
            return run, loss

        if finer:
            run, _ = tried(dataclasses.replace(alone, classes=finer), 0)
            whole = told(run.sums(run.learner))
        for start in range(config.starts):
            run, mark = tried(alone, start)
            if whole is not None and math.isfinite(mark):
                mark = -told(run.sums(run.learner)).worth(whole).item()
            marks.append(mark if math.isfinite(mark) else math.inf)
    best = min(range(config.starts), key=marks.__getitem__)
    what, sign = ("losses", 1) if whole is None else ("worths", -1)
    print(f"start {best + 1} is trained; {what} of the starts: {' '.join(f'{sign * x:.4f}' for x in marks)}")
    return best


def finer_classes(config: TrainConfig) -> int:
    """Classes of the finer network; 0: there is none."""
    classes = min(256, round(config.overcluster * config.classes))
    return classes if config.appearance and classes > config.classes else 0


def learner_states(state: dict) -> list[dict]:
    """Of a checkpoint; one from before there were finer networks, or averaged weights, has a single one."""
    if "learners" in state:
        return state["learners"]
    average = state["model"]
    return [{"trained": state.get("trained", average), "average": average, "optimizer": state["optimizer"]}]


def sound(batch: Batch | DataError) -> Batch:
    """The batch, unless reading it failed."""
    if isinstance(batch, DataError):
        raise batch
    return batch


class Mean:
    """A running mean whose sum stays on the device until it is asked for."""

    def __init__(self, device: torch.device, total: float = 0.0, count: int = 0) -> None:
        self.total, self.count = torch.tensor(total, dtype=torch.float64, device=device), count

    def add(self, value: Tensor) -> None:
        self.total += value
        self.count += 1

    def value(self) -> float:
        return self.total.item() / self.count

    def parts(self) -> tuple[float, int]:
        return self.total.item(), self.count


def positions(images: Tensor) -> tuple[int, int]:
    """Size (h, w) of the features of images."""
    return padded_side(images.shape[2]) // STRIDE, padded_side(images.shape[3]) // STRIDE


def valid_positions(valid: Tensor | None, size: tuple[int, int]) -> Tensor | None:
    """Positions [B, h, w] whose pixels of valid [B, rows, columns] all count; what the network padded does not."""
    if valid is None:
        return None
    bottom, right = (STRIDE * n - m for n, m in zip(size, valid.shape[1:], strict=True))
    return F.max_pool2d(F.pad((~valid).float(), (0, right, 0, bottom), value=1.0), STRIDE) == 0


def least_batch(config: TrainConfig) -> int:
    """The fewest images that a batch must hold for its negatives."""
    return 2 if config.num_negatives == "all" else config.num_negatives + 1


def pick_device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise DataError("--device cuda: torch sees no CUDA device here; use --device cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def _open_sets(config: TrainConfig) -> tuple[ImageSet, ImageSet | None, dict]:
    """The train split, the eval split if it has labels, and what tells this data from other; completes the settings."""
    train_set = for_training(open_set(config.data, "train", num_classes=config.classes, scale=config.scale))
    eval_set = open_set(config.data, "eval", num_classes=config.classes, scale=config.scale)
    config.classes = config.classes or eval_set.num_classes
    if config.classes is None:
        raise DataError(f"--classes is required: {config.data} has neither labels for its eval split nor a classes.txt")
    if not 2 <= config.classes <= 256:
        raise DataError(f"--classes must be from 2 to 256, not {config.classes} (as {config.data} has it)")
    config.crop = config.crop or train_set.crop_side or min(DEFAULT_CROP, train_set.shortest_side)
    if config.loss_mask == "gt" and not train_set.has_labels:
        raise DataError(f"--loss-mask gt needs a label for every training image of {config.data}; leave it out")
    small = sum(min(train_set.size(i)) < config.crop for i in range(len(train_set)))
    if small:
        logger.warning(
            "%d of %d training images are smaller than the crop of %d px: they are padded, and padding does not count",
            small, len(train_set), config.crop,
        )  # fmt: skip
    least = least_batch(config)
    if len(train_set) < least:
        raise DataError(
            f"{config.data} has {len(train_set)} training images; negatives need a batch of {least} at least"
        )
    if config.steps is None:
        config.steps = config.epochs * steps_per_epoch(len(train_set), config.batch_size, least)
    if config.smooth == AUTO:
        config.smooth = smoothing_radius(train_set)
    digest = hashlib.sha256(repr((train_set.stems, train_set.sizes)).encode()).hexdigest()
    if eval_set.has_labels:
        eval_set.check_labels()
    return train_set, eval_set if eval_set.has_labels else None, {"images": len(train_set), "sha256": digest}


def _finish(run: Run, out: Path, eval_set: ImageSet | None) -> dict | None:
    """Score the last step, write the report, and say where everything is."""
    segmenter, scores = run.segmenter(), run.scores
    if run.finer is not None:
        more, groups = run.finer.model.num_classes, run.choice().groups
        made = f"{more} classes, taken together" if groups else f"as many classes as are wanted, not of {more}"
        print(f"labels are of a network of {made}")
    if eval_set is not None:
        scores = scores or evaluate(segmenter, eval_set, run.device)
        add_training(scores, run.config.loss_mask, checkpoint.LAST)
        record_evaluation(out, checkpoint.LAST, run.step, "eval", scores)
        segmenter.mapping = scores["mapping"]
        print(f"after {run.step} steps, eval split of {run.config.data}:\n{as_text(scores, run.images.classes)}")
    report.write(out, segmenter, eval_set or run.images, run.device)
    print(f"report: {out / report.REPORT}")
    return scores
