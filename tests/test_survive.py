"""A run survives what happens in a week: signals, damaged files, a full disk, losses that are not
finite. Each test injects the fault.
"""

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_folder
from processes import CONTEXT
from test_train import SMALL, checkpoint_file, losses, rows, same_weights, weights

from infoseg_fast import checkpoint, cli
from infoseg_fast.data import crops, open_set
from infoseg_fast.data.damaged import skip_damaged
from infoseg_fast.errors import DataError
from infoseg_fast.recipe.default import DefaultRecipe
from infoseg_fast.train import train

pytestmark = pytest.mark.usefixtures("without_curves")
TINY = SMALL | {"width": 4, "dim": 8, "recipe": "paper"}  # no appearance term: its sample is not read


@pytest.fixture
def data(tmp_path) -> str:
    return str(write_folder(tmp_path / "data", number=10, side=32))


@pytest.fixture
def during(monkeypatch):
    """Calls a function after the step of that number."""

    def install(at: int, act) -> None:
        after_step = DefaultRecipe.after_step

        def acting(self, step):
            after_step(self, step)
            if step + 1 == at:
                act()

        monkeypatch.setattr(DefaultRecipe, "after_step", acting)

    yield install
    monkeypatch.undo()


def arguments(how: dict, out: Path) -> list[str]:
    return ["train", "--out", str(out), *(f"--{name.replace('_', '-')}={value}" for name, value in how.items())]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGINT, 130)], ids=lambda x: str(x)
)
def test_a_signal_saves_a_checkpoint_and_the_run_goes_on_to_the_same_bits(
    data, tmp_path, during, monkeypatch, capsys, number, status
):
    how = TINY | {"data": data, "steps": 12}
    train(out=tmp_path / "whole", **how)
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        during(7, lambda: os.kill(os.getpid(), number))
        assert cli.main(arguments(how, tmp_path / "stopped")) == status
        patch.undo()
    monkeypatch.undo()
    assert signal.getsignal(number) == before
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "after a checkpoint of step 7; --resume continues" in said
    assert torch.load(checkpoint_file(tmp_path / "stopped"), weights_only=True)["step"] == 7
    train(None, tmp_path / "stopped", resume=True)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    for name in ("last", "best_loss"):
        assert same_weights(weights(tmp_path / "stopped", name), weights(tmp_path / "whole", name))


def test_a_signal_before_the_first_step_ends_at_once(data, tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys.modules["infoseg_fast.train"], "data_info", lambda *arguments: os.kill(os.getpid(), signal.SIGTERM)
    )
    assert cli.main(arguments(TINY | {"data": data, "steps": 4}, tmp_path / "run")) == 143
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_during_the_report_lets_it_finish_and_a_second_one_does_not(
    data, tmp_path, monkeypatch, capsys, times
):
    def signalled(rows):
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGTERM)
        return "data:,"

    monkeypatch.setattr("infoseg_fast.report.curves", signalled)
    assert cli.main(arguments(TINY | {"data": data, "steps": 2}, tmp_path / "run")) == 143
    assert (tmp_path / "run/report.html").is_file() == (times == 1)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.endswith("after the report; the run is finished" if times == 1 else "at once, as the second signal")


def test_a_signal_to_the_whole_group_leaves_the_reading_processes_alone(data, tmp_path):
    """As Slurm and Ctrl-C send it."""
    how = TINY | {"data": data, "steps": 100000, "workers": 2, "log_every": 1}
    command = [sys.executable, "-m", "infoseg_fast", *arguments(how, tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run/metrics.jsonl").is_file():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=60) == 143, process.stderr.read()
    step = torch.load(checkpoint_file(tmp_path / "run"), weights_only=True)["step"]
    assert step >= rows(tmp_path / "run")[-1]["step"]


def test_a_flipped_bit_is_found_or_changes_nothing(tmp_path):
    state = {"step": 3, "weights": torch.arange(1000.0), "more": {"name": "x", "loss": 0.25}}
    checkpoint.save(tmp_path, state, is_best=False)
    whole = (tmp_path / "last.pt").read_bytes()
    draw, found = random.Random(0), 0
    for place in [draw.randrange(len(whole)) for _ in range(300)]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << draw.randrange(8)
        (tmp_path / "last.pt").write_bytes(flipped)
        try:
            loaded = checkpoint.load(tmp_path, "last")
        except DataError as error:
            assert "last.pt is damaged" in str(error)
            found += 1
        else:
            assert torch.equal(loaded["weights"], state["weights"])
            assert {**loaded, "weights": 0} == {**state, "weights": 0}
    assert found > 200  # the others hit padding and fields that nothing reads


@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_a_damaged_checkpoint_is_passed_over_said_and_not_kept_as_the_previous_one(data, tmp_path, damage, caplog):
    how, run = TINY | {"data": data, "steps": 8}, tmp_path / "run"
    train(out=run, **how)
    last, whole = checkpoint_file(run), weights(run)
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 4
    last.unlink()  # best_loss may be the same file
    last.write_bytes(content if damage == "flipped" else content[: len(content) // 3])
    train(None, run, resume=True)
    assert [r.message for r in caplog.records if "damaged" in r.message and "of step 4" in r.message]
    assert same_weights(weights(run), whole)
    assert torch.load(checkpoint_file(run, "previous"), weights_only=True)["step"] == 4
    for name in ("last", "previous"):
        checkpoint_file(run, name).write_bytes(content[:100])
    with pytest.raises(DataError, match="damaged"):
        train(None, run, resume=True, steps=12)


@pytest.mark.parametrize("file", ["metrics.jsonl", ".report.html.tmp", ".evaluation.json.tmp", "tensorboard"])
def test_a_full_disk_is_one_line_and_the_run_resumes(data, tmp_path, file, monkeypatch):
    how, run = TINY | {"data": data, "steps": 8}, tmp_path / "run"
    train(out=tmp_path / "whole", **how)
    train(out=run, **how | {"steps": 4})
    with monkeypatch.context() as patch:
        if file == "tensorboard":
            from tensorboard.summary.writer.record_writer import RecordWriter

            def full(self, data):
                raise OSError(28, "No space left on device")

            patch.setattr(RecordWriter, "write", full)
        else:
            kept = (run / file).read_bytes() if (run / file).exists() else None
            (run / file).unlink(missing_ok=True)
            (run / file).symlink_to("/dev/full")
        with pytest.raises(DataError, match=r"could not be written: No space left on device") as caught:
            train(None, run, resume=True, steps=8)
        assert "\n" not in str(caught.value)
    if file != "tensorboard":
        (run / file).unlink(missing_ok=True)
        if kept is not None:
            (run / file).write_bytes(kept)
    train(None, run, resume=True, steps=8)
    assert losses(run)[-2:] == losses(tmp_path / "whole")[-2:]
    assert same_weights(weights(run), weights(tmp_path / "whole"))


def vanish(data: str, stem: str) -> None:
    Path(data, f"images/{stem}.png").unlink()


def cut(data: str, stem: str) -> None:
    path = Path(data, f"images/{stem}.png")
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", [vanish, cut])
def test_an_image_that_goes_in_mid_epoch_stops_the_run_or_is_skipped(
    data, tmp_path, monkeypatch, during, caplog, damage, workers
):
    monkeypatch.setattr(crops, "IN_MEMORY_BYTES", 0)
    Path(data, "eval.txt").write_text("im0\n")
    how = TINY | {"data": data, "steps": 24, "workers": workers}
    during(2, lambda: damage(data, "im3"))
    with pytest.raises(DataError, match=r"image .*im3\.png (does not exist|cannot be read)") as caught:
        train(out=tmp_path / "stopped", **how)
    assert "\n" not in str(caught.value)
    write_folder(tmp_path / "again", number=10, side=32)
    Path(data).rename(tmp_path / "gone")
    (tmp_path / "again").rename(data)
    train(out=tmp_path / "skipped", **how | {"skip_damaged": True})
    named = [r.getMessage() for r in caplog.records if "im3.png" in r.getMessage()]
    assert len([text for text in named if text.startswith("skipped: ")]) == 1
    assert losses(tmp_path / "skipped")[-1][0] == 24


@pytest.mark.parametrize("scored", [False, True])
def test_a_set_that_skips_damaged_images_is_pickled(data, scored):
    """Worker processes that are not forked get the set so."""
    images = skip_damaged(open_set(data, "train", num_classes=2), scored)
    images.damaged[1] = "its error"
    copied = pickle.loads(pickle.dumps(images))
    assert vars(copied)["damaged"] == {1: "its error"} and type(copied) is type(images)
    assert np.array_equal(copied.read(2)[0], images.read(2)[0])


SCRIPT = """
import multiprocessing, sys
multiprocessing.set_start_method("forkserver")  # the default of Python 3.14
import infoseg_fast as isf
from infoseg_fast.data import crops
crops.IN_MEMORY_BYTES = 0
how = {"classes": 2, "steps": 2, "width": 4, "dim": 4, "batch_size": 4, "crop": 32, "workers": 2}
isf.train(sys.argv[1], sys.argv[2], recipe="paper", **how)
"""


def test_a_script_trains_with_worker_processes_whatever_their_default_start_is(data, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)  # calls train without `if __name__ == "__main__"`
    done = subprocess.run([sys.executable, script, data, tmp_path / "run"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_damaged_image_is_skipped_from_the_start_and_left_out_of_the_scores(
    data, tmp_path, monkeypatch, caplog, in_memory
):
    if not in_memory:
        monkeypatch.setattr(crops, "IN_MEMORY_BYTES", 0)
    cut(data, "im3")
    # The default recipe reads a sample of crops besides those of its steps.
    how = TINY | {"data": data, "steps": 6, "skip_damaged": True, "workers": 0, "recipe": "default"}
    scores = train(out=tmp_path / "run", **how)
    assert scores["num_pixels"] == 9 * 32 * 32
    said = [r.getMessage() for r in caplog.records if "im3.png" in r.getMessage()]
    assert sum(text.startswith("skipped: ") for text in said) == 1
    assert sum(text.startswith("left out of the scores: ") for text in said) == 1


@pytest.fixture
def nonfinite(monkeypatch):
    """The loss of step number 5 is NaN."""
    loss = DefaultRecipe.loss

    def spoilt(self, step, images, mask):
        return loss(self, step, images, mask) * (float("nan") if step == 5 else 1.0)

    monkeypatch.setattr(DefaultRecipe, "loss", spoilt)


def test_a_loss_that_is_not_finite_stops_with_the_names_of_its_images(data, tmp_path, nonfinite):
    run = tmp_path / "run"
    with pytest.raises(DataError, match=r"not finite at step 5; .*nonfinite\.json names its images"):
        train(out=run, **TINY | {"data": data, "steps": 12})
    record = json.loads((run / "nonfinite.json").read_text())
    sampler = crops.CropSampler(10, 4, 2, 0, 5, 6)
    assert record == {"step": 5, "images": [f"im{crop.index}" for crop in next(iter(sampler))]}
    assert all(x.isfinite().all() for x in weights(run).values())
    train(None, run, resume=True, skip_nonfinite=True)  # from step 4
    assert losses(run)[-1][0] == 12 and [row.get("skipped_steps") for row in rows(run)] == [None, None, 1, 0, 0, 0]
    assert all(x.isfinite().all() for x in weights(run).values())


def test_weights_that_are_not_finite_are_not_saved(data, tmp_path, monkeypatch):
    loss = DefaultRecipe.loss

    def spoilt(self, step, images, mask):
        value = loss(self, step, images, mask)
        if step == 5:  # the loss is finite, its gradient is not
            value.register_hook(lambda gradient: gradient * float("nan"))
        return value

    monkeypatch.setattr(DefaultRecipe, "loss", spoilt)
    with pytest.raises(DataError, match=r"the gradient was not finite at step 5; .*nonfinite\.json names its images"):
        train(out=tmp_path / "run", **TINY | {"data": data, "steps": 12, "checkpoint_every": 2})
    assert all(x.isfinite().all() for x in weights(tmp_path / "run").values())


def test_a_skipped_step_changes_no_weight_no_averaged_weight_and_no_running_statistic(data, tmp_path, nonfinite):
    how = TINY | {"data": data, "checkpoint_every": 1, "skip_nonfinite": True, "average": 0.9}
    train(out=tmp_path / "run", **how | {"steps": 5})
    before = torch.load(checkpoint_file(tmp_path / "run"), weights_only=True)
    with pytest.raises(DataError, match="no loss was finite"):  # of the steps since the last log line
        train(None, tmp_path / "run", resume=True, steps=6, log_every=1)
    train(None, tmp_path / "run", resume=True, steps=7, log_every=7)
    state = torch.load(checkpoint_file(tmp_path / "run", "previous"), weights_only=True)
    assert state["step"] == 6 and same_weights(state["recipe"], before["recipe"])


def test_the_lowest_loss_is_remembered_over_steps_that_are_skipped(data, tmp_path, monkeypatch):
    loss = DefaultRecipe.loss

    def given(self, step, images, mask):
        found = loss(self, step, images, mask)
        return found - found.detach() + (1.0, float("nan"), 3.0, 2.0)[step]

    monkeypatch.setattr(DefaultRecipe, "loss", given)
    how = TINY | {"data": data, "checkpoint_every": 1, "log_every": 4, "skip_nonfinite": True}
    train(out=tmp_path / "run", **how | {"steps": 4})
    best = torch.load(checkpoint_file(tmp_path / "run", "best_loss"), weights_only=True)
    assert (best["step"], best["best_loss"]) == (1, 1.0)


def test_a_step_whose_gradient_is_not_finite_is_counted(data, tmp_path, monkeypatch):
    loss = DefaultRecipe.loss

    def spoilt(self, step, images, mask):
        found = loss(self, step, images, mask)
        return found + (found * 0).sqrt() if step == 1 else found  # the root has no finite gradient

    monkeypatch.setattr(DefaultRecipe, "loss", spoilt)
    train(out=tmp_path / "run", **TINY | {"data": data, "steps": 4, "log_every": 4, "skip_nonfinite": True})
    assert rows(tmp_path / "run")[-1]["skipped_steps"] == 1


def test_a_new_run_on_a_full_disk_leaves_nothing(data, tmp_path, monkeypatch):
    from infoseg_fast import run_folder

    write = run_folder.write_atomically

    def full(path, content):
        if path.name == "config.json":
            raise DataError(f"{path} could not be written") from OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(run_folder, "write_atomically", full)
    (tmp_path / "empty").mkdir()
    for name in ("run", "empty"):
        with pytest.raises(DataError):
            train(out=tmp_path / name, **TINY | {"data": data, "steps": 2})
    assert sorted(os.listdir(tmp_path)) == ["data", "empty"] and not os.listdir(tmp_path / "empty")


def test_a_recipe_that_refuses_its_sample_leaves_nothing(data, tmp_path, monkeypatch):
    def refuse(self, sample):
        raise DataError("too few crops")

    monkeypatch.setattr(DefaultRecipe, "begin", refuse)
    with pytest.raises(DataError, match="too few crops"):
        train(out=tmp_path / "run", **TINY | {"data": data, "steps": 2})
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_named(data, tmp_path):
    with pytest.raises(DataError, match=r"--out /proc/run cannot be made: "):
        train(out="/proc/run", **TINY | {"data": data, "steps": 4})
    train(out=tmp_path / "run", **TINY | {"data": data, "steps": 4})
    (tmp_path / "run/.lock").unlink()
    (tmp_path / "run/.lock").mkdir()
    with pytest.raises(DataError, match=r"run cannot be written: "):
        train(None, tmp_path / "run", resume=True, steps=6)


def test_a_clock_that_jumps_changes_nothing(data, tmp_path, monkeypatch):
    how = TINY | {"data": data, "steps": 6}
    train(out=tmp_path / "whole", **how)
    now = iter(np.cumsum(np.tile([3600.0, -7200.0], 100000)))
    monkeypatch.setattr(time, "time", lambda: 1.7e9 + next(now))
    train(out=tmp_path / "run", **how)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert all(row["images_per_s"] > 0 for row in rows(tmp_path / "run"))


def test_checkpoints_hold_no_code(data, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    train(out=tmp_path / "run", **TINY | {"data": data, "steps": 4})
    path = checkpoint_file(tmp_path / "run")
    torch.save({"step": 4, "layout": 1, "x": Evil()}, path)
    checkpoint_file(tmp_path / "run", "previous").unlink(missing_ok=True)
    with pytest.raises(DataError, match=r"last\.pt is damaged"):
        train(None, tmp_path / "run", resume=True, steps=6)
    assert not (tmp_path / "made").exists()


@pytest.mark.long
def test_ten_kills_at_random_moments_leave_the_same_bits(data, tmp_path):
    how = TINY | {"data": data, "steps": 200, "checkpoint_every": 5, "workers": 1}
    begun = time.monotonic()
    train(out=tmp_path / "whole", **how)
    lasted = time.monotonic() - begun
    command = [*arguments(how, tmp_path / "killed"), "--resume"]
    draw, kills = random.Random(0), 0
    while kills < 10:
        process = CONTEXT.Process(target=cli.main, args=(command,))
        process.start()
        process.join(timeout=draw.uniform(0, lasted / 4))
        if not process.is_alive():
            break
        process.kill()
        process.join()
        kills += 1
    assert cli.main(command) == 0
    assert kills >= 3 and losses(tmp_path / "killed") == losses(tmp_path / "whole")
    for name in ("last", "best_loss"):
        assert same_weights(weights(tmp_path / "killed", name), weights(tmp_path / "whole", name))
