"""The training loop: batches, steps, ranks, log lines and checkpoints. A `Recipe` does everything
else.

All random numbers follow from the seed and the step, and a checkpoint has everything that a step
depends on. So a run that was killed at any moment continues from its last checkpoint to the same
bits.
"""

import contextlib
import functools
import itertools
import os
import time
from typing import Any

import torch
from tqdm import tqdm

from . import precision
from .augment import Draws, changed, drawn
from .batches import Crops, Stored, batches_per_epoch, data_info, sample_of
from .config import Settings, checked, pick_device
from .cuda_graph import Capture, GraphedStep, capture_for, optimizer_for, set_rate
from .data import ImageSet, for_training
from .data.crops import Part, held_in_memory
from .data.damaged import skip_damaged
from .distributed.batch_norm import synchronised
from .distributed.world import World, restarts
from .errors import DataError
from .finish import finish
from .progress import NonfiniteGuard, Progress, stop_if_nonfinite
from .recipe import DataInfo, checked_loss, recipe_class
from .recipe.sample import Sample
from .run_folder import LOGGED_SCORES, RunFolder
from .scores.evaluate import evaluate
from .segmenter import Segmenter
from .signals import Stopped, StopSignals


def train(
    data: str | os.PathLike | None, out: str | os.PathLike, *, resume: bool = False, **given: Any
) -> dict[str, Any] | None:
    """Train, evaluate and write a report to the folder `out`: the command `infoseg train`. Under
    torchrun all ranks train one run.

        scores = isf.train("scene.tif", "run", classes=6, bands=(4, 3, 2), steps=400)
        labels = isf.load("run").segment(images)

    Args:
        data: as in `--data`: the name of a set, a folder, an image file, or a .txt file that lists
            images. It may be None for a resumed run.
        out: the RUN. It must not exist, unless `resume`.
        resume: whether to continue the run from its last checkpoint, if it exists. A restart by
            torchrun (--max-restarts) always does.
        given: options of `infoseg train --help`, with "_" for "-". None is the default, or the
            run's own value if it is resumed.

    Returns:
        The scores of the last step on the eval split, as in `ClusterMetrics.compute`, with None
        instead of NaN. None: there are no labels, or the run was finished before.

    Raises:
        DataError: the settings, the data or the run are not accepted. Nothing is half written.
        Stopped: a signal ended the run. The last step has a checkpoint.
        LostRankError: another rank ended or hung.
    """
    given = {"data": None if data is None else os.fspath(data)} | given
    given = checked({name: value for name, value in given.items() if value is not None})
    resume = resume or restarts() > 0
    cuda = pick_device(given.get("device", Settings.device)).type == "cuda"
    timeout = given.get("rank_timeout", Settings.rank_timeout)
    with (
        World(cuda, timeout) as world, RunFolder(out) as run, StopSignals("before the first step") as stop,
        contextlib.ExitStack() as stack,
    ):  # fmt: skip
        settings, recorded = world.from_main(lambda: run.open(given, resume))
        device = pick_device(settings.device)
        stack.enter_context(precision.policy(device.type == "cuda"))
        train_set, eval_set = for_training(settings.open("train")), settings.open("eval")
        settings = settings.resolve(train_set, eval_set)
        if recorded is None and eval_set.folder and run.is_within(eval_set.folder):
            raise DataError(
                f"--out {run.path} lies among the images of --data {settings.data}, where its pictures would be taken "
                "for images; choose another"
            )
        fingerprint = world.from_main(train_set.fingerprint)
        if recorded not in (None, fingerprint):
            raise DataError(f"--resume: the images of {settings.data} are no longer those that {run.path} began with")
        if eval_set.has_labels:
            world.from_main(eval_set.check_labels)
        if settings.skip_damaged:
            train_set, eval_set = skip_damaged(train_set), skip_damaged(eval_set, scored=True)
        content = world.from_main(lambda: run.load(repair=True) if recorded else None)
        if content is not None and content["step"] >= settings.steps and run.report.is_file():
            print(f"{run.path} is finished: {content['step']} steps are done (more --steps continue it)")
            return None
        train_set = held_in_memory(train_set)  # reads every image of a small set before anything is written
        found = (
            content["labelling"]["data"] if content else world.from_main(lambda: data_info(train_set, settings).state())
        )
        data = DataInfo.from_state(found)
        train_set.scaling, train_set.position = data.scaling, data.position
        recipe = recipe_class(settings.recipe)(settings, data).to(device)
        if settings.sync_batchnorm and world.size > 1:
            recipe = synchronised(recipe, device)
        settings = precision.resolved(settings, recipe, device, world)
        capture = capture_for(settings, recipe, device, world.size)
        progress = Progress(recipe, optimizer_for(recipe, settings, device), device)
        sample = sample_of(train_set, settings, device)
        if content is not None:
            progress.restore(content)
        else:
            recipe.begin(sample)
        if world.is_main:
            if recorded:
                print(f"resuming {run.path} at step {progress.step}{'' if content else ', since it has no checkpoint'}")
            run.write_config(settings, fingerprint)
            run.cut_metrics(progress.step)
        return run_steps(run, settings, progress, train_set, eval_set, sample, device, world, stop, capture)


def run_steps(
    run: RunFolder,
    settings: Settings,
    progress: Progress,
    train_set: ImageSet,
    eval_set: ImageSet,
    sample: Sample,
    device: torch.device,
    world: World,
    stop: StopSignals,
    capture: Capture | None,
) -> dict[str, Any] | None:
    """The loop: all remaining steps, with log lines, evaluations, checkpoints, and the report.

    The images of a step go through the network in `accumulate` parts, each shared by the ranks. A
    part of the loss is weighted by its share of the images. Gradients are summed over parts and
    ranks.
    """
    from torch.utils.tensorboard import SummaryWriter  # here, since `import infoseg_fast` should be quick

    recipe, optimizer, scores = progress.recipe, progress.optimizer, None
    loss_of = torch.compile(recipe.loss) if settings.compile else recipe.loss
    guard = NonfiniteGuard(recipe, optimizer) if settings.skip_nonfinite else None

    @functools.lru_cache(maxsize=1)
    def segmenter_after(step: int) -> Segmenter:
        return Segmenter(recipe.labelling(sample))

    crops = Crops(train_set, settings, device, progress.step, settings.steps, world)

    def step_of(parts: list[tuple[Stored, Draws, Part]]) -> None:
        """One step. It does not wait for the device, so that a CUDA graph can replay it."""
        if guard:
            guard.remember()
        optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=device)
        for stored, draws, recipe.part in parts:
            images, mask = changed(*crops.decoded(*stored), settings, draws, recipe.data.position)
            with precision.autocast(settings.precision, device):
                weighted = checked_loss(loss_of(progress.step, images, mask), settings.recipe) * recipe.part.share
            weighted.backward()
            loss += weighted.detach()
        loss = world.sum_gradients(recipe.parameters(), loss)
        if guard:
            loss = guard.check(loss)
        optimizer.step()
        recipe.after_step(progress.step)
        if guard:
            guard.restore()
        progress.add(loss)

    step_once = GraphedStep(step_of, recipe, capture, settings.cuda_graph == "on")
    recipe.train()
    batches, images_seen, seconds, started = iter(crops), 0, 0.0, time.perf_counter()  # of training alone
    stop.defer()
    with (
        SummaryWriter(str(run.tensorboard), purge_step=progress.step + 1) if world.is_main else
        contextlib.nullcontext() as board,
        tqdm(
            total=settings.steps, initial=progress.step, unit="step", desc="training",
            disable=None if world.is_main else True,
        ) as bar,
    ):  # fmt: skip
        while progress.step < settings.steps:
            rate = settings.lr * min(1.0, (progress.step + 1) / max(settings.warmup, 1))
            set_rate(optimizer, rate)
            recipe.before_step(progress.step)
            parts = [*itertools.islice(batches, settings.accumulate)]
            step_once([(stored, drawn(settings, progress.step, part, device), part) for stored, part in parts])
            progress.step += 1
            step, images_seen = progress.step, images_seen + parts[0][1].total
            bar.update()

            is_last = step == settings.steps
            evaluates = is_last or (settings.eval_every and step % settings.eval_every == 0)
            logs = evaluates or step % settings.log_every == 0
            saves, stopping = is_last or step % settings.checkpoint_every == 0, world.largest(stop.received)
            if guard is None and (logs or saves or stopping or device.type == "cpu"):  # a GPU is not waited for else
                stop_if_nonfinite(run, settings, progress, train_set, world, saves or bool(stopping))
            if not settings.sync_batchnorm and (evaluates or saves or stopping):
                world.mean_buffers(recipe)
            if logs:
                seconds += time.perf_counter() - started
                row = {
                    "step": step,
                    **({"skipped_steps": progress.skipped()} if guard else {}),
                    "loss": progress.logged_loss(),
                    "epoch": step / batches_per_epoch(train_set, settings),
                    "lr": rate,
                    "images_per_s": images_seen / seconds,
                    **world.mean(recipe.metrics()),
                }
                if evaluates and eval_set.has_labels:
                    scores = evaluate(segmenter_after(step), eval_set, device)
                    row |= {name: scores[name] for name in LOGGED_SCORES if scores[name] is not None}
                if world.is_main:
                    run.append_metrics(row)
                    for name, value in row.items():
                        board.add_scalar(name, value, step)
                bar.set_postfix({name: f"{row[name]:.4g}" for name in ("loss", "pixel_accuracy") if name in row})
                started = time.perf_counter()
            if saves or stopping:
                seconds += time.perf_counter() - started
                if world.is_main:
                    run.save(*progress.checkpoint(segmenter_after(step).labelling, regular=saves))
                started = time.perf_counter()
            if logs or stopping:
                world.share_warnings()
            if stopping:
                raise Stopped(stopping, f"after a checkpoint of step {step}; --resume continues")
    segmenter = segmenter_after(progress.step)
    scores = finish(run, settings, segmenter, progress.step, scores, train_set, eval_set, device, world)
    if stop.received:
        raise Stopped(stop.received, "after the report; the run is finished")
    return scores
