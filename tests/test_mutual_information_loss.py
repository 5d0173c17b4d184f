"""`mutual_information_loss`: values, gradients, masks and extremes, against the statement of the
paper.
"""

import math

import numpy as np
import pytest
import statement
import torch
from conftest import assert_wanted_gradients, inputs, wanting

import infoseg_fast as isf
from infoseg_fast import reference

VARIANTS = [
    ("jsd", "same_position", 1),
    ("jsd", "same_position", 2),
    ("jsd", "same_position", 3),
    ("jsd", "reassigned", 1),
    ("jsd", "reassigned", 3),
    ("infonce", "same_position", 1),
    ("infonce", "same_position", 3),
]


def settings(variant, **more):
    return dict(zip(("estimator", "negatives", "num_negatives"), variant, strict=True)) | more


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("balance", [0.0, 0.7])
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_the_statement_that_forms_L_and_S(variant, balance, masked):
    x = inputs(requires_grad=True)
    mask = torch.rand(4, 3, 4) < 0.6 if masked else None
    how = settings(variant, temperature=1.3, balance=balance, mask=mask)
    found, stated = isf.mutual_information_loss(*x, **how), statement.loss(*x, **how)
    torch.testing.assert_close(found, stated, rtol=1e-12, atol=1e-12)
    for a, b in zip(torch.autograd.grad(found, x), torch.autograd.grad(stated, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_numbers_of_numpy_are_numbers():
    x = inputs()
    how = {"temperature": np.float32(2), "num_negatives": np.int64(2), "balance": np.float16(0.5)}
    expected = isf.mutual_information_loss(*x, temperature=2.0, num_negatives=2, balance=0.5)
    assert torch.equal(isf.mutual_information_loss(*x, **how), expected)
    assert isf.segment(*x, size=(np.int64(6), np.int32(8))).shape == (4, 6, 8)


def test_a_layout_that_is_not_dense_is_refused():
    f, *others = inputs()
    with pytest.raises(TypeError, match=r"features must be a dense tensor, not of layout torch\.sparse_coo"):
        isf.mutual_information_loss(f.to_sparse(), *others)


@pytest.mark.parametrize("form", ["no projection", "no bias", "convolution's weight"])
def test_the_projection_may_be_left_out_or_a_convolution(form):
    f, H, W, b = inputs(C=7)
    if form == "no projection":
        found, stated = isf.mutual_information_loss(f, H), statement.loss(f, H)
    elif form == "no bias":
        found, stated = isf.mutual_information_loss(f, H, W), statement.loss(f, H, W)
    else:
        found, stated = isf.mutual_information_loss(f, H, W[:, :, None, None], b), statement.loss(f, H, W, b)
    torch.testing.assert_close(found, stated, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_means_every_other_image(variant):
    x = inputs()
    how = settings(variant) | {"num_negatives": "all"}
    torch.testing.assert_close(
        isf.mutual_information_loss(*x, **how), isf.mutual_information_loss(*x, **how | {"num_negatives": 3})
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_by_identity_3_are_those_of_autograd(variant, masked):
    f, G, _, _ = inputs(D=5, requires_grad=True)
    g0 = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    valid = torch.rand(4, 12) < 0.6 if masked else None
    how = settings(variant, temperature=0.8, balance=0.4)
    expected = torch.autograd.grad(reference.folded_loss(f, G, g0, valid, **how), (f, G, g0))
    with torch.no_grad():
        found = reference.folded_loss_gradient(f, G, g0, valid, **how)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradcheck(variant):
    x = inputs(B=4, C=3, D=4, K=2, size=(2, 2), requires_grad=True)
    mask = torch.ones(4, 2, 2, dtype=torch.bool)
    mask[0, 0, 1] = mask[2] = False

    def loss(*x):
        return isf.mutual_information_loss(*x, **settings(variant, temperature=0.7, balance=0.3, mask=mask))

    assert torch.autograd.gradcheck(loss, x)
    assert torch.autograd.gradgradcheck(
        lambda *x: isf.mutual_information_loss(*x, **settings(variant), backend="reference"), x
    )


@pytest.mark.parametrize("needed", range(1, 16))
def test_every_subset_of_gradients(needed):
    x = inputs()
    every = [t.detach().requires_grad_() for t in x]
    expected = torch.autograd.grad(isf.mutual_information_loss(*every), every)
    some = wanting(x, needed)
    (3 * isf.mutual_information_loss(*some)).backward()
    assert_wanted_gradients(some, [3 * gradient for gradient in expected])


def test_nothing_learnt_costs_2_ln_2():
    f, H, W, b = inputs()
    loss = isf.mutual_information_loss(f, torch.zeros_like(H), W, b)
    torch.testing.assert_close(loss.item(), 2 * math.log(2))


def test_masked_positions_leave_every_mean():
    f, H, W, b = inputs(size=(4, 4))
    mask = torch.zeros(4, 4, 4, dtype=torch.bool)
    mask[:, :3] = True
    cut = isf.mutual_information_loss(f[:, :, :3], H, W, b, balance=1.0, num_negatives=2)
    masked = isf.mutual_information_loss(f, H, W, b, balance=1.0, num_negatives=2, mask=mask)
    torch.testing.assert_close(masked, cut)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_valid_position_gives_nan_and_no_gradient(variant):
    x = inputs(requires_grad=True)
    mask = torch.zeros(4, 3, 4, dtype=torch.bool)
    loss = isf.mutual_information_loss(*x, **settings(variant, mask=mask))
    assert loss.isnan()
    loss.backward()
    assert all((t.grad == 0).all() for t in x)


def test_one_image_may_be_masked_wholly():
    x = inputs(requires_grad=True)
    mask = torch.ones(4, 3, 4, dtype=torch.bool)
    mask[1] = False
    loss = isf.mutual_information_loss(*x, mask=mask, balance=1.0)
    loss.backward()
    assert loss.isfinite() and all(t.grad.isfinite().all() for t in x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_extreme_similarities_stay_finite(variant, temperature, dtype):
    f, H, _, _ = inputs(C=7, dtype=dtype, scale=60.0)  # similarities of +-1e4
    x = f.requires_grad_(), H.requires_grad_()
    loss = isf.mutual_information_loss(*x, **settings(variant, temperature=temperature, balance=1.0))
    loss.backward()
    assert loss.isfinite() and all(t.grad.isfinite().all() for t in x)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("variant", VARIANTS)
def test_nan_or_infinity_in_gives_nan_out(variant, bad):
    x = inputs()
    x[0][1, 2, 0, 1] = bad
    assert isf.mutual_information_loss(*x, **settings(variant)).isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_other_dtypes_are_accumulated_in_float32(variant, dtype):
    x = [t.detach().requires_grad_() for t in inputs(dtype=dtype, C=16, D=16, size=(5, 6))]
    exact = [t.detach().double().requires_grad_() for t in x]
    loss, truth = (isf.mutual_information_loss(*t, **settings(variant)) for t in (x, exact))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=0)
    loss.backward()
    truth.backward()
    eps = torch.finfo(dtype).eps
    for a, b in zip(x, exact, strict=True):
        assert a.grad.dtype == dtype
        assert (a.grad.double() - b.grad).norm() <= (2 * eps + 1e-5) * b.grad.norm()


@pytest.mark.parametrize("layout", ["channels_last", "strided", "expanded"])
def test_layout_does_not_matter(layout):
    f, H, W, b = inputs(size=(4, 6))
    g = (
        {
            "channels_last": lambda: f.to(memory_format=torch.channels_last),
            "strided": lambda: f.repeat(1, 1, 2, 2)[:, :, :4, :6],
            "expanded": lambda: f[:, :1].expand(-1, 5, -1, -1),
        }[layout]()
        .detach()
        .requires_grad_()
    )
    plain = g.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    losses = [isf.mutual_information_loss(t, H, W, b) for t in (g, plain)]
    torch.testing.assert_close(*losses)
    gradients = [torch.autograd.grad(loss, t)[0] for loss, t in zip(losses, (g, plain), strict=True)]
    torch.testing.assert_close(*gradients)


def test_balance_is_zero_for_even_use_and_log_K_for_one_class():
    K, f = 4, torch.zeros(2, 4, 2, 2, dtype=torch.float64)
    f[:, 0, 0, 0] = f[:, 1, 0, 1] = f[:, 2, 1, 0] = f[:, 3, 1, 1] = 1
    H = 100 * torch.eye(K, dtype=torch.float64).expand(2, K, K)

    def balance_of(f):
        return isf.mutual_information_loss(f, H, balance=1.0) - isf.mutual_information_loss(f, H)

    torch.testing.assert_close(balance_of(f).item(), 0.0, atol=1e-9, rtol=0)
    one = torch.zeros_like(f)
    one[:, 0] = 1
    torch.testing.assert_close(balance_of(one).item(), math.log(K), atol=1e-9, rtol=0)


def test_the_module_is_the_function_with_its_settings():
    x = inputs()
    mask = torch.rand(4, 3, 4) < 0.5
    how = {"temperature": 0.5, "estimator": "infonce", "num_negatives": "all", "balance": 0.3}
    expected = isf.mutual_information_loss(*x, mask=mask, **how)
    torch.testing.assert_close(isf.InfoSegLoss(**how)(*x, mask=mask), expected)
    for wrong in ({"num_negatives": 0}, {"num_negatives": 1.5}, {"backend": "gpu"}, {"balance": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
            isf.InfoSegLoss(**wrong)


def test_under_autocast_mixed_inputs_become_one_dtype():
    f, H, W, b = inputs(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = isf.mutual_information_loss(f.bfloat16(), H, W, b)
    assert loss.dtype == torch.float32
    expected = isf.mutual_information_loss(*(t.bfloat16() for t in (f, H, W, b)))
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"estimator": "mine"}, "estimator"),
        ({"negatives": "random"}, "negatives"),
        ({"num_negatives": 4}, "num_negatives.*B - 1 = 3.*4"),
        ({"num_negatives": 0}, "num_negatives"),
        ({"num_negatives": "some"}, "num_negatives"),
        ({"num_negatives": True}, "num_negatives"),
        ({"num_negatives": 1.0}, "num_negatives"),
        ({"num_negatives": [1]}, "num_negatives"),
        ({"balance": -1.0}, "balance"),
        ({"mask": torch.ones(4, 3, 5, dtype=torch.bool)}, r"mask.*\[4, 3, 4\].*\[4, 3, 5\]"),
        ({"mask": torch.ones(4, 3, 4)}, "mask.*bool"),
        ({"backend": "gpu"}, "backend"),
    ],
)
def test_a_bad_setting_is_named(change, told):
    isf.mutual_information_loss(*inputs())  # good settings are remembered; bad ones may be equal to them
    with pytest.raises(ValueError, match=told):
        isf.mutual_information_loss(*inputs(), **change)


def test_one_image_has_no_negatives():
    with pytest.raises(ValueError, match="B >= 2"):
        isf.mutual_information_loss(*inputs(B=1))
