"""Stand-ins for other packages: the answers, shapes, dtypes and states of those packages."""

import importlib
import pickle
import sys

import numpy as np
import pytest
import scipy.optimize
import torch

import infoseg_fast as isf
from infoseg_fast.compat.torch_linear_assignment import assignment_to_indices, batch_linear_assignment

# torch-linear-assignment


def test_a_worker_without_a_task_has_minus_one():
    cost = torch.tensor([[[8, 4, 7], [5, 2, 3], [9, 6, 7], [9, 4, 8]]])
    found = batch_linear_assignment(cost)
    assert found.dtype == torch.int64 and found.tolist() == [[0, 2, -1, 1]]
    assert batch_linear_assignment(cost.mT).tolist() == [[0, 3, 1]]


@pytest.mark.parametrize("shape", [(5, 20, 37), (5, 37, 20), (1, 6, 6), (0, 4, 7), (2, 0, 3), (2, 3, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_assignments_and_their_indices_are_those_of_scipy(shape, dtype):
    cost = torch.randperm(int(np.prod(shape)) or 1)[: int(np.prod(shape))].reshape(shape).to(dtype)
    assignment = batch_linear_assignment(cost)
    assert assignment.shape == shape[:2] and assignment.dtype == torch.int64
    rows, columns = assignment_to_indices(assignment)
    pairs = min(shape[1:]) if shape[0] else 0
    assert rows.shape == columns.shape == (shape[0], pairs) and rows.dtype == columns.dtype == torch.int64
    for problem, row, column in zip(cost.numpy(), rows, columns, strict=True):
        expected = scipy.optimize.linear_sum_assignment(problem)
        assert problem[row, column].sum() == problem[expected].sum()
        assert row.tolist() == expected[0].tolist() and len(set(column.tolist())) == pairs


def test_answers_are_those_of_the_peer():
    peer = pytest.importorskip("torch_linear_assignment")
    for shape in ((16, 20, 40), (1, 30, 10), (0, 5, 5)):
        cost = torch.randn(shape)
        found, expected = batch_linear_assignment(cost), peer.batch_linear_assignment(cost)
        assert torch.equal(found, expected) and found.dtype == expected.dtype
        for own, its in zip(assignment_to_indices(found), peer.assignment_to_indices(expected), strict=True):
            assert torch.equal(own, its) and own.dtype == its.dtype


def test_wrong_problems_and_unequal_assignments_raise():
    with pytest.raises(ValueError, match=r"3-dimensional tensor with shape \(B, W, T\)"):
        batch_linear_assignment(torch.ones(3, 3))
    with pytest.raises(TypeError, match="cost must be a tensor"):
        batch_linear_assignment(np.ones((1, 3, 3)))
    with pytest.raises(ValueError, match="infeasible"):
        batch_linear_assignment(torch.full((1, 2, 2), torch.inf))
    with pytest.raises(ValueError, match="Inconsistent matching sizes"):
        assignment_to_indices(torch.tensor([[0, 1], [-1, 0]]))


def test_gradients_and_inference_mode_do_not_disturb():
    cost = torch.rand(2, 5, 3, requires_grad=True)
    with torch.inference_mode():
        assert torch.equal(batch_linear_assignment(cost), batch_linear_assignment(cost.detach()))


# torchmetrics


@pytest.fixture
def metrics():
    pytest.importorskip("torchmetrics")
    from infoseg_fast.compat import torchmetrics

    return torchmetrics


def label_maps(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 3, (4, 6, 5), generator=generator)
    noise = torch.randint(0, 5, target.shape, generator=generator)
    preds = torch.where(torch.rand(target.shape, generator=generator) < 0.6, (target + 1) % 3, noise)
    target[:, 0, 0] = 255
    return preds, target.to(torch.uint8)


def test_values_over_batches_are_those_of_cluster_metrics(metrics):
    expected = isf.ClusterMetrics(5, 3)
    found = metrics.ClusterAccuracy(5, 3), metrics.MatchedJaccardIndex(5, 3)
    each = metrics.MatchedJaccardIndex(5, 3, average="none"), metrics.MatchedJaccardIndex(5, 3, average="weighted")
    for seed in range(3):
        preds, target = label_maps(seed)
        expected.update(preds, target)
        for metric in (*found, *each):
            metric.update(preds.to(torch.int16), target)
    scores = expected.compute()
    values = [metric.compute() for metric in (*found, *each)]
    assert all(value.dtype == torch.float32 for value in values)
    np.testing.assert_allclose([float(x) for x in values[:2]], [scores["pixel_accuracy"], scores["mean_iou"]], 1e-6)
    np.testing.assert_allclose(values[2], scores["iou"], 1e-6)
    np.testing.assert_allclose(values[3], np.dot(scores["iou"], scores["class_shares"]), 1e-6)
    for metric in found:
        assert metric.confusion.sum() == scores["num_pixels"]
        metric.reset()
        assert metric.confusion.sum() == 0
        with pytest.warns(UserWarning, match="before the ``update``"):
            assert metric.compute().isnan()


def test_values_are_those_of_torchmetrics(metrics):
    from torchmetrics.classification import MulticlassJaccardIndex

    preds, target = (x.flatten() for x in label_maps())
    preds, target = preds.clamp(max=2), target.long()
    own = metrics.ClusterAccuracy(num_classes=3)
    mapping = torch.tensor(isf.match_clusters(isf.confusion_matrix(preds, target, 3, 3)).mapping)
    for average in ("macro", "weighted", "none"):
        theirs = MulticlassJaccardIndex(num_classes=3, ignore_index=255, average=average)(mapping[preds], target)
        torch.testing.assert_close(metrics.MatchedJaccardIndex(3, average=average)(preds, target), theirs)
    pytest.importorskip("torch_linear_assignment")
    from torchmetrics.clustering import ClusterAccuracy

    counted = target != 255
    theirs = ClusterAccuracy(num_classes=3)(preds[counted], target[counted])
    torch.testing.assert_close(own(preds, target), theirs)


def test_scores_of_classes_are_taken_as_their_largest(metrics):
    preds, target = label_maps()
    probs = torch.nn.functional.one_hot(preds, 5).movedim(-1, 1).float()
    by_label, by_probs = (metrics.ClusterAccuracy(5, 3)(x, target) for x in (preds, probs))
    assert by_label == by_probs
    with pytest.raises(ValueError, match=r"preds of floating-point scores must be \[B, 5, \.\.\.\]"):
        metrics.ClusterAccuracy(5, 3)(probs[:, :4], target)


def test_a_pickled_metric_goes_on(metrics):
    from torchmetrics import MetricCollection

    preds, target = label_maps()
    both = MetricCollection([metrics.ClusterAccuracy(5, 3), metrics.MatchedJaccardIndex(5, 3)])
    both.update(preds, target)
    again = pickle.loads(pickle.dumps(both))
    for collection in (both, again):
        collection.update(*label_maps(1))
    assert again.compute() == both.compute() and set(both.compute()) == {"ClusterAccuracy", "MatchedJaccardIndex"}
    one = metrics.ClusterAccuracy(5, 3)
    one.persistent(True)
    one.update(preds, target)
    other = metrics.ClusterAccuracy(5, 3)
    other.load_state_dict(one.state_dict(), strict=False)
    assert torch.equal(other.confusion, one.confusion)


def test_a_metric_reset_in_inference_mode_works_outside(metrics):
    metric = metrics.ClusterAccuracy(5, 3)
    with torch.inference_mode():
        metric.update(*label_maps())
        inside = metric.compute()
        metric.reset()
    metric.update(*label_maps())
    assert metric.compute() == inside


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "num_clusters must be a whole number of at least 1, not None"),
        ({"num_classes": 2.5}, "num_clusters must be"),
        ({"num_clusters": 0, "num_classes": 3}, "num_clusters must be a whole number of at least 1, not 0"),
        ({"num_classes": 3, "method": "greedy"}, "method must be one of hungarian, many_to_one"),
        ({"num_classes": 3, "average": "mean"}, "average must be one of macro"),
    ],
)
def test_wrong_arguments_of_a_metric_are_named(metrics, arguments, message):
    with pytest.raises(ValueError, match=message):
        metrics.MatchedJaccardIndex(**arguments)


def test_counts_stay_whole_numbers(metrics):
    metric = metrics.ClusterAccuracy(5, 3)
    metric.set_dtype(torch.float16)
    metric.update(*label_maps())
    assert metric.confusion.dtype == torch.int64 and metric.compute() > 0


def test_labels_out_of_range_raise(metrics):
    with pytest.raises(ValueError, match="5"):
        metrics.ClusterAccuracy(5, 3).update(torch.tensor([5]), torch.tensor([0]))
    with pytest.raises(TypeError, match="preds must be a tensor, not ndarray"):
        metrics.ClusterAccuracy(5, 3).update(np.zeros(1, int), torch.tensor([0]))
    with pytest.raises(TypeError, match="target must be a tensor, not list"):
        metrics.ClusterAccuracy(5, 3).update(torch.tensor([0]), [0])


# Imports


@pytest.mark.parametrize("extra", ["torchmetrics", "lightning"])
def test_a_missing_package_is_one_line_that_names_its_extra(extra, monkeypatch):
    module = f"infoseg_fast.compat.{extra}"
    monkeypatch.delitem(sys.modules, module, raising=False)
    for name in list(sys.modules):
        if name.split(".")[0] in ("torchmetrics", "lightning", "pytorch_lightning"):
            monkeypatch.delitem(sys.modules, name)
    for name in ("torchmetrics", "lightning", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises ImportError
    with pytest.raises(ImportError) as error:
        importlib.import_module(module)
    assert f"pip install 'infoseg-fast[{extra}]'" in str(error.value) and "\n" not in str(error.value)
    monkeypatch.delitem(sys.modules, module, raising=False)


# lightning


SMALL = {"width": 4, "dim": 8, "batch_size": 4, "crop": 32, "depth": 0}


def test_a_lightning_module_calls_every_hook_of_a_recipe(folder, monkeypatch):
    lightning = pytest.importorskip("pytorch_lightning")
    from infoseg_fast.compat.lightning import InfoSegModule
    from infoseg_fast.errors import DataError

    module, called = InfoSegModule.from_data(str(folder), recipe="paper", **SMALL), []
    for name in ("before_step", "loss", "after_step"):
        hook = getattr(module.recipe, name)

        def noted(step, *given, name=name, hook=hook):
            called.append((name, step))
            return hook(step, *given)

        monkeypatch.setattr(module.recipe, name, noted)
    how = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    lightning.Trainer(max_steps=2, limit_val_batches=0, **how).fit(module)
    assert called == [(name, step) for step in (0, 1) for name in ("before_step", "loss", "after_step")]
    for precision in ("bf16-true", "64-true"):
        with pytest.raises(DataError, match=f"precision must be .*, not {precision}"):
            lightning.Trainer(max_steps=1, precision=precision, **how).fit(module)


@pytest.mark.parametrize("setting", [{"compile": True}, {"workers": 3}, {"skip_nonfinite": True}, {"accumulate": 2}])
def test_settings_without_effect_in_a_lightning_module_are_refused(folder, setting):
    pytest.importorskip("pytorch_lightning")
    from infoseg_fast.compat.lightning import InfoSegModule
    from infoseg_fast.errors import DataError

    with pytest.raises(DataError, match=f"{next(iter(setting))}=.* would have no effect"):
        InfoSegModule.from_data(str(folder), **SMALL | setting)


def test_a_lightning_module_skips_damaged_images(folder):
    pytest.importorskip("pytorch_lightning")
    from infoseg_fast.compat.lightning import InfoSegModule

    path = next((folder / "images").iterdir())
    path.write_bytes(path.read_bytes()[:-300])
    module = InfoSegModule.from_data(str(folder), skip_damaged=True, **SMALL)
    assert len([None for images, _ in module.train_dataloader() if len(images) == 4]) == len(module.train_set) // 4
    assert str(path) in next(iter(module.train_set.damaged.values()))


@pytest.mark.long
def test_a_lightning_module_has_the_losses_of_the_loop_and_continues_from_a_checkpoint(tmp_path, folder):
    lightning = pytest.importorskip("pytorch_lightning")
    from infoseg_fast.compat.lightning import InfoSegModule
    from infoseg_fast.errors import DataError
    from infoseg_fast.run_folder import RunFolder

    how = {"recipe": "default", "width": 8, "dim": 16, "batch_size": 4, "crop": 32, "depth": 1, "warmup": 3}
    expected = isf.train(str(folder), tmp_path / "run", steps=6, log_every=1, eval_every=0, precision="float32", **how)

    class Losses(lightning.Callback):
        def __init__(self):
            self.found = []

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            self.found.append(float(outputs["loss"]))

    def trained(steps, **more):
        losses, module = Losses(), InfoSegModule.from_data(str(folder), **how)
        trainer = lightning.Trainer(
            accelerator="cpu", max_steps=steps, callbacks=[losses], logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(module, **more)
        return trainer, module, losses.found

    trainer, module, losses = trained(6)
    rows = RunFolder(tmp_path / "run").read_metrics()
    np.testing.assert_allclose(losses, [row["loss"] for row in rows], rtol=1e-6)
    assert isinstance(module, lightning.LightningModule)
    assert trainer.callback_metrics["pixel_accuracy"] == pytest.approx(expected["pixel_accuracy"])
    images = torch.rand(1, 3, 40, 33)
    assert torch.equal(module.segmenter().segment(images), isf.load(tmp_path / "run").segment(images))

    trainer, _, first = trained(3)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    _, _, rest = trained(6, ckpt_path=tmp_path / "half.ckpt")
    np.testing.assert_allclose(first + rest, losses, rtol=1e-6)

    with pytest.raises(DataError, match="accumulate_grad_batches"):
        lightning.Trainer(accelerator="cpu", accumulate_grad_batches=2, logger=False, max_steps=1).fit(module)
