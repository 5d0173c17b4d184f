"""The training loop. It knows batches, steps, log lines and checkpoints; a `Recipe` knows
everything else.

All random numbers follow from the seed and the step, and a checkpoint holds everything that a step
depends on. So a run that is killed at any moment continues from its last checkpoint to the same
bits.
"""

import functools
import os
import time
from typing import Any

import torch
from tqdm import tqdm

from .augment import augmented
from .batches import batches_per_epoch, crops, data_info, sample_of, worker_count
from .checkpoint import LAST
from .config import Settings, checked, pick_device
from .data import ImageSet, for_training
from .data.crops import held_in_memory
from .data.scaling import Scaling
from .errors import DataError
from .progress import Progress
from .recipe import DataInfo, recipe_class
from .run_folder import RunFolder
from .scores.evaluate import add_training, as_text, evaluate
from .segmenter import Segmenter

LOGGED_SCORES = ("pixel_accuracy", "mean_iou", "nmi", "majority_accuracy")


def train(
    data: str | os.PathLike | None, out: str | os.PathLike, *, resume: bool = False, **given: Any
) -> dict[str, Any] | None:
    """Train, evaluate and report into the folder `out`: the command `infoseg train`.

        scores = isf.train("scene.tif", "run", classes=6, bands=(4, 3, 2), steps=400)
        labels = isf.load("run").segment(images)

    Args:
        data: what `--data` takes: the name of a set, a folder, an image file, or a list of images.
            A resumed run may leave it out with None.
        out: the RUN. It must not exist, unless `resume`, which continues from its last checkpoint.
        given: the settings, named as the options of `infoseg train --help` with "_" for "-". None is
            the default; of a resumed run, the run's own value.

    Returns:
        The scores of the last step on the eval split, as `ClusterMetrics.compute` gives them, with
        None in place of NaN. None without labels, or when the run was finished before.

    Raises:
        DataError: the settings, the data or the run are not as they must be. Nothing is half
            written.
    """
    given = {"data": None if data is None else os.fspath(data)} | given
    given = checked({name: value for name, value in given.items() if value is not None})
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise DataError("infoseg train runs in one process; start it without torchrun")
    with RunFolder(out) as run:
        settings, recorded = run.open(given, resume)
        device = pick_device(settings.device)
        train_set, eval_set = for_training(settings.open("train")), settings.open("eval")
        settings, fingerprint = settings.resolve(train_set, eval_set), train_set.fingerprint()
        if recorded not in (None, fingerprint):
            raise DataError(f"--resume: the images of {settings.data} are no longer those that {run.path} began with")
        if eval_set.has_labels:
            eval_set.check_labels()
        content = run.load() if recorded else None
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
            [x for x in recipe.parameters() if x.requires_grad], lr=settings.lr, weight_decay=settings.weight_decay
        )
        progress = Progress(recipe, optimizer, device)
        if content is not None:
            progress.restore(content)
            print(f"resuming {run.path} at step {progress.step}")
        run.write_config(settings, fingerprint)
        run.cut_metrics(progress.step)
        return run_steps(run, settings, progress, train_set, eval_set, device)


def run_steps(
    run: RunFolder,
    settings: Settings,
    progress: Progress,
    train_set: ImageSet,
    eval_set: ImageSet,
    device: torch.device,
) -> dict[str, Any] | None:
    """The loop: all steps that are left, with their log lines, evaluations and checkpoints, then
    the report.
    """
    from torch.utils.tensorboard import SummaryWriter  # here, since `import infoseg_fast` should be quick

    recipe, optimizer, scores = progress.recipe, progress.optimizer, None
    sample = sample_of(train_set, settings, device)

    @functools.lru_cache(maxsize=1)
    def segmenter_after(step: int) -> Segmenter:
        return Segmenter(recipe.labelling(sample))

    recipe.train()
    images_seen, seconds, started = 0, 0.0, time.perf_counter()  # of training alone
    batches = crops(train_set, settings, device, progress.step, settings.steps, worker_count(train_set, settings))
    with (
        SummaryWriter(str(run.tensorboard), purge_step=progress.step + 1) as board,
        tqdm(total=settings.steps, initial=progress.step, unit="step", desc="training", disable=None) as bar,
    ):
        for images, mask in batches:
            images, mask = augmented(images, mask, settings, progress.step)
            rate = settings.lr * min(1.0, (progress.step + 1) / max(settings.warmup, 1))
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = recipe.loss(progress.step, images, mask)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            recipe.after_step(progress.step)
            progress.add(loss)
            step, images_seen = progress.step, images_seen + len(images)
            bar.update()

            is_last = step == settings.steps
            evaluates = is_last or (settings.eval_every and step % settings.eval_every == 0)
            if evaluates or step % settings.log_every == 0:
                seconds += time.perf_counter() - started
                row = {
                    "step": step,
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
            if is_last or step % settings.checkpoint_every == 0:
                seconds += time.perf_counter() - started
                run.save(*progress.checkpoint(segmenter_after(step).labelling))
                started = time.perf_counter()
    return finish(run, settings, segmenter_after(progress.step), progress.step, scores, train_set, eval_set, device)


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
    from . import report

    if eval_set.has_labels:
        scores = scores or evaluate(segmenter, eval_set, device)
        add_training(scores, settings.loss_mask, LAST)
        run.record_evaluation(LAST, step, "eval", scores)
        segmenter.mapping = scores["mapping"]
        print(f"after {step} steps, eval split of {settings.data}:\n{as_text(scores, train_set.classes)}")
    report.write(run, segmenter, eval_set if eval_set.has_labels else train_set, device)
    print(f"report: {run.report}")
    return scores
