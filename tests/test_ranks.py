"""Several ranks train the run that one process trains."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rank_jobs
import torch
from conftest import write_folder
from PIL import Image
from rank_jobs import IMAGES, OBJECTIVES, batch
from ranks import run_ranks

import infoseg_fast as isf
from infoseg_fast.data.crops import Part
from infoseg_fast.run_folder import RunFolder

TINY = {
    "crop": 32, "width": 4, "dim": 8, "batch_size": 8, "steps": 30, "log_every": 1, "checkpoint_every": 15,
    "eval_every": 15, "jitter": 0.1, "precision": "float32",  # "auto" may choose otherwise in another start
}  # fmt: skip
RECIPES = {
    "default": {},
    "masked": {"loss_mask": "gt"},
    "iic": {"recipe": "iic", "loss_mask": "gt"},
    "reassigned": {"recipe": "paper", "negatives": "reassigned"},
    "reassigned-masked": {"recipe": "paper", "negatives": "reassigned", "loss_mask": "gt"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    """12 images: batches of 8 and 4. A third of each label map is not labelled."""
    root = write_folder(tmp_path_factory.mktemp("ranks") / "data", number=12, side=40)
    for path in (root / "labels").iterdir():
        label = Image.open(path)
        label.paste(255, (0, 0, 13, 40))
        label.save(path)
    return str(root)


has_torchmetrics = importlib.util.find_spec("torchmetrics") is not None
NAMES = {2: ("default", "reassigned-masked"), 4: ("masked", "reassigned")}  # by the number of ranks


def runs(data: str, number: int) -> dict[str, dict]:
    return {name: TINY | RECIPES[name] | {"data": data} for name in NAMES[number]}


@pytest.fixture(scope="module")
def alone(together, data, tmp_path_factory) -> Path:
    """What one process finds in the place of those ranks."""
    out = tmp_path_factory.mktemp("alone")
    rank_jobs.train_in(runs(data, together[0]), str(out))
    return out


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.long)])
def together(request, data, tmp_path_factory) -> tuple[int, Path]:
    """The folder of what so many ranks found."""
    out = tmp_path_factory.mktemp(f"ranks{request.param}")
    jobs = [("train_in", runs(data, request.param), str(out)), ("objectives",), ("nothing_counts",)]
    jobs += [("within_ranks",), ("normalisation",), ("warnings_of_ranks",)]
    jobs += [("torchmetrics_of_ranks",)] * has_torchmetrics
    run_ranks(request.param, out, jobs)
    return request.param, out


@pytest.mark.parametrize("which", [0, 1])
def test_the_steps_equal_those_of_one_process(together, alone, which):
    number, out = together
    name = NAMES[number][which]
    found, expected = ([row["loss"] for row in RunFolder(folder / name).read_metrics()] for folder in (out, alone))
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert found[-1] == pytest.approx(expected[-1], rel=1e-3)
    assert len(found) == TINY["steps"] and expected[-1] != pytest.approx(expected[0], rel=1e-2)  # it has learnt
    images = torch.rand(4, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    one, other = (isf.load(folder / name).segment(images) for folder in (out, alone))
    assert (one == other).float().mean() > 0.99
    scores = [RunFolder(folder / name).evaluation("last") for folder in (out, alone)]
    assert scores[0]["num_pixels"] == scores[1]["num_pixels"] == 12 * 40 * 27
    assert scores[0]["pixel_accuracy"] == pytest.approx(scores[1]["pixel_accuracy"], abs=5e-3)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", [*OBJECTIVES, "appearance 0", "appearance 1", "appearance 1 position"])
def test_an_objective_and_its_gradients_equal_those_of_one_process(together, name, masked):
    number, out = together
    expected = rank_jobs.objectives()[f"{name}, {masked}"]
    found = [torch.load(out / f"objectives.{rank}.pt")[f"{name}, {masked}"] for rank in range(number)]
    for rank in range(number):
        part = Part.of(IMAGES, rank, number)
        for place, (x, y) in enumerate(zip(found[rank], expected, strict=True)):
            whole = y[part.inside] if place in (1, 2) else y
            torch.testing.assert_close(x.double(), whole.double(), rtol=2e-4, atol=2e-5)


def test_without_a_position_that_counts_the_loss_and_its_gradients_are_0(together):
    number, out = together
    for rank in range(number):
        assert all(not x.any() for x in torch.load(out / f"nothing_counts.{rank}.pt"))


@pytest.mark.skipif(not has_torchmetrics, reason="torchmetrics is not installed")
def test_a_metric_of_torchmetrics_is_summed_over_ranks(together):
    number, out = together
    value, counts = rank_jobs.torchmetrics_of_ranks()
    found = [torch.load(out / f"torchmetrics_of_ranks.{rank}.pt") for rank in range(number)]
    assert all(one[0] == value for one in found)
    assert torch.equal(sum(one[1] for one in found), counts), "each rank has its own counts again"


def test_partners_of_same_position_are_within_a_rank(together):
    number, out = together
    whole = batch()
    parts = [Part.of(IMAGES, rank, number) for rank in range(number)]
    total, count = 0.0, int(whole["mask"].sum())
    for part in parts:  # one process that groups its batch alike
        mask = whole["mask"][part.inside]
        if part.stop - part.first < 2 or not mask.any():
            continue
        given = [whole[key][part.inside] for key in ("features", "global_features")] + [whole["weight"], whole["bias"]]
        total += float(isf.InfoSegLoss()(*given, mask)) * int(mask.sum()) / count
    for rank in range(number):
        assert float(torch.load(out / f"within_ranks.{rank}.pt")[0]) == pytest.approx(total, rel=1e-5)


def test_batch_statistics_are_those_of_all_images(together):
    number, out = together
    expected = rank_jobs.normalisation()
    for rank in range(number):
        part = Part.of(IMAGES, rank, number)
        for place, (x, y) in enumerate(zip(torch.load(out / f"normalisation.{rank}.pt"), expected, strict=True)):
            torch.testing.assert_close(x, y[part.inside] if place < 2 else y, rtol=1e-4, atol=1e-4)


def test_the_main_rank_prints_each_warning_once(together):
    number, out = together
    printed = [torch.load(out / f"warnings_of_ranks.{rank}.pt") for rank in range(number)]
    others = [f"rank {rank}: of number {rank}" for rank in range(1, number)]
    assert printed == [["of every rank", "of number 0", *others], *[[]] * (number - 1)]


SHORT = TINY | {"recipe": "paper", "steps": 12, "log_every": 2, "checkpoint_every": 5, "eval_every": 0}
SHORT |= {"rank_timeout": 15}


def torchrun(how: dict, out: Path, *more: str, options: tuple[str, ...] = ()) -> subprocess.Popen:
    """Two ranks train in `out`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]
    command += ["-m", "infoseg_fast", "train", "--out", str(out), *more]
    command += [f"--{name.replace('_', '-')}={value}" for name, value in how.items()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    place = Path(__file__).parent  # of rank_faults
    return subprocess.Popen(command, cwd=place, env=environment, stderr=subprocess.PIPE, text=True,
                            start_new_session=True)  # fmt: skip


def finished(process: subprocess.Popen) -> str:
    """What a process that must succeed wrote."""
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said
    return said


def final(run: Path) -> dict:
    content = RunFolder(run).load()
    assert content["step"] == SHORT["steps"]
    return content["recipe"]


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    run_ranks(2, out, [("train_in", {"run": SHORT | {"data": data}}, str(out))])
    return out / "run"


@pytest.mark.parametrize("number", [pytest.param(signal.SIGKILL, marks=pytest.mark.long), signal.SIGTERM])
def test_two_ranks_that_were_ended_go_on_to_the_same_bits(data, tmp_path, request, number):
    how = SHORT | {"data": data, "checkpoint_every": 3}
    process = torchrun(how | {"steps": 3000}, tmp_path / "run")
    deadline = time.monotonic() + 120
    while not (tmp_path / "run/metrics.jsonl").is_file():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    if number == signal.SIGKILL:
        ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for one in [process.pid, *map(int, ranks)]:  # torchrun first, so that it reports nothing
            os.kill(one, number)
        process.communicate(timeout=60)
    else:  # to torchrun, which passes it on
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
        assert "ended by SIGTERM after a checkpoint of step" in said
        steps = RunFolder(tmp_path / "run").load()["step"]
        assert steps >= json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])["step"]
        return
    resumed = {"run": {"data": data, "steps": SHORT["steps"], "resume": True}}
    run_ranks(2, tmp_path, [("train_in", resumed, str(tmp_path))])
    found, expected = final(tmp_path / "run"), final(request.getfixturevalue("undisturbed"))
    assert all(torch.equal(found[name], x) for name, x in expected.items())


@pytest.mark.long
def test_a_rank_that_dies_or_hangs_ends_the_start_and_a_restart_goes_on(data, tmp_path, undisturbed):
    how = SHORT | {"data": data, "recipe": "rank_faults:Failing"}
    said = finished(torchrun(how, tmp_path / "run", options=("--max-restarts", "2")))
    assert said.count("another rank ended, or did not answer within 15 s") == 2
    found, expected = final(tmp_path / "run"), final(undisturbed)
    assert all(torch.equal(found[name], x) for name, x in expected.items())


@pytest.mark.long
def test_ranks_that_compile_their_steps_have_the_losses_of_one_process(data, tmp_path):
    how = TINY | RECIPES["reassigned"] | {"data": data, "steps": 3, "eval_every": 0}
    run_ranks(2, tmp_path / "two", [("train_in", {"run": how | {"compile": True}}, str(tmp_path / "two"))])
    rank_jobs.train_in({"run": how}, str(tmp_path / "one"))
    found, expected = (RunFolder(tmp_path / name / "run").read_metrics() for name in ("two", "one"))
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in expected], rel=1e-4)
