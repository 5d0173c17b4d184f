"""The Triton kernels of `class_moments` in the interpreter, against the reference in float64."""

import itertools

import folded
import pytest
import torch
from conftest import inputs

import infoseg_fast as isf
from infoseg_fast.kernels import KERNELS
from infoseg_fast.ops import OPS
from infoseg_fast.ops.protocol import Needs

from .test_similarity import FLOORS, SHAPES, distance, layouts, results

ALL = Needs(True, True, True)


def moments(*x, backend, Y):
    return isf.class_moments(*x, statistics=Y, backend=backend)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOORS, ids=str)
def test_values_and_gradients_are_the_references(dtype, shape):
    B, C, K, size = shape
    x = inputs(B=B, C=C, D=6, K=K, size=size, dtype=torch.float64)
    x = [(t * scale).to(dtype) for t, scale in zip(x, (1, 0.5, C**-0.5, 1), strict=True)]
    for S in (3, 20):  # one product, and two of which the last is ragged
        Y, upstream = torch.randn(B, S, *size, dtype=torch.float64), torch.randn(K, S, dtype=torch.float64)
        exact, found, eager = (
            results(lambda *x, backend: moments(*x, backend=backend, Y=Y), given, upstream, backend)  # noqa: B023
            for given, backend in (([t.double() for t in x], "reference"), (x, "triton"), (x, "reference"))
        )
        assert found[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        for name, a, b, e in zip(("value", "f", "H", "W", "b"), found, exact, eager, strict=True):
            assert distance(a, b) <= 2 * distance(e, b) + FLOORS[dtype], name


@pytest.mark.parametrize(("name", "f"), list(layouts()), ids=lambda x: x if isinstance(x, str) else "")
def test_every_layout_of_the_features_and_the_statistics(name, f):
    C, K = f.shape[1], 5
    G, g0, upstream = torch.randn(2, K, C), torch.randn(2, K), torch.randn(K, 4)
    Y = torch.randn(2, 4, *f.shape[2:], 2)[..., 0]
    kernel, arguments = KERNELS["class_moments"], (f, G, g0, Y, 1.3)
    exact = f.double(), G.double(), g0.double(), Y.double(), 1.3
    found, saved = kernel.forward(*arguments, ALL)
    torch.testing.assert_close(found.double(), folded.value("class_moments", *exact), rtol=1e-5, atol=1e-4)
    without, nothing = kernel.forward(*arguments, Needs(False, False, False))
    assert torch.equal(without, found) and nothing == []
    gradients = kernel.backward(upstream, saved, *arguments, ALL)
    expected = folded.gradients("class_moments", upstream.double(), *exact)
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-4)
    assert gradients.features.stride() == torch.empty_like(f).stride()


@pytest.mark.parametrize("K", [4, 40])
def test_every_subset_of_gradients(K):
    f, G, Y, grad = torch.randn(2, 70, 5, 8), torch.randn(2, K, 70), torch.randn(2, 3, 5, 8), torch.randn(K, 3)
    kernel = KERNELS["class_moments"]
    arguments = f, G, None, Y, 1.5
    saved = kernel.forward(*arguments, ALL)[1]
    full = folded.gradients("class_moments", grad, *arguments)
    for needs in itertools.starmap(Needs, itertools.product((False, True), repeat=3)):
        if any(needs):
            for x, need, expected in zip(kernel.backward(grad, saved, *arguments, needs), needs, full, strict=True):
                assert need or x.numel() == 0
                if need:
                    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)


def test_gradcheck():
    x = inputs(B=2, C=3, D=4, K=3, size=(1, 2), requires_grad=True)
    Y = torch.randn(2, 3, 1, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *x: moments(*x, backend="triton", Y=Y), x, fast_mode=True)


def test_reruns_give_the_same_bits_and_backward_runs_twice():
    x = [t.requires_grad_() for t in inputs(B=2, C=70, K=15, size=(12, 12), dtype=torch.float32)]
    Y, upstream = torch.randn(2, 5, 12, 12), torch.randn(15, 5)
    out = moments(*x, backend="triton", Y=Y)
    once = torch.autograd.grad(out, x, upstream, retain_graph=True)
    again = torch.autograd.grad(out, x, upstream)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert torch.equal(moments(*x, backend="triton", Y=Y), out)


@pytest.mark.parametrize("shape", [(0, 5, 3, (3, 4)), (2, 5, 3, (0, 4)), (2, 0, 3, (3, 4))], ids=str)
def test_empty_inputs(shape):
    B, C, K, size = shape
    x, Y, upstream = (
        inputs(B=B, C=C, D=6, K=K, size=size, dtype=torch.float32),
        torch.randn(B, 2, *size),
        torch.ones(K, 2),
    )
    found, expected = (
        results(lambda *x, backend: moments(*x, backend=backend, Y=Y), x, upstream, backend)
        for backend in ("triton", "reference")
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_opcheck_and_one_graph():
    f, G, g0 = (torch.randn(s).requires_grad_() for s in ((3, 5, 3, 4), (3, 4, 5), (3, 4)))
    arguments = f, G, g0, torch.randn(3, 2, 3, 4), 1.5, [True] * 3, "triton"
    torch.library.opcheck(OPS["class_moments"].wiring.custom, arguments)
    x, Y, upstream = inputs(dtype=torch.float32), torch.randn(4, 2, 3, 4), torch.randn(3, 2)

    def op(*x, backend):
        return moments(*x, backend=backend, Y=Y)

    compiled = torch.compile(op, backend="aot_eager", fullgraph=True)
    pairs = zip(results(compiled, x, upstream, "triton"), results(op, x, upstream, "triton"), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b)
