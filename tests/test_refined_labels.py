"""`refined_labels`: the kernel against the reference."""

import pytest
import torch
from conftest import needs_extension, torch_threads

from infoseg_fast import reference
from infoseg_fast.ops.dispatch import kernel
from infoseg_fast.ops.refined_labels import refined_labels

pytestmark = needs_extension


def problem(B=2, K=3, c=3, h=4, w=5, size=(16, 20), dtype=torch.float32):
    """prior, colour, around, residual, log_scale of random numbers."""
    prior = torch.softmax(2 * torch.randn(B, K, h, w, dtype=dtype), dim=1)
    shapes = (B, c, *size), (B, c, h, w), (K, c, 2 * c + 1), (K,)
    return prior, *(torch.randn(shape, dtype=dtype) for shape in shapes)


SHAPES = [
    {},
    {"c": 1, "K": 2, "B": 1, "h": 1, "w": 1, "size": (3, 5)},
    {"c": 2, "K": 27, "h": 7, "w": 9, "size": (28, 36)},
    {"c": 4, "K": 5, "h": 33, "w": 40, "size": (132, 160)},
    {"K": 256, "h": 3, "w": 3, "size": (12, 12)},
    {"K": 4, "h": 10, "w": 10, "size": (33, 39)},
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_kernel_gives_the_labels_of_the_reference(shape, threads):
    given = problem(**shape)
    with torch_threads(threads):
        found = refined_labels(*given, backend="cpp")
    exact = reference.refined_labels(*(x.double() for x in given))
    # Two classes whose scores are equal to rounding may change places.
    assert (found != exact).float().mean() < 1e-3


def test_strided_and_empty_input():
    given = problem()
    strided = [x.mT.contiguous().mT if x.dim() > 1 else x for x in given]
    assert torch.equal(refined_labels(*strided, backend="cpp"), refined_labels(*given, backend="cpp"))
    assert kernel("refined_labels", "cpp").forward(*problem(B=0)).shape == (0, 16, 20)
    assert refined_labels(*problem(B=0), backend="reference").shape == (0, 16, 20)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_nan_gives_some_label(backend):
    prior, *others = problem(h=8, w=8, size=(32, 32))
    prior[0, :, 1, 1] = float("nan")
    assert refined_labels(prior, *others, backend=backend).max() < 3


@pytest.mark.parametrize(
    ("name", "wrong", "error", "told"),
    [
        ("prior", torch.rand(3, 4, 5), ValueError, r"prior must be \[B, K, h, w\], not a float32 tensor"),
        ("colour", torch.rand(1, 3, 16, 20), ValueError, r"colour must be \[B, c, H, W\] = \[2, 3, 16, 20\]"),
        ("colour", torch.zeros(2, 3, 16, 20, dtype=torch.uint8), TypeError, "colour must be a floating-point tensor"),
        ("around", torch.rand(2, 3, 4, 4), ValueError, r"around must be \[B, c, h, w\] = \[2, 3, 4, 5\]"),
        ("residual", torch.rand(3, 3, 6), ValueError, r"residual must be \[K, c, 2c \+ 1\] = \[3, 3, 7\]"),
        ("log_scale", torch.rand(2), ValueError, r"log_scale must be \[K\] = \[3\], not .* shape \[2\]"),
        ("log_scale", torch.rand(3).double(), TypeError, "log_scale must be torch.float32, as the other tensors are"),
    ],
)
def test_arguments_that_do_not_fit_are_named(name, wrong, error, told):
    """A kernel would read outside of them."""
    given = dict(zip(("prior", "colour", "around", "residual", "log_scale"), problem(), strict=True))
    with pytest.raises(error, match=told):
        refined_labels(**given | {name: wrong})
