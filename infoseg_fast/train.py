"""The training loop. It knows batches, steps, log lines and checkpoints; a `Recipe` knows
everything else.

All random numbers follow from the seed and the step, and a checkpoint holds everything that a step
depends on. So a run that is killed at any moment continues from its last checkpoint to the same
bits.
"""

import functools
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from . import report
from .augment import augmented
from .batches import batches_per_epoch, crops, data_info, sample_of, stems_of_step, worker_count
from .checkpoint import LAST
from .config import Settings, pick_device
from .data import ImageSet, for_training
from .data.crops import held_in_memory
from .data.damaged import skip_damaged
from .data.scaling import Scaling
from .errors import DataError
from .progress import NonfiniteGuard, Progress
from .recipe import DataInfo, recipe_class
from .run_folder import RunFolder
from .scores.evaluate import add_training, as_text, evaluate
from .segmenter import Segmenter
from .signals import Stopped, StopSignals

LOGGED_SCORES = ("pixel_accuracy", "mean_iou", "nmi", "majority_accuracy")


def train(given: dict[str, Any], out: str | Path, resume: bool = False) -> dict[str, Any] | None:
    """Train, evaluate and report into the folder `out`.

    Args:
        given: settings of `Settings` that differ from the defaults (from the run's own, when it is
            resumed).
        out: the RUN. It must not exist, unless `resume`, which continues from its last checkpoint.

    Returns:
        The scores of the last step on the eval split; None without labels, or when the run was
        finished before.

    Raises:
        DataError: the settings, the data or the run are not as they must be. Nothing is half
            written.
        Stopped: a signal ended the run. There is a checkpoint of the last step that was done.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise DataError("infoseg train runs in one process; start it without torchrun")
    with RunFolder(out) as run, StopSignals() as stop:
        settings, recorded = run.open(given, resume)
        device = pick_device(settings.device)
        train_set, eval_set = for_training(settings.open("train")), settings.open("eval")
        settings, fingerprint = settings.resolve(train_set, eval_set), train_set.fingerprint()
        if recorded not in (None, fingerprint):
            raise DataError(f"--resume: the images of {settings.data} are no longer those that {run.path} began with")
        if eval_set.has_labels:
            eval_set.check_labels()
        if settings.skip_damaged:
            train_set, eval_set = skip_damaged(train_set), skip_damaged(eval_set, scored=True)
        content = run.load(repair=True) if recorded else None
        if content is not None and content["step"] >= settings.steps and run.report.is_file():
            print(f"{run.path} is finished: {content['step']} steps are done (more --steps continue it)")
            return None
        train_set = held_in_memory(train_set)  # reads every image of a small set before anything is written
        if content is not None:
            train_set.scaling = Scaling.from_state(content["labelling"]["data"]["scaling"])
        data = DataInfo.from_state(content["labelling"]["data"]) if content else data_info(train_set, settings)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        recipe = recipe_class(settings.recipe)(settings, data).to(device)
        optimizer = torch.optim.AdamW(
            [x for x in recipe.parameters() if x.requires_grad],
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        progress = Progress(recipe, optimizer, device)
        if content is not None:
            progress.restore(content)
            print(f"resuming {run.path} at step {progress.step}")
        run.write_config(settings, fingerprint)
        run.cut_metrics(progress.step)
        return run_steps(run, settings, progress, train_set, eval_set, device, stop)


def run_steps(
    run: RunFolder,
    settings: Settings,
    progress: Progress,
    train_set: ImageSet,
    eval_set: ImageSet,
    device: torch.device,
    stop: StopSignals,
) -> dict[str, Any] | None:
    """The loop: all steps that are left, with their log lines, evaluations and checkpoints, then
    the report.
    """
    recipe, optimizer, scores = progress.recipe, progress.optimizer, None
    sample = sample_of(train_set, settings, device)
    guard = NonfiniteGuard(recipe, optimizer) if settings.skip_nonfinite else None

    @functools.lru_cache(maxsize=1)
    def segmenter_after(step: int) -> Segmenter:
        return Segmenter(recipe.labelling(sample))

    recipe.train()
    images_seen, seconds, started = 0, 0.0, time.perf_counter()  # of training alone
    batches = crops(train_set, settings, device, progress.step, settings.steps, worker_count(train_set, settings))
    stop.defer()
    with (
        SummaryWriter(str(run.tensorboard), purge_step=progress.step + 1) as board,
        tqdm(total=settings.steps, initial=progress.step, unit="step", desc="training", disable=None) as bar,
    ):
        for images, mask in batches:
            images, mask = augmented(images, mask, settings, progress.step)
            rate = settings.lr * min(1.0, (progress.step + 1) / max(settings.warmup, 1))
            for group in optimizer.param_groups:
                group["lr"] = rate
            if guard:
                guard.remember()
            loss = recipe.loss(progress.step, images, mask)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if guard:
                guard.check(loss)
            optimizer.step()
            recipe.after_step(progress.step)
            progress.add(loss)
            step, images_seen = progress.step, images_seen + len(images)
            bar.update()

            is_last = step == settings.steps
            evaluates = is_last or (settings.eval_every and step % settings.eval_every == 0)
            logs = evaluates or step % settings.log_every == 0
            saves, stopping = is_last or step % settings.checkpoint_every == 0, stop.received
            if guard is None and (logs or saves or stopping or device.type == "cpu"):  # a GPU is not waited for else
                stop_if_nonfinite(run, settings, progress, train_set)
            if logs:
                seconds += time.perf_counter() - started
                row = {
                    "step": step,
                    **({"skipped_steps": progress.skipped()} if guard else {}),
                    "loss": progress.logged_loss(),
                    "epoch": step / batches_per_epoch(train_set, settings),
                    "lr": rate,
                    "images_per_s": images_seen / seconds,
                    **recipe.metrics(),
                }
                if evaluates and eval_set.has_labels:
                    scores = evaluate(segmenter_after(step), eval_set, device)
                    row |= {name: scores[name] for name in LOGGED_SCORES if scores[name] is not None}
                run.append_metrics(row)
                for name, value in row.items():
                    board.add_scalar(name, value, step)
                bar.set_postfix({name: f"{row[name]:.4g}" for name in ("loss", "pixel_accuracy") if name in row})
                started = time.perf_counter()
            if saves or stopping:
                seconds += time.perf_counter() - started
                run.save(*progress.checkpoint(segmenter_after(step).labelling, regular=saves))
                started = time.perf_counter()
            if stopping:
                raise Stopped(stopping, step)
    stop.defer(False)
    return finish(run, settings, segmenter_after(progress.step), progress.step, scores, train_set, eval_set, device)


def stop_if_nonfinite(run: RunFolder, settings: Settings, progress: Progress, train_set: ImageSet) -> None:
    """Raise DataError if the loss of a step was NaN or infinite, and keep the names of its images."""
    if (step := progress.nonfinite_step()) is None:
        return
    run.record_nonfinite(step, stems_of_step(train_set, settings, step))
    raise DataError(
        f"the training loss was not finite at step {step}; {run.nonfinite} names its images, and the last checkpoint "
        "is from before. --resume with --skip-nonfinite leaves such steps out; else try a lower --lr in a new run"
    )


def finish(
    run: RunFolder,
    settings: Settings,
    segmenter: Segmenter,
    step: int,
    scores: dict[str, Any] | None,
    train_set: ImageSet,
    eval_set: ImageSet,
    device: torch.device,
) -> dict[str, Any] | None:
    """Score the last step, write the report, and print where it is."""
    if eval_set.has_labels:
        scores = scores or evaluate(segmenter, eval_set, device)
        add_training(scores, settings.loss_mask, LAST)
        run.record_evaluation(LAST, step, "eval", scores)
        segmenter.mapping = scores["mapping"]
        print(f"after {step} steps, eval split of {settings.data}:\n{as_text(scores, train_set.classes)}")
    report.write(run, segmenter, eval_set if eval_set.has_labels else train_set, device)
    print(f"report: {run.report}")
    return scores
