"""The fold of the projection and its gradient in Triton's interpreter, against the reference in
float64.
"""

import itertools

import pytest
import torch

import infoseg_fast as isf
from infoseg_fast.bench.cuda_values import distance, matmul_precision
from infoseg_fast.kernels import KERNELS
from infoseg_fast.reference import fold_projection, fold_projection_gradient

pytestmark = pytest.mark.usefixtures("tensor_cores")
KERNEL = KERNELS["assign"]
FLOORS = {torch.float32: 2e-6, torch.bfloat16: 2e-6, torch.float16: 2e-6, torch.float64: 1e-14}


def inputs(B=2, K=5, D=40, C=37, dtype=torch.float32, bias=True):
    """H, W and b: several programs on every axis, and ragged last ones."""
    H, W, b = torch.randn(B, K, D), torch.randn(D, C), torch.randn(D)
    return H.to(dtype), W.to(dtype), b.to(dtype) if bias else None


def check(H, W, b, floor):
    """Values and gradients, in bfloat16 each wanted or not: at most twice the error of PyTorch, and a floor."""
    x, sums = (H, W, b), torch.float64 if H.dtype == torch.float64 else torch.float32
    wide = [None if t is None else t.double() for t in x]
    folded, eager, exact = KERNEL.fold(*x), fold_projection(*x), fold_projection(*wide)
    for a, e, t in zip(folded, eager, exact, strict=True):
        assert (a is None) == (t is None)
        if a is not None:
            assert a.dtype == sums and distance(a, t) <= 2 * distance(e, t) + floor
    upstream = torch.randn_like(folded[0]), None if b is None else torch.randn_like(folded[1])
    eager = fold_projection_gradient(*upstream, *x)
    exact = fold_projection_gradient(*(None if t is None else t.double() for t in upstream), *wide)
    subsets = itertools.product((True, False), repeat=3) if H.dtype == torch.bfloat16 else [(True, True, True)]
    for wanted in subsets:
        wanted = wanted[0], wanted[1], wanted[2] and b is not None
        if not any(wanted):
            continue
        found = KERNEL.fold_gradient(*upstream, *x, wanted)
        for a, e, t, need in zip(found, eager, exact, wanted, strict=True):
            assert (a is not None) == need
            if need:
                rounding = torch.finfo(H.dtype).eps
                assert a.dtype == H.dtype and distance(a, t) <= 2 * distance(e, t) + floor + rounding


@pytest.mark.parametrize("dtype", FLOORS, ids=str)
def test_values_and_gradients(dtype):
    check(*inputs(dtype=dtype), FLOORS[dtype])


@pytest.mark.parametrize(
    "sizes",
    [{"B": 1, "K": 2, "D": 3, "C": 1}, {"B": 1, "K": 256, "D": 8, "C": 16}, {"B": 3, "K": 11, "D": 33, "C": 64}],
)
def test_sizes_and_no_bias(sizes):
    check(*inputs(**sizes, bias=sizes["K"] != 256), 2e-6)


@pytest.mark.parametrize("sizes", [{"B": 0}, {"C": 0}, {"D": 0}])
def test_empty_inputs(sizes):
    H, W, b = inputs(**sizes)
    G, g0 = KERNEL.fold(H, W, b)
    assert torch.equal(G, H @ W) and torch.allclose(g0, H @ b, atol=1e-5)
    dH, dW, db = KERNEL.fold_gradient(torch.ones_like(G), torch.ones_like(g0), H, W, b, (True, True, True))
    expected = fold_projection_gradient(torch.ones_like(G), torch.ones_like(g0), H, W, b)
    for a, e in zip((dH, dW, db), expected, strict=True):
        torch.testing.assert_close(a, e)


def test_strided_inputs_are_read_as_their_values_and_reruns_have_the_same_bits():
    H, W, b = inputs()
    x = H.mT.contiguous().mT, W.mT.contiguous().mT, torch.stack([b, b], 1)[:, 0]
    assert not any(t.is_contiguous() for t in x)
    for one, other in zip(KERNEL.fold(*x), KERNEL.fold(H, W, b), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("precision", "low", "high"), [("highest", 1e-9, 1e-6), ("high", 1e-5, 2e-3)])
def test_products_of_float32_follow_the_precision_of_pytorch(precision, low, high):
    H, W, _ = inputs()
    with matmul_precision(precision):
        G, _ = KERNEL.fold(H, W, None)
    assert low < distance(G, H.double() @ W.double()) < high


@pytest.mark.parametrize("without", ["", "weight", "bias", "weight and bias", "gradient", "gradient of the projection"])
def test_an_op_with_parts_of_the_projection(without):
    """Through the public function, which folds in the plan of the op or, without a weight, before."""
    D = 6 if "weight" in without else 7
    x = [torch.randn(3, 6, 3, 5), torch.randn(3, 4, D), torch.randn(D, 6), torch.randn(D)]
    x = [None if name in without else t for name, t in zip(("features", "global", "weight", "bias"), x, strict=True)]
    for t in x[: {"gradient": 0, "gradient of the projection": 1}.get(without, 4)]:
        if t is not None:
            t.requires_grad_()
    wanted = [t for t in x if t is not None and t.requires_grad]
    found, expected = (isf.mutual_information_loss(*x, backend=name) for name in ("triton", "reference"))
    torch.testing.assert_close(found, expected)
    if wanted:
        gradients = [torch.autograd.grad(loss, wanted, retain_graph=True) for loss in (found, expected)]
        for a, e in zip(*gradients, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)
        again = torch.autograd.grad(found, wanted)
        assert all(torch.equal(a, e) for a, e in zip(again, gradients[0], strict=True))
