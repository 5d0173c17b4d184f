"""The end of a run: the scores of the last step, and the report."""

from typing import Any

import torch

from .checkpoint import LAST
from .config import Settings
from .data import ImageSet
from .distributed.world import World
from .run_folder import RunFolder
from .scores.evaluate import add_training, as_text, evaluate
from .segmenter import Segmenter


def finish(
    run: RunFolder,
    settings: Settings,
    segmenter: Segmenter,
    step: int,
    scores: dict[str, Any] | None,
    train_set: ImageSet,
    eval_set: ImageSet,
    device: torch.device,
    world: World,
) -> dict[str, Any] | None:
    """Score the last step, write the report, and print where it is."""
    from . import report

    if eval_set.has_labels:
        scores = scores or evaluate(segmenter, eval_set, device)
        add_training(scores, settings.loss_mask, LAST)
    world.share_warnings()
    if not world.is_main:
        return scores
    if scores:
        run.record_evaluation(LAST, step, "eval", eval_set.classes, scores)
        segmenter.mapping, segmenter.class_names = scores["mapping"], eval_set.classes
        print(f"after {step} steps, eval split of {settings.data}:\n{as_text(scores, train_set.classes)}")
    report.write(run, segmenter, eval_set if eval_set.has_labels else train_set)
    print(f"report: {run.report}")
    return scores
