"""The training step on a device other than the CPU, without one: on the `meta` device, whose
tensors have no values, and with stand-ins for torch.cuda.
"""

import sys

import numpy as np
import pytest
import torch
from conftest import write_folder
from PIL import Image
from test_train import SMALL, losses, same_weights, weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from infoseg_fast import augment, cuda_graph, precision
from infoseg_fast.config import Settings
from infoseg_fast.cuda_graph import WARM_UP, Capture, GraphedStep, capture_for
from infoseg_fast.data import open_set
from infoseg_fast.data.crops import CropSampler, CropSet, held_in_memory
from infoseg_fast.data.resident import ResidentSet
from infoseg_fast.distributed import objective
from infoseg_fast.errors import DataError
from infoseg_fast.kernels import launch
from infoseg_fast.model import Reflected
from infoseg_fast.ops import dispatch
from infoseg_fast.recipe import DataInfo, Recipe, iic
from infoseg_fast.recipe.averaging import decay_of
from infoseg_fast.recipe.default import DefaultRecipe
from infoseg_fast.recipe.labelling import Labelling
from infoseg_fast.recipe.network import TrainedNetwork
from infoseg_fast.recipe.sample import Sample
from infoseg_fast.segmenter import Segmenter
from infoseg_fast.train import train

META = torch.device("meta")
TRAIN = sys.modules[train.__module__]  # the package has a function of the module's name


class NoWaits(TorchDispatchMode):
    """Fails on what waits for the device: a value that is read on the host, and a copy between host
    and device that is not from pinned memory. `pinned` holds the tensors that are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pinned, self.kernels = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        assert name not in WAITS or all(x.device.type == "cpu" for x in tensors), name
        target = kwargs.get("device") or (tensors[0].device if tensors else None)
        if name in ("_to_copy", "copy_") and tensors[-1].device != target:
            pinned = any(tensors[-1] is x for x in self.pinned)
            assert pinned and kwargs.get("non_blocking"), f"{name} from {tensors[-1].device} to {target}"
        elif any(x.device == META for x in tensors):
            assert all(x.device == META or not x.dim() for x in tensors), f"{name} of host and device"
        if name == "_fused_adamw_":  # has no kernel for meta tensors
            assert kwargs["lr"].device == META
            self.kernels += 1
            return None
        found = func(*args, **kwargs)
        on_device = [x for x in tree_leaves(found) if isinstance(x, torch.Tensor) and x.device == META]
        self.kernels += bool(on_device) and not func.is_view and not name.startswith(("empty", "new_empty", "detach"))
        return found


WAITS = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "equal", "_unique2", "bincount")


class LoopEndError(Exception):
    pass


class Bar:
    """Stands for the progress bar, which spans the loop: in it nothing waits, and it ends the loop
    after two steps.
    """

    def __init__(self, mode) -> None:
        self.mode, self.steps, self.kernels = mode, 0, []

    def __enter__(self):
        self.mode.__enter__()
        return self

    def __exit__(self, *error):
        self.mode.__exit__(*error)

    def update(self):
        self.steps += 1
        self.kernels.append(self.mode.kernels)
        if self.steps == 2:
            raise LoopEndError


@pytest.fixture
def kernels_on_meta(monkeypatch):
    """The Triton kernels take tensors of the meta device; launches must be recorded."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    monkeypatch.setitem(dispatch.PREFERENCE, "meta", ("triton",))
    monkeypatch.setattr(dispatch, "_unsupported", lambda op, name, *kind: None)
    monkeypatch.setattr(dispatch, "plain", lambda *tensors: True)


@pytest.fixture
def on_meta(monkeypatch, tmp_path, kernels_on_meta):
    """A function that begins a run on the meta device and returns the kernels of its steps, those
    of PyTorch and those of this package.
    """
    monkeypatch.setattr(TRAIN, "pick_device", lambda name: META)
    for module in (augment, objective, iic):
        monkeypatch.setattr(module, "generator_on", lambda *_: None)
    optimizer = sys.modules["torch.optim.optimizer"]
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: ["meta"])

    def begin(**how):
        mode = NoWaits()
        bar = Bar(mode)
        monkeypatch.setattr(TRAIN, "tqdm", lambda **_: bar)
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: mode.pinned.append(x) or x)
        data = write_folder(tmp_path / f"data{len(list(tmp_path.iterdir()))}", number=10, side=40)
        given = SMALL | {"data": str(data), "steps": 50, "log_every": 50, "checkpoint_every": 50, "jitter": 0.2} | how
        with launch.recorded() as launches, pytest.raises(LoopEndError):
            train(out=tmp_path / f"run{len(list(tmp_path.iterdir()))}", **given)
        return np.diff(bar.kernels)[-1], launches

    return begin


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"recipe": "paper", "inputs": "sobel"},
        {"recipe": "paper", "negatives": "reassigned", "num_negatives": 2, "balance": 1.0, "positions": 30},
        {"crop": 48, "loss_mask": "gt", "skip_nonfinite": True, "inputs": "grey", "accumulate": 2, "average": 0.9},
        {"recipe": "iic", "displacement": 0, "overcluster": 1.0},
    ],
    ids=["default", "paper", "reassigned", "mask", "iic"],
)
def test_nothing_in_a_step_waits_for_the_device(on_meta, how):
    torch_kernels, launches = on_meta(**how)
    assert torch_kernels > 50 and (launches or how.get("recipe") == "iic")


@pytest.mark.parametrize(
    ("act", "named"),
    [
        (lambda images: images.sum().item(), "_local_scalar_dense"),
        (lambda images: images * torch.tensor([0.1, 0.2, 0.3]).to(images.device)[:, None, None], "_to_copy from cpu"),
        (lambda images: images[torch.tensor([0, 1])], "host and device"),
    ],
)
def test_a_step_that_waits_is_found(on_meta, monkeypatch, act, named):
    loss = DefaultRecipe.loss
    monkeypatch.setattr(DefaultRecipe, "loss", lambda self, step, images, mask: act(images) or loss(images))
    with pytest.raises(AssertionError, match=named):
        on_meta()


@pytest.mark.parametrize("size", [40, 41])
def test_no_batch_of_an_evaluation_waits_for_the_device(kernels_on_meta, size):
    labelling = labelling_of_a_network().to(META)
    images = torch.empty(3, 3, size, 40, device=META)
    target = torch.empty(3, size, 40, device=META, dtype=torch.uint8)
    with launch.recorded() as launches, NoWaits():
        counts, *faults = Segmenter(labelling).count_without_waiting(images, target, 2)
    assert launches and counts.shape == (2, 2) and [x.shape for x in faults] == [(), ()]


def labelling_of_a_network() -> Labelling:
    """A labelling of the default recipe with merged classes and the refinement."""
    settings = Settings.create({"data": "x", "classes": 2, "crop": 32, "width": 4, "dim": 8, "smooth": 1})
    recipe = DefaultRecipe(settings, DataInfo(3, 2, None, [0.5] * 3, [0.2] * 3))
    crops = torch.rand(4, 3, 32, 32)
    return recipe.labelling(Sample(lambda: iter([(crops, None)])))


class Frozen(Capture):
    """Stands for CUDA: a replayed step sees the number of the step that was captured."""

    def __init__(self) -> None:
        self.progress, self.captured, self.replayed, self.warm_ups = None, 0, 0, 0

    def warm_up(self, act):
        self.warm_ups += 1
        act()

    def capture(self, act):
        self.captured += 1
        frozen = self.progress.step

        def replay():
            self.replayed += 1
            now, self.progress.step = self.progress.step, frozen
            act()
            self.progress.step = now

        return replay


@pytest.fixture
def scalars_on_the_device(monkeypatch):
    """A CPU run with the learning rate and the share of the averaged weights as tensors."""

    def before_step(self, step):
        self._share = torch.tensor(1 - decay_of(self.decay, step))

    def optimizer_for(recipe, *given):
        found = cuda_graph.optimizer_for(recipe, *given)
        found.param_groups[0]["lr"] = torch.tensor(0.0)
        return found

    monkeypatch.setattr(TrainedNetwork, "before_step", before_step)
    monkeypatch.setattr(TRAIN, "optimizer_for", optimizer_for)


def test_a_replayed_step_repeats_no_number_of_the_host(tmp_path, monkeypatch, scalars_on_the_device):
    data, frozen, add = str(write_folder(tmp_path / "data", number=10, side=32)), Frozen(), TRAIN.Progress.add
    monkeypatch.setattr("infoseg_fast.report.write", lambda *_: None)
    how = SMALL | {"data": data, "steps": 16, "jitter": 0.2, "warmup": 12, "precision": "float32", "refine": False}
    train(out=tmp_path / "eager", **how)
    monkeypatch.setattr(TRAIN, "capture_for", lambda *_: frozen)
    monkeypatch.setattr(TRAIN.Progress, "add", lambda self, loss: setattr(frozen, "progress", self) or add(self, loss))
    train(out=tmp_path / "replayed", **how)
    # The batches of an epoch have 4, 4 and 2 images: two kinds.
    assert (frozen.warm_ups, frozen.captured, frozen.replayed) == (2 * WARM_UP, 2, 16 - 2 * WARM_UP)
    assert same_weights(weights(tmp_path / "eager"), weights(tmp_path / "replayed"))
    assert losses(tmp_path / "eager") == losses(tmp_path / "replayed")


def test_a_step_that_cannot_be_captured_is_said_once_and_runs(caplog):
    class Refusing(Frozen):
        def capture(self, act):
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore lines")

    seen: list[int] = []
    given = [[torch.tensor(i), 5, None] for i in range(6)]
    steps = GraphedStep(lambda x: seen.append(int(x[0])), Recipe.__new__(Recipe), Refusing())
    [steps(x) for x in given]
    assert seen == list(range(6))
    (line,) = [r.getMessage() for r in caplog.records]
    assert line.startswith("--cuda-graph: off") and "not permitted" in line and "more lines" not in line
    steps = GraphedStep(seen.append, Recipe.__new__(Recipe), Refusing(), required=True)
    with pytest.raises(DataError, match="--cuda-graph on: .* CUDA error: operation not permitted"):
        [steps(x) for x in given]


def test_replays_get_new_inputs_in_the_memory_of_the_first_and_give_their_own_last():
    class Once(Frozen):
        def capture(self, act):
            act()  # as Python runs while CUDA records
            last = recipe.last
            return lambda: last.copy_(steps._graphs[kind].inputs[0] * 2)

    recipe = torch.nn.Module()
    recipe.last = None

    def step(inputs):
        recipe.last = inputs[0] * 2

    steps = GraphedStep(step, recipe, Once())
    kind = (torch.Size([2]), torch.float32), 7
    for i in range(6):
        steps([torch.full((2,), float(i)), 7])
        assert recipe.last.tolist() == [2 * i, 2 * i]
    steps([torch.zeros(3), 7])  # another kind, which is eager
    steps([torch.ones(2), 7])
    assert recipe.last.tolist() == [2, 2] and list(steps._graphs) == [kind]


def test_steps_are_captured_on_a_gpu_where_the_recipe_allows_it(caplog):
    def found(device="cuda", ranks=1, why=None, **given):
        recipe = Recipe.__new__(Recipe)
        recipe.not_capturable = lambda: why
        return capture_for(Settings.create({"data": "x", **given}), recipe, torch.device(device), ranks)

    assert isinstance(found(), Capture) and isinstance(found(cuda_graph="on"), Capture)
    assert found(cuda_graph="off") is None and found("cpu") is None and not caplog.records
    for how, reason in (
        ({"ranks": 2}, "several ranks"),
        ({"compile": True}, "--compile"),
        ({"why": "it draws"}, "it draws"),
    ):
        caplog.clear()
        assert found(**how) is None and [reason in r.getMessage() for r in caplog.records] == [True]
        with pytest.raises(DataError, match=f"--cuda-graph on: .*{reason}"):
            found(cuda_graph="on", **how)
    assert "Recipe.not_capturable" in Recipe.not_capturable(None)
    with pytest.raises(DataError, match="type cpu"):
        found("cpu", cuda_graph="on")


@pytest.mark.parametrize("labelled", [False, True])
def test_a_gpu_cuts_the_crops_of_the_host(tmp_path, labelled):
    """Also of images of several sizes, smaller than the crop, and partly without labels."""
    folder = write_folder(tmp_path / "data", number=3, side=40)
    write_folder(tmp_path / "small", number=2, side=22, seed=1)
    for i in range(2):
        for kind in ("images", "labels"):
            (tmp_path / f"small/{kind}/im{i}.png").rename(folder / f"{kind}/small{i}.png")
    label = np.asarray(Image.open(folder / "labels/im0.png")).copy()
    label[:20, :7] = 255
    Image.fromarray(label).save(folder / "labels/im0.png")
    for side in (20, 32):
        images = held_in_memory(open_set(str(folder), "train"))
        sampler = CropSampler(len(images), 5, 1, 3, 0, 2)
        resident = ResidentSet(images, side, labelled, torch.device("cpu"))
        for crops in sampler:
            expected = CropSet(images, side, labelled).__getitems__(crops)
            pixels, valid = resident.cut(resident.places(crops))
            assert torch.equal(pixels, expected.images)
            assert (resident.valid is None) == (side == 20 and not labelled)
            whole = torch.ones(len(crops), side, side, dtype=torch.bool)
            assert valid is None or torch.equal(valid, whole if expected.valid is None else expected.valid)


def test_own_reflection_is_pytorchs_and_keeps_channels_last():
    for shape in ((2, 3, 5, 7), (1, 2, 2, 2)):
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        expected = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="reflect")
        assert torch.equal(Reflected.apply(x), expected)
        upstream = torch.randn_like(expected)
        (wanted,) = torch.autograd.grad(expected, x, upstream)
        (found,) = torch.autograd.grad(Reflected.apply(x), x, upstream)
        torch.testing.assert_close(found, wanted)
        last = x.detach().to(memory_format=torch.channels_last).requires_grad_()
        padded = Reflected.apply(last)
        (gradient,) = torch.autograd.grad(padded, last, upstream.to(memory_format=torch.channels_last))
        assert padded.is_contiguous(memory_format=torch.channels_last) and torch.equal(padded, expected)
        assert gradient.is_contiguous(memory_format=torch.channels_last) and torch.equal(gradient, found)
    assert torch.autograd.gradgradcheck(
        Reflected.apply, torch.randn(1, 1, 3, 4, dtype=torch.float64, requires_grad=True)
    )


def test_float32_products_are_tensor_float32_on_a_gpu_which_is_said_once(caplog):
    caplog.set_level("INFO", "infoseg_fast")
    before = torch.get_float32_matmul_precision()
    with precision.policy(False):
        assert torch.get_float32_matmul_precision() == before and not caplog.records
    with precision.policy(True):
        assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.deterministic
    assert torch.get_float32_matmul_precision() == before and not torch.backends.cudnn.deterministic
    assert ["TensorFloat32" in r.getMessage() for r in caplog.records] == [True]
