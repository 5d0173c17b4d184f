"""A rehearsal of 64 ranks in threads of one process, and the parts of a step."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import write_folder
from torch.testing._internal.distributed.multi_threaded_pg import _install_threaded_pg, _uninstall_threaded_pg

import infoseg_fast as isf
from infoseg_fast.augment import augmented
from infoseg_fast.config import Settings
from infoseg_fast.data.crops import CropSampler, Part
from infoseg_fast.distributed.objective import chosen_positions, loss_over_ranks
from infoseg_fast.distributed.sums import gathered, sizes_of_ranks
from infoseg_fast.distributed.world import World, rank, ranks
from infoseg_fast.errors import DataError
from infoseg_fast.run_folder import RunFolder
from infoseg_fast.train import train

RANKS = 64


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("number", [1, 2, 3, 64])
def test_the_ranks_parts_of_every_step_are_the_step_of_one_process(number, accumulate):
    """So every image is read once per epoch, and the seed means the same run."""
    size, batch_size, least = 712, 256, number * accumulate
    alone = CropSampler(size, batch_size, least, 5, 2, 9)
    shared = [CropSampler(size, batch_size, least, 5, 2, 9, r, number, accumulate) for r in range(number)]
    batches = [iter(sampler) for sampler in shared]
    parts = [sampler.parts() for sampler in shared]
    for step, expected in enumerate(alone, start=2):
        found, places = [], []
        for _ in range(accumulate):
            found += [crop for one in batches for crop in next(one)]
            places += [next(one) for one in parts]
        assert found == expected
        assert [i for part in places for i in range(part.first, part.stop)] == list(range(len(expected)))
        assert sum(part.share for part in places) == pytest.approx(1) and min(p.stop - p.first for p in places) > 0
        assert {part.total for part in places} == {256 if step % 3 < 2 else 200}
    epoch = CropSampler(size, batch_size, least, 5, 0, 3)
    assert sorted(crop.index for batch in epoch for crop in batch) == list(range(size))


def test_parts_are_augmented_as_the_whole_batch():
    settings = Settings.create({"data": "x", "jitter": 0.3})
    images, mask = torch.rand(7, 3, 8, 8), torch.rand(7, 8, 8) < 0.5
    whole = augmented(images, mask, settings, 3)
    parts = [Part.of(7, r, 3) for r in range(3)]
    found = [augmented(images[p.inside], mask[p.inside], settings, 3, p) for p in parts]
    for expected, pieces in zip(whole, zip(*found, strict=True), strict=True):
        assert torch.equal(torch.cat(pieces), expected)


def in_threads(act) -> list:
    """What `act()` returns on each of 64 ranks."""
    results, failures, store = [None] * RANKS, [], dist.HashStore()
    _install_threaded_pg()
    torch._C._distributed_c10d._set_thread_isolation_mode(True)

    def enter(number: int) -> None:
        try:
            dist.init_process_group("threaded", rank=number, world_size=RANKS, store=store)
            results[number] = act()
        except BaseException as error:
            failures.append(error)
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()

    threads = [threading.Thread(target=enter, args=(number,), daemon=True) for number in range(RANKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    torch._C._distributed_c10d._set_thread_isolation_mode(False)
    _uninstall_threaded_pg()
    assert not failures, failures[0]
    return results


def test_gathers_of_64_ranks_have_the_right_sizes_and_the_loss_is_that_of_one_process():
    B, K, C, D = 150, 4, 6, 8
    generator = torch.Generator().manual_seed(0)
    features, H = torch.randn(B, C, 2, 3, generator=generator), torch.randn(B, K, D, generator=generator)
    W, b = torch.randn(D, C, generator=generator) / 3, torch.randn(D, generator=generator)
    criterion = isf.InfoSegLoss(estimator="infonce", num_negatives="all", balance=2.0)

    def act():
        part = Part.of(B, rank(), ranks())
        sizes = sizes_of_ranks(part.stop - part.first)
        own = H[part.inside].clone().requires_grad_()
        rows = gathered(own, sizes)
        rows.sum().backward()  # every rank's sum reaches every row
        loss = loss_over_ranks(criterion, features[part.inside], H[part.inside], W, b, None) * part.share
        with World(False, 60.0) as world:
            total = world.sum_gradients([], loss)
            return sizes, rows.detach(), own.grad, total, world.is_main

    expected = criterion(features, H, W, b)
    found = in_threads(act)
    assert sum(is_main for *_, is_main in found) == 1
    for sizes, rows, gradient, total, _ in found:
        assert sum(sizes) == B and max(sizes) - min(sizes) <= 1
        assert rows.shape == (B, K, D) and torch.equal(rows, H)
        assert torch.equal(gradient, torch.full_like(gradient, RANKS))
        torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)


def test_64_ranks_write_the_run_folder_once(tmp_path, monkeypatch):
    data = write_folder(tmp_path / "data", number=2)
    writes = []
    write_config = RunFolder.write_config
    monkeypatch.setattr(
        RunFolder, "write_config", lambda self, *arguments: writes.append(rank()) or write_config(self, *arguments)
    )

    def act():
        with World(False, 60.0) as world, RunFolder(tmp_path / "run") as run:
            settings, recorded = world.from_main(lambda: run.open({"data": str(data), "batch_size": 128}, False))
            if world.is_main:
                run.write_config(settings, {"images": 2})
            with pytest.raises(DataError, match="exists"):
                world.from_main(lambda: RunFolder(tmp_path / "run").open({}, False))
            return settings, recorded

    found = in_threads(act)
    assert writes == [0] and len({settings for settings, _ in found}) == 1
    assert Path(tmp_path, "run/config.json").is_file()


def test_an_accumulated_step_is_the_step_of_the_whole_batch_where_the_loss_is_a_mean_over_images(
    tmp_path, monkeypatch, without_curves
):
    """A recipe without batch normalisation and negatives; those of the others are per part."""
    (tmp_path / "own.py").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    data = str(write_folder(tmp_path / "data", number=16))
    how = {"data": data, "recipe": "own:Mean", "crop": 32, "batch_size": 8, "steps": 5, "log_every": 1}
    for name, accumulate in (("whole", 1), ("parts", 3)):
        train(out=tmp_path / name, **how | {"accumulate": accumulate})
    one, other = (RunFolder(tmp_path / name) for name in ("whole", "parts"))
    expected = [row["loss"] for row in one.read_metrics()]
    assert [row["loss"] for row in other.read_metrics()] == pytest.approx(expected, rel=1e-5)
    for x, y in zip(one.load()["recipe"].values(), other.load()["recipe"].values(), strict=True):
        torch.testing.assert_close(x, y)


RECIPE = """
from infoseg_fast.recipe.paper import PaperRecipe

class Mean(PaperRecipe):
    defaults = {**PaperRecipe.defaults, "width": 4, "dim": 8}

    def loss(self, step, images, mask):
        self.network.model.eval()
        return (self.network.model(images)[1] - 1).square().mean()

    def metrics(self):
        return {}
"""


@pytest.mark.parametrize(
    "how", [{"estimator": "infonce", "num_negatives": "all"}, {"num_negatives": 2}, {"negatives": "reassigned"}]
)
def test_the_loss_at_drawn_positions_has_the_expectation_of_the_loss_at_all(how):
    torch.manual_seed(0)
    features, H = torch.randn(4, 5, 4, 6), torch.randn(4, 3, 8)
    W, b = torch.randn(8, 5), torch.randn(8)
    criterion = isf.InfoSegLoss(balance=3.0, **how)
    expected = float(criterion(features, H, W, b))
    draws = [chosen_positions(6, features, 0, step) for step in range(300)]
    assert all(len(draw) == 6 == len(set(draw.tolist())) for draw in draws)
    times = np.bincount(torch.cat(draws).numpy(), minlength=24)
    assert abs(times - 300 * 6 / 24).max() < 6 * np.sqrt(300 * 0.25 * 0.75)  # every position as often
    found = np.array([float(loss_over_ranks(criterion, features, H, W, b, None, chosen=draw)) for draw in draws])
    assert abs(found.mean() - expected) < 4 * found.std() / np.sqrt(len(found))
    assert chosen_positions(24, features, 0, 0) is None
    assert float(loss_over_ranks(criterion, features, H, W, b, None)) == pytest.approx(expected, rel=1e-5)


def test_too_small_a_batch_for_the_parts_is_named(tmp_path):
    with pytest.raises(DataError, match=r"--batch-size must be at least 12 for 1 ranks, --accumulate 4"):
        Settings.create({"data": "x", "num_negatives": 2, "recipe": "paper", "accumulate": 4, "batch_size": 8})
