"""The kernels of the mutual-information loss in Triton's interpreter, against the reference in
float64.
"""

import math

import pytest
import torch

import infoseg_fast as isf
from infoseg_fast.bench.cuda_values import distance
from infoseg_fast.kernels import KERNELS, mutual_information_loss
from infoseg_fast.kernels.launch import recorded
from infoseg_fast.kernels.plans import forget_plans
from infoseg_fast.ops.protocol import LossSettings, Needs
from infoseg_fast.reference import folded_loss, folded_loss_gradient

KERNEL = KERNELS["mutual_information_loss"]
VARIANTS = [  # estimator, negatives, number: one that the own block holds, and one with partners beyond it
    ("jsd", "same_position", 1),
    ("jsd", "same_position", 2),
    ("jsd", "reassigned", 1),
    ("jsd", "reassigned", 4),
    ("infonce", "same_position", 2),
    ("infonce", "same_position", 4),
]
EVERYTHING = Needs(True, True, True)


def folded(B=5, C=40, K=5, h=6, w=11, dtype=torch.float32, bias=True, scale=1.0):
    """features, G, g0 as a kernel gets them: several programs on every axis of every grid, and a
    ragged last one.
    """
    f = torch.randn(B, C, h, w).mul_(scale).to(dtype)
    return f, torch.randn(B, K, C) * 0.3, torch.randn(B, K) if bias else None


def settings(variant, temperature=1.3, balance=0.0):
    return LossSettings(temperature, *variant, balance)


def run(x, valid, how, upstream=None, needs=EVERYTHING):
    f, G, g0 = x
    upstream = torch.tensor(1.0) if upstream is None else upstream
    loss, saved = KERNEL.forward(f, G, g0, valid, how, needs)
    return [loss, *KERNEL.backward(upstream, saved, f, G, g0, valid, how, needs)]


def truth(x, valid, how, upstream, dtype=torch.float64):
    """Loss and gradients by the reference, all in `dtype`; dg0 also where there is no g0."""
    f, G, g0 = (None if t is None else t.to(dtype) for t in x)
    found = folded_loss_gradient(f, G, g0, valid, **how._asdict())
    return [folded_loss(f, G, g0, valid, **how._asdict()), *(t * upstream.to(t.dtype) for t in found)]


def check(x, valid, how, floor=2e-6):
    """Error of loss and gradients at most twice that of eager PyTorch in the same dtype, and a
    floor.
    """
    f = x[0]
    upstream = torch.randn(())
    found = run(x, valid, how, upstream, Needs(True, True, x[2] is not None))
    exact = truth(x, valid, how, upstream)
    eager = truth(x, valid, how, upstream, f.dtype)
    for name, a, b, e in zip(("loss", "df", "dG", "dg0"), found, exact, eager, strict=True):
        if name == "dg0" and x[2] is None:
            continue
        assert a.dtype == (f.dtype if name == "df" else torch.float32)
        rounding = torch.finfo(f.dtype).eps if name == "df" else 0
        assert distance(a, b) <= 2 * distance(e, b) + floor + rounding, name


# Each variant in float32 with a mask, and in two of four other ways.
WAYS = [
    [(torch.float32, True), (torch.float32, False), (torch.bfloat16, True)],
    [(torch.float32, True), (torch.float16, False), (torch.float16, True)],
]
CHECKS = [(variant, *way) for variant, which in zip(VARIANTS, (0, 1, 1, 0, 0, 1), strict=True) for way in WAYS[which]]


@pytest.mark.parametrize(("variant", "dtype", "masked"), CHECKS, ids=str)
def test_loss_and_gradients_are_the_references(variant, dtype, masked):
    x = folded(C=40 if dtype == torch.float32 else 20, dtype=dtype, bias=masked)
    check(x, torch.rand(5, 66) < 0.6 if masked else None, settings(variant, balance=0.7 if masked else 0.0))


def launches_of(x, how):
    with recorded() as launches:
        loss, saved = KERNEL.forward(*x, None, how, EVERYTHING)
        KERNEL.backward(loss, saved, *x, None, how, EVERYTHING)
    return launches


@pytest.mark.parametrize("variant", VARIANTS[1::2])
def test_channels_in_several_chunks(variant):
    x, variant = folded(B=3, C=270, K=3, h=1, w=9), (*variant[:2], 2)
    for launch in launches_of(x, settings(variant)):
        assert launch.constexprs.get("BLOCK_D", 0) < 270
    check(x, torch.rand(3, 9) < 0.6, settings(variant, balance=0.7))


def test_the_other_sizes_give_every_other_grid_axis_several_programs():
    for variant in VARIANTS:
        for launch in launches_of(folded(), settings(variant)):
            if "splits" in launch.arguments:
                assert launch.arguments["splits"] >= 2 and 66 % launch.constexprs["BLOCK_P"]
            if launch.kernel.name == "loss_partner_gradient":
                assert launch.constexprs["IMAGES"] < 5


@pytest.mark.parametrize("K", [2, 16, 27, 100])
@pytest.mark.parametrize("variant", [("jsd", "same_position", 1), ("infonce", "same_position", 3)])
def test_any_number_of_classes(variant, K):
    check(folded(B=4, C=24, K=K, h=5, w=7), torch.rand(4, 35) < 0.7, settings(variant, 0.7, 0.4))


@pytest.mark.parametrize("variant", [VARIANTS[0], VARIANTS[2], VARIANTS[4]])
def test_scores_may_be_kept_instead_of_formed_anew(monkeypatch, variant):
    x, valid, how = folded(C=20), torch.rand(5, 66) < 0.6, settings(variant, balance=0.5)
    assert len(KERNEL.forward(*x, valid, how, EVERYTHING)[1]) == 1
    monkeypatch.setattr(mutual_information_loss, "MAX_KEPT_SHARE", 10.0)
    forget_plans()
    assert len(KERNEL.forward(*x, valid, how, EVERYTHING)[1]) == 2
    check(x, valid, how)


@pytest.mark.parametrize("layout", ["channels_last", "strided", "expanded"])
def test_layout_does_not_matter(layout):
    f, G, g0 = folded(C=20)
    f = {
        "channels_last": lambda: f.contiguous(memory_format=torch.channels_last),
        "strided": lambda: f.repeat(1, 1, 2, 2)[:, :, :6, :11],
        "expanded": lambda: f[:, :1].expand(-1, 20, -1, -1),
    }[layout]()
    if layout != "expanded":
        check((f, G, g0), torch.rand(5, 66) < 0.6, settings(VARIANTS[0], balance=0.5))
    if layout != "strided":
        check((f, G, g0), None, settings(VARIANTS[5]))


@pytest.mark.parametrize("variant", [VARIANTS[1], VARIANTS[5]])
def test_only_wanted_gradients_are_computed_and_they_are_the_same(variant):
    x, how = folded(B=4, C=40, K=4, h=2, w=3), settings((*variant[:2], 2), balance=0.5)
    every = run(x, None, how)
    for needs in (Needs(True, False, False), Needs(False, True, False), Needs(False, False, True)):
        some = run(x, None, how, needs=needs)
        for need, a, b in zip((True, *needs), some, every, strict=True):
            assert torch.equal(a, b) if need else a.numel() == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_valid_position_gives_nan_and_no_gradient(variant):
    loss, *gradients = run(folded(C=20, h=2, w=3), torch.zeros(5, 6, dtype=torch.bool), settings(variant, balance=1.0))
    assert loss.isnan() and all((g == 0).all() for g in gradients)


@pytest.mark.parametrize("shape", [(3, 4, 0, 5), (3, 0, 2, 2)])
def test_nothing_to_see(shape):
    B, C, h, w = shape
    how = settings(VARIANTS[0])
    loss, df, dG, dg0 = run(folded(B, C, 3, h, w), None, how)
    assert loss.isnan() if h * w == 0 else loss.isfinite()
    assert df.shape == shape and (dG == 0).all() and dg0.isfinite().all()


@pytest.mark.parametrize("temperature", [1e-3, 1e3])
@pytest.mark.parametrize("variant", VARIANTS[::2])
def test_extreme_similarities_stay_finite(variant, temperature):
    f, G, g0 = folded(C=20, K=3, h=2, w=3, scale=1500.0)
    G *= 5
    assert (torch.einsum("bkc,bchw->bkhw", G, f).abs() > 1e4).any()
    found = run((f, G, g0), None, settings(variant, temperature, balance=1.0))
    assert all(x.isfinite().all() for x in found)
    exact = truth((f, G, g0), None, settings(variant, temperature, balance=1.0), torch.tensor(1.0))
    torch.testing.assert_close(found[0].double(), exact[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("variant", VARIANTS[1::2])
def test_nan_or_infinity_in_gives_nan_out(variant, bad):
    f, G, g0 = folded(C=20, K=3, h=2, w=3)
    f[1, 2, 0, 1] = bad
    assert KERNEL.forward(f, G, g0, None, settings(variant), Needs(False, False, False))[0].isnan()


def test_losses_near_zero_keep_their_last_bits():
    """softplus of large negative numbers: log(1 + x) would be 0."""
    f = torch.eye(3)[None, :, :, None].expand(2, -1, -1, -1).contiguous() * 5
    G = torch.eye(3).expand(2, 3, 3).contiguous() * 4
    G[1] *= -1
    f[1] *= -1
    how = LossSettings(1.0, "jsd", "reassigned", 1, 0.0)
    x = f, G, None
    assert distance(run(x, None, how)[0], truth(x, None, how, torch.tensor(1.0))[0]) < 1e-6


def test_through_the_public_function_with_projection_and_mask():
    x = [torch.randn(s) for s in ((4, 20, 5, 7), (4, 3, 6), (6, 20), (6,))]
    mask = torch.rand(4, 5, 7) < 0.6
    for variant, compiled in ((VARIANTS[0], False), ((*VARIANTS[5][:2], 3), True)):
        how = dict(zip(("estimator", "negatives", "num_negatives"), variant, strict=True)) | {"balance": 0.5}
        some = [t.clone().requires_grad_() for t in x]
        exact = [t.double().requires_grad_() for t in x]

        def step(*x, how=how):
            return isf.mutual_information_loss(*x, mask=mask, backend="triton", **how)

        loss = (torch.compile(step, fullgraph=True, backend="aot_eager") if compiled else step)(*some)
        expected = isf.mutual_information_loss(*exact, mask=mask, backend="reference", **how)
        for a, b in zip(
            (loss, *torch.autograd.grad(2 * loss, some)),
            (expected, *torch.autograd.grad(2 * expected, exact)),
            strict=True,
        ):
            assert distance(a, b) < 1e-5


def test_float64_takes_the_reference():
    x = [torch.randn(s, dtype=torch.float64) for s in ((3, 4, 2, 2), (3, 2, 4))]
    with pytest.raises(isf.BackendUnavailableError, match="float64"):
        isf.mutual_information_loss(*x, backend="triton")
    assert KERNEL.unsupported("cuda", torch.float64) is not None
