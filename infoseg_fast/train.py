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
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from . import augment, checkpoint, report
from .appearance import appearance_statistics, appearance_term, local_appearance
from .averaging import add_to_average, averaged
from .config import AUTO, TrainConfig
from .data import ImageSet, open_set
from .data.base import InMemory
from .data.crops import Batch, CropSampler, channel_statistics, crop_loader, held_in_memory, steps_per_epoch
from .data.images import WHITE
from .elimination import drop_class, least_telling
from .errors import DataError
from .evaluate import add_training, as_text, evaluate
from .loss import InfoSegLoss
from .model import STRIDE, InfoSegNet, padded
from .ops import assign
from .refinement import Refinement, class_colours, fitted
from .run_folder import METRICS, cut_metrics, settings_of, write_settings
from .segmenter import Segmenter, record_evaluation
from .smoothing import smoothing_radius

logger = logging.getLogger("infoseg_fast")

DEFAULT_CROP = 128  # pixels
SCORES = ("pixel_accuracy", "mean_iou", "nmi", "majority_accuracy")  # of an evaluation, in metrics.jsonl
MAX_WORKERS = 4
TRIAL_STEPS = 100  # of each of several starts
REFINED_ON = 128  # crops at most, from which the colours of the classes are taken
# A rival trains this long with all its classes, this long before each further one goes, and TRIAL_STEPS with K.
SURPLUS_STEPS, STEPS_A_CLASS = 100, 10
CLEARLY = 0.08  # nats of appearance information, see docs/recipe.md
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


class Run:
    """A network in training, with everything its next step depends on; `start` is the initial network's number."""

    def __init__(
        self, config: TrainConfig, images: ImageSet, device: torch.device, state: dict | None, start: int = 0
    ) -> None:
        self.config, self.images, self.device = config, images, device
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        torch.manual_seed(config.seed + STARTS_APART * start)
        self.network = {
            "in_channels": images.channels,
            "num_classes": config.classes,
            "width": config.width,
            "dim": config.dim,
            "inputs": config.inputs,
            "depth": config.depth,
        }
        self.model = InfoSegNet(**self.network)
        if state is None:
            self.model.set_normalization(*channel_statistics(images))
        else:
            # Runs from before weights were averaged hold one set of them.
            self.model.load_state_dict(state.get("trained", state["model"]))
        # Channels last: the convolutions of the CPU take two thirds of the time.
        self.model.to(device, memory_format=torch.channels_last)
        self.average = averaged(self.model) if config.average else self.model
        self.criterion = InfoSegLoss(
            config.temperature, config.estimator, config.negatives, config.num_negatives, config.balance
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        # Sums of the loss since the last log line and the last checkpoint, on the device: no step waits for a number.
        self.step, self.best_loss, self.scores = 0, float("inf"), None
        self.first_crops: list[Batch] | None = None  # read when a refinement first needs them
        self.logged, self.saved = Mean(device), Mean(device)
        self.recent = Mean(device)  # over the steps before the rival's
        if state is not None:
            self.average.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.best_loss = state["step"], state["best_loss"]
            self.logged, self.saved = Mean(device, *state["logged"]), Mean(device, *state["saved"])
            self.recent = Mean(device, *state.get("recent", ()))

    def state(self) -> dict:
        """What a checkpoint holds: nothing but tensors, numbers and text."""
        refinement = self.refinement()
        return {
            "step": self.step,
            "best_loss": self.best_loss,
            "logged": self.logged.parts(),
            "saved": self.saved.parts(),
            "recent": self.recent.parts(),
            "model": self.average.state_dict(),
            "trained": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "network": self.network,
            "prediction": {
                "temperature": self.config.temperature,
                "scale": self.config.scale,
                "raw_scale": self.images.raw_scale,
                "smooth": self.config.smooth,
                "class_names": self.images.classes,
                "refinement": refinement and refinement.to("cpu")._asdict(),
            },
        }

    def segmenter(self, refined: bool = True) -> Segmenter:
        config = self.config
        return Segmenter(
            self.average,
            config.temperature,
            config.scale,
            self.images.classes,
            smooth=config.smooth,
            refinement=self.refinement() if refined else None,
        )

    @torch.no_grad()
    def refinement(self) -> Refinement | None:
        """What the pixels of each class look like in the first crops of the run; None where labels do not use it, or no
        pixel of these crops counts."""
        config = self.config
        if not config.refine:
            return None
        if self.first_crops is None:
            least = least_batch(config)
            steps = min(
                steps_per_epoch(len(self.images), config.batch_size, least), -(-REFINED_ON // config.batch_size)
            )
            sampler = CropSampler(len(self.images), config.batch_size, least, config.seed, 0, steps)
            loader = crop_loader(self.images, config.crop, sampler, 0, config.loss_mask == "gt")
            self.first_crops = [sound(batch) for batch in loader]
        segmenter = self.segmenter(refined=False)
        training = self.average.training
        self.average.eval()
        moments = 0.0
        for batch in self.first_crops:
            images, mask = self.on_device(batch)
            probs = segmenter.assign(images)
            if mask is not None:
                mask = valid_positions(mask, probs.shape[2:])
            moments = moments + class_colours(probs, padded(images), mask, config.smooth)
        self.average.train(training)
        return fitted(moments, config.smooth) if moments[:, 0, 0].sum() > 0 else None

    def batches(self, steps: int) -> tuple[CropSampler, Iterable[Batch | DataError]]:
        """From the next step to the last of so many, and what draws them."""
        config = self.config
        sampler = CropSampler(len(self.images), config.batch_size, least_batch(config), config.seed, self.step, steps)
        return sampler, crop_loader(self.images, config.crop, sampler, self._workers(), config.loss_mask == "gt")

    def trial(self, steps: int) -> float:
        """Train so many steps from the first; the mean loss of their second half, infinite where it is not finite."""
        mean = Mean(self.device)
        self.step = 0
        for batch in self.batches(steps)[1]:
            loss = self.train_step(sound(batch))[0]
            self.step += 1
            if 2 * self.step > steps:
                mean.add(loss)
        return mean.value() if math.isfinite(mean.value()) else math.inf

    def rival_step(self) -> int:
        """The steps after which a rival is trained, as many as its own; 0: none is."""
        surplus = surplus_classes(self.config)
        if not (surplus and self.config.appearance):
            return 0
        return SURPLUS_STEPS + STEPS_A_CLASS * surplus + TRIAL_STEPS

    def meet_rival(self) -> None:
        """Go on with the network that `rival` trains, if its loss is clearly lower after as many steps."""
        if self.recent.count == 0:  # resumed from a checkpoint of before there were rivals
            return
        run, loss = rival(self.config, self.images, self.device)
        taken = self.recent.value() - loss > CLEARLY * self.config.appearance
        if taken:
            self.model, self.average, self.optimizer = run.model, run.average, run.optimizer
        tqdm.write(
            f"step {self.step}: loss {self.recent.value():.4f}; of a network that began with "
            f"{self.config.classes + surplus_classes(self.config)} classes {loss:.4f}"
            + (": it is trained from here on" if taken else "")
        )

    def loop(self, out: Path, eval_set: ImageSet | None, board: SummaryWriter) -> None:
        """All steps that are left, with their log lines, evaluations and checkpoints."""
        config = self.config
        sampler, loader = self.batches(config.steps)
        self.model.train()
        rival_step = self.rival_step()
        seconds, seen, began = 0.0, 0, time.perf_counter()  # of training, without evaluations and checkpoints
        with tqdm(total=config.steps, initial=self.step, unit="step", desc="training", disable=None) as bar:
            for batch in loader:
                if rival_step and self.step == rival_step:
                    seconds += time.perf_counter() - began
                    self.meet_rival()
                    began = time.perf_counter()
                loss, features, global_features = self.train_step(sound(batch))
                self.step, seen = self.step + 1, seen + len(batch.images)
                if rival_step - TRIAL_STEPS // 2 < self.step <= rival_step:
                    self.recent.add(loss)
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
                        "classes_in_use": self.classes_in_use(features, global_features),
                        "lr": self.optimizer.param_groups[0]["lr"],
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
        """One step on a batch of crops: the loss and both kinds of features, detached, still on the device."""
        config, generator = self.config, torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        images, valid = self.on_device(batch)
        images, valid = augment.flip_and_rotate(images, valid, generator, config.flip, config.rotate)
        images = augment.jitter(images, config.jitter, generator)

        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, (self.step + 1) / max(config.warmup, 1))
        features, global_features = self.model(images.contiguous(memory_format=torch.channels_last))
        mask = None if valid is None else valid_positions(valid, features.shape[2:])
        loss = self.loss(images, features, global_features, mask)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if config.average:
            add_to_average(self.average, self.model, config.average, self.step)
        return loss.detach(), features.detach(), global_features.detach()

    def on_device(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Images float [B, c, crop, crop] in [0, 1], and which pixels count."""
        images = batch.images.to(self.device, non_blocking=True).float() / WHITE[self.images.dtype]
        return images, None if batch.valid is None else batch.valid.to(self.device, non_blocking=True)

    def loss(self, images: Tensor, features: Tensor, global_features: Tensor, mask: Tensor | None) -> Tensor:
        """What is minimised: the loss of local and global features, less what the classes tell of the appearance."""
        projection, weight = self.model.local_projection, self.config.appearance
        loss = self.criterion(features, global_features, projection.weight, projection.bias, mask=mask)
        if weight:
            loss = loss - weight * appearance_term(
                features,
                global_features,
                projection.weight,
                projection.bias,
                images=padded(images),
                mask=mask,
                temperature=self.config.temperature,
                smooth=self.config.smooth,  # as when labels are made of them
            )
        return loss

    @torch.no_grad()
    def drop_least_telling(self, batch: Batch) -> None:
        """Take the class out of the network that a batch, as it was read, can best do without."""
        images, valid = self.on_device(batch)
        features, global_features = self.model(images.contiguous(memory_format=torch.channels_last))
        size = features.shape[2:]
        mask = None if valid is None else valid_positions(valid, size)
        statistics = appearance_statistics(local_appearance(padded(images), size), mask, self.config.smooth)
        probs = self.assign(features, global_features)
        k = least_telling(probs, statistics, self.config.appearance, self.config.balance)
        drop_class(self.model, self.optimizer, k)

    def assign(self, features: Tensor, global_features: Tensor) -> Tensor:
        projection = self.model.local_projection
        return assign(
            features, global_features, projection.weight, projection.bias, temperature=self.config.temperature
        )

    @torch.no_grad()
    def classes_in_use(self, features: Tensor, global_features: Tensor) -> float:
        """exp of the entropy of the mean assignment of a batch: from 1, a single class, to K, all alike."""
        probs = self.assign(features, global_features)
        return torch.special.entr(probs.mean(dim=(0, 2, 3))).sum().exp().item()

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
    """The number of the start whose trial ends with the lowest loss, as k-means takes the best of several."""
    steps = min(TRIAL_STEPS, config.steps)
    losses = [Run(config, images, device, None, start).trial(steps) for start in range(config.starts)]
    best = min(range(config.starts), key=losses.__getitem__)
    print(f"start {best + 1} is trained; losses of the starts: {' '.join(f'{x:.4f}' for x in losses)}")
    return best


def surplus_classes(config: TrainConfig) -> int:
    """Classes that a rival has in the beginning beyond those it ends with."""
    return min(256, round(config.overcluster * config.classes)) - config.classes


def rival(config: TrainConfig, images: ImageSet, device: torch.device) -> tuple[Run, float]:
    """A network that began with more classes, of which the least telling went, and its loss.

    It is not caught where a network with as many classes as things can be: with one class for two things.
    """
    surplus = surplus_classes(config)
    many = dataclasses.replace(config, classes=config.classes + surplus, average=0.0)
    run = Run(many, images, device, None)
    due = range(SURPLUS_STEPS, SURPLUS_STEPS + STEPS_A_CLASS * surplus, STEPS_A_CLASS)  # after these steps a class goes
    for batch in run.batches(due[-1])[1]:
        run.train_step(sound(batch))
        run.step += 1
        if run.step in due:
            run.drop_least_telling(batch)
    reduced = Run(config, images, device, None)
    for network in {reduced.model, reduced.average}:
        network.load_state_dict(run.model.state_dict())
    return reduced, reduced.trial(TRIAL_STEPS)


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


def valid_positions(valid: Tensor, size: tuple[int, int]) -> Tensor:
    """Positions [B, h, w] whose pixels of valid [B, rows, columns] all count; what the network padded does not."""
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
    train_set = open_set(config.data, "train", num_classes=config.classes, scale=config.scale)
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
    if eval_set is not None:
        scores = scores or evaluate(segmenter, eval_set, run.device)
        add_training(scores, run.config.loss_mask, checkpoint.LAST)
        record_evaluation(out, checkpoint.LAST, run.step, "eval", scores)
        segmenter.mapping = scores["mapping"]
        print(f"after {run.step} steps, eval split of {run.config.data}:\n{as_text(scores, run.images.classes)}")
    report.write(out, segmenter, eval_set or run.images, run.device)
    print(f"report: {out / report.REPORT}")
    return scores
