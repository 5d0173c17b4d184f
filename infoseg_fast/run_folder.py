"""`RunFolder`: the only reader and writer of the files of a RUN."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import logging
import math
import os
import shutil
from pathlib import Path
from typing import IO, Any

from . import checkpoint
from .checkpoint import LAST, write_atomically
from .config import Settings, checked, option
from .env import environment
from .errors import DataError
from .recipe import COMMON_DEFAULTS

logger = logging.getLogger("infoseg_fast")

LOGGED_SCORES = ("pixel_accuracy", "mean_iou", "nmi", "majority_accuracy")  # in the log lines of a training
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
LOCK = ".lock"
LAYOUT = 3  # version of the files. A RUN of another version is refused by name.


class RunFolder:
    """A RUN: config.json, metrics.jsonl, evaluation.json, checkpoints/, tensorboard/, report.html,
    examples.png, and nonfinite.json if a loss was not finite.

    One process trains in a RUN: `open` and `write_config` take a lock, and the end of the context
    releases it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config, self.metrics = self.path / "config.json", self.path / "metrics.jsonl"
        self.evaluations, self.checkpoints = self.path / "evaluation.json", self.path / "checkpoints"
        self.report, self.examples = self.path / "report.html", self.path / "examples.png"
        self.tensorboard, self.nonfinite = self.path / "tensorboard", self.path / "nonfinite.json"
        self._lock: IO | None = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self._lock is not None:
            self._lock.close()
        if isinstance(error, OSError) and error.errno in NO_SPACE:  # from TensorBoard's writer
            raise DataError(
                f"{self.path} could not be written: {error.strerror}; --resume goes on from the last checkpoint"
            ) from error

    def open(self, given: dict[str, Any], resume: bool) -> tuple[Settings, dict[str, Any] | None]:
        """The settings of the run, and the fingerprint of its data if the run exists, else None.

        Args:
            given: settings that the user gave.
            resume: whether the run may exist.

        Raises:
            DataError: the run exists without `resume`, has another layout, is in use, or has other
                settings.
        """
        if not self._exists():
            if resume:
                print(f"{self.path} does not exist yet: a new run begins")
            return Settings.create(given), None
        if not resume:
            raise DataError(f"--out {self.path} exists; give --resume to continue it, or another folder")
        record = self.read_config()
        self._take_lock()
        return self._recorded(record["config"]).changed(given), record["data"]

    def _exists(self) -> bool:
        """Whether there is anything but an empty folder at the path."""
        return any(self.path.iterdir()) if self.path.is_dir() else self.path.exists()

    def is_within(self, folder: Path) -> bool:
        """Whether the run lies in the folder or below it, with all links resolved."""
        return Path(os.path.realpath(self.path)).is_relative_to(os.path.realpath(folder))

    def read_config(self) -> dict[str, Any]:
        """The content of config.json: "layout", "config", "data", "environment".

        Raises:
            DataError: the file cannot be read, has another layout, or lacks a part.
        """
        try:
            record = json.loads(self.config.read_text())
            layout = record.get("layout")
        except (OSError, ValueError, AttributeError) as error:
            raise DataError(f"{self.path} is not a run (no readable {self.config.name})") from error
        if layout != LAYOUT:
            raise DataError(
                f"{self.path} has layout {layout or 'of an unreleased version'}; this version reads layout {LAYOUT}. "
                "Train it again"
            )
        for part in ("config", "data", "environment"):
            if not isinstance(record.get(part), dict):
                raise DataError(f"{self.config} has no {part!r}; restore the file, or train again")
        return record

    def _recorded(self, config: dict[str, Any]) -> Settings:
        """The settings of config.json, which may have been edited.

        Raises:
            DataError: a setting is missing, or its value is not accepted.
        """
        given = {name: value for name, value in config.items() if value is not None}
        try:
            settings = checked(given)
        except DataError as error:
            raise DataError(f"{self.config}: {error}") from error
        for name in ("data", "steps", *COMMON_DEFAULTS):
            if name not in given:
                raise DataError(f"{self.config}: {option(name)} is missing")
        return Settings(**settings)

    def write_config(self, settings: Settings, fingerprint: dict[str, Any]) -> None:
        """Write config.json. The folder of a new run appears with this file in it.

        Raises:
            DataError: the folder cannot be written, or another process trains in it.
        """
        record = {
            "layout": LAYOUT,
            "config": dataclasses.asdict(settings),
            "data": fingerprint,
            "environment": environment(),
        }
        text = (json.dumps(record, indent=1, allow_nan=False) + "\n").encode()
        if self._lock is not None:  # of a run that is resumed
            write_atomically(self.config, text)
            return
        if self._exists():
            raise DataError(f"--out {self.path} exists now: another process began a run there")
        if self.path.is_dir():  # perhaps a link, or the working directory
            self._take_lock()
            try:
                write_atomically(self.config, text)
            except BaseException:
                (self.path / LOCK).unlink()
                raise
            return
        scratch = self.path.with_name(f".{self.path.name}.{os.getpid()}.new")
        try:
            scratch.mkdir(parents=True)
            write_atomically(scratch / self.config.name, text)
            os.rename(scratch, self.path)
        except BaseException as error:  # an interruption too
            shutil.rmtree(scratch, ignore_errors=True)
            if not isinstance(error, (OSError, DataError)):
                raise
            reason = error if isinstance(error, OSError) else error.__cause__
            raise DataError(f"--out {self.path} cannot be made: {getattr(reason, 'strerror', reason)}") from error
        self._take_lock()

    def _take_lock(self) -> None:
        """Lock the folder until the process ends, by a crash too."""
        try:
            self._lock = open(self.path / LOCK, "w")  # noqa: SIM115
        except OSError as error:
            raise DataError(f"{self.path} cannot be written: {error.strerror}") from error
        try:
            # Not flock: processes that read images would inherit the lock, and live on for a moment
            # after a kill.
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise DataError(f"{self.path} is in use: another process trains in it") from error
        except OSError as error:
            logger.warning("%s has no lock, since its file system has none: %s", self.path, error.strerror)

    def save(self, state: dict[str, Any], is_best: bool) -> None:
        """Write the last checkpoint, and with `is_best` also the best one; see `checkpoint.save`."""
        checkpoint.save(self.checkpoints, state | {"layout": LAYOUT}, is_best)

    def load(self, name: str = LAST, repair: bool = False) -> dict[str, Any] | None:
        """The state of a checkpoint, or None; see `checkpoint.load`.

        Raises:
            DataError: the checkpoint is damaged, or has another layout.
        """
        state = checkpoint.load(self.checkpoints, name, repair)
        if state is not None and state.get("layout") != LAYOUT:
            raise DataError(
                f"checkpoint {name} of {self.path} has layout {state.get('layout') or 'of an unreleased version'}; "
                f"this version reads layout {LAYOUT}. Train it again"
            )
        return state

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl. A number that is not finite becomes null."""
        row = {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in row.items()}
        try:
            with open(self.metrics, "a") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
        except OSError as error:
            raise DataError(
                f"{self.metrics} could not be written: {error.strerror}; --resume goes on from the last checkpoint"
            ) from error

    def record_nonfinite(self, step: int, images: list[str]) -> None:
        """Write the step whose loss was not finite and the stems of its images to nonfinite.json."""
        text = json.dumps({"step": step, "images": images}, indent=1, allow_nan=False) + "\n"
        write_atomically(self.nonfinite, text.encode())

    def cut_metrics(self, step: int) -> None:
        """Remove the lines of steps after `step`, lines that are no rows, and a line that a kill left
        incomplete.
        """
        lines = self.metrics.read_bytes().splitlines(keepends=True) if self.metrics.is_file() else []
        kept = []
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError):  # a line that is no row
                row = json.loads(line)
                if line.endswith(b"\n") and row["step"] <= step and math.isfinite(row["loss"]):
                    kept.append(line)
        if kept != lines:
            write_atomically(self.metrics, b"".join(kept))

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl.

        Raises:
            DataError: there is none.
        """
        rows = [json.loads(line) for line in self.metrics.read_text().splitlines()] if self.metrics.is_file() else []
        if not rows:
            raise DataError(f"{self.metrics} has no line; --resume with more --steps writes some")
        return rows

    def evaluation(self, name: str, step: int | None = None) -> dict[str, Any] | None:
        """The last scores of a checkpoint, as `record_evaluation` wrote them. None: it has none, they
        belong to another step, or the file was edited.
        """
        found = self._evaluations().get(name)
        return found if found and step in (None, found["step"]) else None

    def record_evaluation(
        self, name: str, step: int, split: str, classes: list[str] | None, scores: dict[str, Any]
    ) -> None:
        """Write the scores of a checkpoint, with the names of the classes, to evaluation.json."""
        record = self._evaluations() | {name: {"step": step, "split": split, "classes": classes} | scores}
        text = json.dumps(record, indent=1, allow_nan=False) + "\n"
        write_atomically(self.evaluations, text.encode())

    def _evaluations(self) -> dict[str, Any]:
        try:
            found = json.loads(self.evaluations.read_text(), parse_constant=_refuse)
        except (OSError, ValueError):
            return {}
        return {name: one for name, one in found.items() if _is_evaluation(one)} if isinstance(found, dict) else {}


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not strict JSON")


def _is_evaluation(record: Any) -> bool:
    """Whether a record of evaluation.json has all that `record_evaluation` writes, with its types."""

    def is_list(name: str, *types: type) -> bool:
        return isinstance(record[name], list) and all(type(item) in types for item in record[name])

    try:
        number = len(record["iou"])
        ratio = (int, float) if record["num_pixels"] else (int, float, type(None))
        return (
            all(type(record[name]) is int for name in ("step", "num_pixels"))
            and isinstance(record["split"], str)
            and (record["classes"] is None or (is_list("classes", str) and len(record["classes"]) >= number))
            and all(type(record[name]) in ratio for name in LOGGED_SCORES)
            and is_list("class_shares", *ratio)
            and len(record["class_shares"]) == number
            and is_list("iou", int, float, type(None))
            and is_list("mapping", int)
            and all(-1 <= cls < number for cls in record["mapping"])
        )
    except (KeyError, TypeError):  # a name is missing, or the record is no object
        return False
