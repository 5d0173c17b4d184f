"""The stage of `first_hour` that trains, and its painted images."""

import logging
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from ..errors import first_line
from ..run_folder import RunFolder
from ..train import train
from .first_hour import FAILED, PASSED, Table

DEVICE = "cuda"
SETTINGS = {"steps": 200, "batch_size": 32, "crop": 128, "log_every": 20, "eval_every": 0, "checkpoint_every": 100}
IMAGES, SIDE = 96, 160  # number of painted images, and their side in pixels
# Runs without a graph come first, since a failed capture may break the process. The float32 runs of
# the default recipe should have the same bits.
RUNS: dict[str, dict[str, Any]] = {
    "default, without graph": {"cuda_graph": "off"},
    "default": {},
    "default, resumed at half": {},
    "default again": {},
    "paper, without graph": {"recipe": "paper", "cuda_graph": "off"},
    "paper": {"recipe": "paper"},
    "default, bfloat16": {"precision": "bfloat16"},
    "paper, bfloat16": {"recipe": "paper", "precision": "bfloat16"},
}


def painted(folder: Path) -> Path:
    """A folder with images of two textures and their labels."""
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    for i in range(IMAGES):
        angle, offset = rng.uniform(0, np.pi), rng.uniform(-0.15, 0.15) * SIDE
        label = (np.cos(angle) * x + np.sin(angle) * y > offset).astype(np.uint8)
        coarse = rng.normal(0, 40, (SIDE // 4, SIDE // 4)).repeat(4, 0).repeat(4, 1)[:SIDE, :SIDE]
        fine = rng.normal(0, 40, (SIDE, SIDE))
        textures = fine[..., None] + [150, 100, 90], coarse[..., None] + [90, 110, 150]
        pixels = np.where(label[..., None] == 1, *textures).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"images/{i}.png")
        Image.fromarray(label).save(folder / f"labels/{i}.png")
    return folder


class Run:
    """A run in a temporary folder, without its report."""

    def __init__(self, recipe: str, data: Path | None = None, resumed: bool = False, **settings: Any) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name)
        data = data or painted(self.path / "data")
        self.settings = {**SETTINGS, "recipe": recipe, "precision": "float32", "device": DEVICE, **settings}
        steps = self.settings["steps"]
        self.scores = self.go(data, **self.settings | {"steps": steps // 2 if resumed else steps})
        if resumed:
            self.scores = self.go(None, resume=True, steps=steps)

    def go(self, data: Path | None, **settings: Any) -> dict[str, Any] | None:
        start = time.perf_counter()
        with patch("infoseg_fast.report.write"):
            scores = train(data, self.path / "run", **settings)
        self.seconds = time.perf_counter() - start
        return scores

    def close(self) -> None:
        self.folder.cleanup()

    def weights(self) -> dict[str, torch.Tensor]:
        content = RunFolder(self.path / "run").load("last")
        assert content is not None
        return content["recipe"]

    def steps_per_second(self) -> float:
        """The rate after the first log line, whose interval includes the compilation."""
        rows = RunFolder(self.path / "run").read_metrics()
        batch, first, last = self.settings["batch_size"], rows[0], rows[-1]
        spent = [row["step"] * batch / row["images_per_s"] for row in (first, last)]
        return (last["step"] - first["step"]) / (spent[1] - spent[0])


def training(table: Table) -> None:
    """The accuracy and the rate of short trainings, and whether their bits are equal."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("infoseg_fast")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    with tempfile.TemporaryDirectory() as folder:
        data = painted(Path(folder) / "data")
        runs: dict[str, Run] = {}
        for name, settings in RUNS.items():
            said.clear()
            try:
                run = Run(data=data, resumed="resumed" in name, **{"recipe": "default", **settings})
            except Exception as error:  # the next runs are still made
                table.add(name, status=FAILED, detail=f"{type(error).__name__}: {first_line(error)}")
                continue
            accuracy = run.scores["pixel_accuracy"] if run.scores else float("nan")
            graph = next((line for line in said if line.startswith("--cuda-graph")), "without a CUDA graph")
            table.add(name, round(accuracy, 4), "accuracy of labels", detail=graph)
            table.add(name, round(run.steps_per_second(), 1), "steps/s")
            table.add(name, round(run.seconds, 1), "s of the run")
            if name.startswith("default") and "bfloat16" not in name:
                for other, earlier in runs.items():
                    add_same_bits(table, f"{name} as {other}", run, earlier)
                runs[name] = run


def add_same_bits(table: Table, name: str, one: Run, other: Run) -> None:
    a, b = one.weights(), other.weights()
    unlike = [key for key in a if not torch.equal(a[key], b[key])]
    detail = f"unlike: {', '.join(unlike[:3])}" if unlike else ""
    table.add(name, len(unlike), "tensors with other bits", FAILED if unlike else PASSED, detail=detail)
