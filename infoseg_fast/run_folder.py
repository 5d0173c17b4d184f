"""The RUN folder: the settings in it, and its log; a run's checkpoints are in `checkpoint`."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

from .checkpoint import write_atomically
from .config import TrainConfig, resumed
from .env import environment
from .errors import DataError

CONFIG, METRICS = "config.json", "metrics.jsonl"


def settings_of(given: dict, out: Path, resume: bool) -> tuple[TrainConfig, dict | None]:
    """The settings of the run, and the description of its data if it exists."""
    exists = out.exists() and not (out.is_dir() and not any(out.iterdir()))
    if exists and not resume:
        raise DataError(f"--out {out} exists; give --resume to go on with it, or another folder")
    config, dataset = TrainConfig(**given), None
    if exists:
        try:
            stored = json.loads((out / CONFIG).read_text())
            config, dataset = resumed(stored["config"], given), stored["dataset"]
        except (OSError, ValueError, KeyError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"--resume: {out} is not a run (no readable {CONFIG})") from error
    elif resume:
        print(f"{out} does not exist yet: a new run begins")
    if not config.data:
        raise DataError("--data is missing: a set's name or a folder with images/")
    config.complete()
    return config, dataset


def write_settings(config: TrainConfig, dataset: dict, out: Path) -> None:
    """Record the settings; a new run's folder appears under its name with them inside."""
    record = {"config": dataclasses.asdict(config), "dataset": dataset, "environment": environment()}
    text = (json.dumps(record, indent=1) + "\n").encode()
    if (out / CONFIG).is_file():
        write_atomically(out / CONFIG, text)
        return
    scratch = out.with_name(f".{out.name}.new")
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        write_atomically(scratch / CONFIG, text)
        os.rename(scratch, out)
    except OSError as error:
        raise DataError(f"--out {out} cannot be made: {error.strerror}") from error


def cut_metrics(path: Path, step: int) -> None:
    """Drop what metrics.jsonl says of steps after the checkpoint, and a line that a kill left torn."""
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    kept = []
    for line in lines:
        try:
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):
            continue
    if kept != lines:
        write_atomically(path, "".join(kept).encode())


def loss_mask_of(run: Path) -> str:
    """The setting that a run was trained with."""
    try:
        return json.loads((run / CONFIG).read_text())["config"].get("loss_mask", "none")
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{run / CONFIG} cannot be read ({error})") from error
