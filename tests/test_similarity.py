"""`local_global_similarity`, `assign` and `class_moments`."""

from functools import partial

import pytest
import statement
import torch
from conftest import inputs

import infoseg_fast as isf
from infoseg_fast import reference


def stated_similarity(f, H, W=None, b=None):
    return (statement.local_features(f, W, b) @ H.transpose(1, 2)).transpose(1, 2).unflatten(2, f.shape[2:])


@pytest.mark.parametrize("K", [2, 3, 27, 256])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (0, 4)])
def test_equals_the_statement_that_forms_L(K, size):
    x = inputs(K=K, size=size, requires_grad=True)
    found, stated = isf.local_global_similarity(*x), stated_similarity(*x)
    torch.testing.assert_close(found, stated, rtol=1e-11, atol=1e-11)
    upstream = torch.randn_like(found)
    for a, b in zip(torch.autograd.grad(found, x, upstream), torch.autograd.grad(stated, x, upstream), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_assign_is_the_softmax_of_the_scaled_similarity():
    x = inputs(requires_grad=True)
    found, stated = isf.assign(*x, temperature=2.5), torch.softmax(2.5 * stated_similarity(*x), dim=1)
    torch.testing.assert_close(found, stated, rtol=1e-11, atol=1e-12)
    upstream = torch.randn_like(found)
    for a, b in zip(torch.autograd.grad(found, x, upstream), torch.autograd.grad(stated, x, upstream), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("S", [1, 15, 70])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (0, 4)])
def test_class_moments_are_sums_of_probabilities_times_statistics(S, size):
    x, Y = inputs(size=size, requires_grad=True), torch.randn(4, S, *size, dtype=torch.float64)
    found = isf.class_moments(*x, statistics=Y, temperature=2.5)
    stated = torch.einsum("bkyx,bsyx->ks", torch.softmax(2.5 * stated_similarity(*x), dim=1), Y)
    torch.testing.assert_close(found, stated, rtol=1e-11, atol=1e-11)
    upstream = torch.randn_like(found)
    for a, b in zip(torch.autograd.grad(found, x, upstream), torch.autograd.grad(stated, x, upstream), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_moments_are_in_the_accumulation_dtype_and_probabilities_in_them_not_rounded(dtype, backend):
    x, Y = inputs(C=64, D=64, size=(6, 6), dtype=dtype, scale=0.3), torch.randn(4, 3, 6, 6)
    found = isf.class_moments(*x, statistics=Y, backend=backend)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), isf.class_moments(*(t.double() for t in x), statistics=Y),
                               rtol=1e-4, atol=1e-4)  # fmt: skip


def test_statistics_are_a_constant():
    x, Y = inputs(), torch.randn(4, 2, 3, 4, requires_grad=True)
    with pytest.raises(ValueError, match="statistics must not require a gradient"):
        isf.class_moments(*x, statistics=Y)
    with torch.no_grad():
        assert isf.class_moments(*x, statistics=Y).shape == (3, 2)


@pytest.mark.parametrize(
    "Y", [torch.randn(4, 3, 4), torch.randn(4, 2, 4, 3), torch.ones(4, 2, 3, 4).long(), torch.randn(4, 0, 3, 4), None]
)
def test_bad_statistics_are_named(Y):
    with pytest.raises(ValueError, match=r"statistics must be a floating-point tensor \[B, S, h, w\] = \[4, S"):
        isf.class_moments(*inputs(), statistics=Y)


@pytest.mark.parametrize("form", ["all", "no bias", "no weight", "neither"])
def test_gradients_of_the_fold_are_those_of_autograd(form):
    _, H, W, b = inputs(C=7 if form in ("no weight", "neither") else 5, requires_grad=True)
    W = W if form in ("all", "no bias") else None
    b = b if form in ("all", "no weight") else None
    given = [x for x in (H, W, b) if x is not None]
    folded = [x for x in reference.fold_projection(H, W, b) if x is not None]
    upstream = [torch.randn_like(x) for x in folded]
    expected = torch.autograd.grad(folded, given, upstream)
    for needed in range(8):
        needs = [bool(needed >> i & 1) for i in range(3)]
        found = reference.fold_projection_gradient(upstream[0], upstream[-1], H, W, b, needs)
        assert [x is not None for x in found] == [n and x is not None for n, x in zip(needs, (H, W, b), strict=True)]
        by_input = dict(zip(map(id, given), expected, strict=True))
        for x, gradient in zip((H, W, b), found, strict=True):
            if gradient is not None:
                torch.testing.assert_close(gradient, by_input[id(x)])


moments = partial(isf.class_moments, statistics=torch.linspace(-1, 2, 16).view(2, 2, 2, 2))


@pytest.mark.parametrize("op", [isf.local_global_similarity, isf.assign, moments])
def test_gradcheck(op):
    x = inputs(B=2, C=3, D=4, K=3, size=(2, 2), requires_grad=True)
    assert torch.autograd.gradcheck(op, x)
    assert torch.autograd.gradgradcheck(lambda *x: op(*x, backend="reference"), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", [isf.local_global_similarity, isf.assign])
def test_the_dtype_of_the_features_is_kept_and_rounded_once(op, dtype):
    x = inputs(C=64, D=64, size=(6, 6), dtype=dtype)
    found, truth = op(*x), op(*(t.double() for t in x))
    assert found.dtype == dtype
    scale = truth.abs().max()
    assert (found.double() - truth).abs().max() <= (torch.finfo(dtype).eps + 1e-5) * scale


def test_extreme_similarities_give_probabilities():
    f, H, _, _ = inputs(C=7, scale=60.0)
    for temperature in (1e-3, 1.0, 1e3):
        V = isf.assign(f, H, temperature=temperature)
        torch.testing.assert_close(V.sum(1), torch.ones_like(V[:, 0]))


def test_autocast_gives_its_dtype():
    f, H, W, b = inputs(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert isf.assign(f, H, W, b).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "op", [isf.local_global_similarity, isf.assign, moments, isf.segment, isf.mutual_information_loss]
)
@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        (lambda f, H, W, b: (f[0], H, W, b), ValueError, r"features must be \[B, C, h, w\].*\[5, 3, 4\]"),
        (lambda f, H, W, b: (f, H[:3], W, b), ValueError, r"global_features.*B = 4.*\[3, 3, 7\]"),
        (lambda f, H, W, b: (f, H[:, :1], W, b), ValueError, "K from 2 to 256"),
        (lambda f, H, W, b: (f, H[:, :1].expand(4, 257, 7), W, b), ValueError, "K from 2 to 256"),
        (lambda f, H, W, b: (f, H, W[:, :2], b), ValueError, r"weight must be \[D, C\] = \[7, 5\].*\[7, 2\]"),
        (lambda f, H, W, b: (f, H, None, b), ValueError, "C = D = 7"),
        (lambda f, H, W, b: (f, H, W, b[:2]), ValueError, r"bias must be \[D\] = \[7\].*\[2\]"),
        (lambda f, H, W, b: (f, H.float(), W, b), TypeError, "global_features.*one dtype"),
        (lambda f, H, W, b: (f.long(), H, W, b), TypeError, "features.*int64"),
        (lambda f, H, W, b: (f, H, W.numpy(), b), TypeError, "weight must be a tensor.*ndarray"),
        (lambda f, H, W, b: (f, H.to("meta"), W, b), ValueError, "global_features must be on cpu.*meta"),
    ],
)
def test_a_bad_tensor_is_named_with_what_it_is(op, change, error, told):
    with pytest.raises(error, match=told):
        op(*change(*inputs()))
