"""Shared fixtures: folders of images, and inputs of the ops."""

import contextlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from infoseg_fast import extension, precision
from infoseg_fast.cli import main

os.environ.setdefault("MPLBACKEND", "Agg")
# The tensors are small: a second thread slows the tests down. Tests of threads set their number.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

needs_extension = pytest.mark.skipif(extension.compiled() is None, reason="the C++ extension is not built")


# A process gets a file of the first three, and one of the next three after it.
SLOWEST = (
    "test_triton_aot.py", "test_ranks.py", "test_cpp_core.py", "test_triton.py", "test_survive.py", "test_install.py",
    "test_train.py", "test_assignment_cuda.py", "test_adding_an_op.py", "test_export.py", "test_default_recipe.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """The files whose tests take longest begin first, so that no process works alone in the end."""
    places = {name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def float32_of_auto():
    """--precision auto is float32 in this process: its measurement may choose otherwise in another
    run, and tests compare the bits of runs. Settings of runs in other processes name the precision.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "has_bfloat16", lambda device: False)
        yield


@pytest.fixture
def without_curves(monkeypatch):
    """Reports have no curves. Drawing them takes longer than all the rest of a short run."""
    monkeypatch.setattr("infoseg_fast.report.curves", lambda rows: "data:,")


def call(*arguments) -> int:
    """The exit status of a command, whether by return or by argparse's exit."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stopped:
        return stopped.code


@contextlib.contextmanager
def torch_threads(number: int):
    """A context in which PyTorch and the kernels have this number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def usable_sets() -> list[str]:
    """The instruction sets that the extension was compiled for and that this CPU has."""
    module = extension.compiled()
    if module is None:
        return []
    before, found = module.instruction_set(), []
    for name in ("portable", "avx2", "avx512", "avx512bf16", "amx"):
        with contextlib.suppress(RuntimeError):
            module.set_instruction_set(name)
            found.append(name)
    module.set_instruction_set(before)
    return found


@pytest.fixture(params=usable_sets())
def instruction_set(request):
    """Each instruction set in turn."""
    module = extension.compiled()
    before = module.instruction_set()
    module.set_instruction_set(request.param)
    yield request.param
    module.set_instruction_set(before)


def inputs(B=4, C=5, D=7, K=3, size=(3, 4), dtype=torch.float64, requires_grad=False, scale=1.0):
    """features, global_features, weight, bias of the given sizes."""
    shapes = (B, C, *size), (B, K, D), (D, C), (D,)
    return tuple(torch.randn(s, dtype=dtype).mul_(scale).requires_grad_(requires_grad) for s in shapes)


def wanting(x, needed: int) -> list:
    """Leaves of the tensors. Tensor i wants a gradient if bit i of `needed` is 1."""
    return [t.detach().requires_grad_(bool(needed >> i & 1)) for i, t in enumerate(x)]


def assert_wanted_gradients(leaves, expected) -> None:
    """Leaves of `wanting` have the expected gradients, the others none."""
    for t, gradient in zip(leaves, expected, strict=True):
        if t.requires_grad:
            torch.testing.assert_close(t.grad, gradient)
        else:
            assert t.grad is None


def two_textures(rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
    """An RGB image of a coarse bluish and a fine reddish texture, and its labels."""
    y, x = np.mgrid[:side, :side]
    angle, offset = rng.uniform(0, np.pi), rng.uniform(0.35, 0.65) * side
    label = ((np.cos(angle) * (x - side / 2) + np.sin(angle) * (y - side / 2) + side / 2) > offset).astype(np.uint8)
    coarse = rng.normal(0, 40, (side // 4 + 1, side // 4 + 1)).repeat(4, 0).repeat(4, 1)[:side, :side]
    fine = rng.normal(0, 40, (side, side))
    image = np.where(label[..., None] == 1, fine[..., None] + [150, 100, 90], coarse[..., None] + [90, 110, 150])
    return image.clip(0, 255).astype(np.uint8), label


def write_labelled(root: Path, stem: str, image: np.ndarray, label: np.ndarray) -> None:
    """An image and its labels in the layout of --data DIR."""
    for name, pixels in (("images", image), ("labels", label)):
        (root / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{stem}.png")


def write_folder(root: Path, number: int = 6, side: int = 32, labels: bool = True, seed: int = 0) -> Path:
    """A folder in the layout of --data DIR with `number` two-texture images."""
    rng = np.random.default_rng(seed)
    for i in range(number):
        write_labelled(root, f"im{i}", *two_textures(rng, side))
    if not labels:
        shutil.rmtree(root / "labels")
    return root


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_folder(tmp_path / "data")


@pytest.fixture(scope="session")
def fibers(tmp_path_factory):
    """The CUDA sources, compiled for the CPU (see tests/cuda_harness)."""
    from fibers import open_fibers

    return open_fibers(tmp_path_factory.mktemp("fibers"))
