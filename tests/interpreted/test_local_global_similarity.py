"""The Triton kernels of `local_global_similarity` and `assign` in the interpreter, against the
reference in float64.
"""

import itertools

import numpy as np
import pytest
import torch
from conftest import inputs
from triton.runtime import interpreter

import infoseg_fast as isf
from infoseg_fast.bench import launches
from infoseg_fast.bench.cuda_values import distance
from infoseg_fast.kernels import KERNELS, local_global_similarity
from infoseg_fast.kernels.plans import forget_plans
from infoseg_fast.ops import OPS as RECORDS
from infoseg_fast.ops.protocol import Needs
from infoseg_fast.ops.record import Case

OPS = [isf.local_global_similarity, isf.assign]
ALL = Needs(True, True, True)
# (B, C, K, size): one program; ragged tiles of positions and channels; several chunks of classes
# and of channels.
SHAPES = [(2, 5, 3, (3, 4)), (2, 70, 15, (11, 13)), (1, 40, 70, (9, 8))]


def results(op, x, upstream, backend):
    x = [t.detach().requires_grad_() for t in x]
    out = op(*x, backend=backend)
    return [out.detach(), *torch.autograd.grad(out, x, upstream.to(out.dtype))]


def kernel_results(op, arguments, upstream, needs=ALL):
    """Value and gradients of a kernel, called by its protocol."""
    kernel = KERNELS[op]
    out, saved = kernel.forward(*arguments, needs)
    saved = [out, *saved] if RECORDS[op].wiring.saves_output else saved
    return [out, *kernel.backward(upstream, saved, *arguments, needs)]


def truth(function, f, G, g0, upstream):
    """Value and gradients in float64 of a function of the scores z = G f + g0."""
    x = [None if t is None else t.double().requires_grad_() for t in (f, G, g0)]
    z = torch.einsum("bkc,bcyx->bkyx", x[1], x[0])
    out = function(z if g0 is None else z + x[2][..., None, None])
    return [out.detach(), *torch.autograd.grad(out, [t for t in x if t is not None], upstream.double())]


def check(op, x, floor):
    """The error of value and gradients is at most twice that of eager PyTorch in the same dtype,
    plus a floor.
    """
    f, K = x[0], x[1].shape[1]
    upstream = torch.randn(len(f), K, *f.shape[2:]).to(f.dtype)
    exact = results(op, [t.double() for t in x], upstream, "reference")
    found = results(op, x, upstream, "triton")
    eager = results(op, x, upstream, "reference")
    for name, a, b, e in zip(("value", "f", "H", "W", "b"), found, exact, eager, strict=False):
        assert a.dtype == f.dtype and a.shape == b.shape
        assert distance(a, b) <= 2 * distance(e, b) + floor, name


# The kernels round the folded global features and the coefficients to the dtype; PyTorch keeps them
# in float32.
FLOORS = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1.6e-2}


# The ops share their kernels: the larger shapes are checked in half of the dtypes with each.
CHECKS = [
    (op, dtype, shape)
    for (o, op), (d, dtype), shape in itertools.product(enumerate(OPS), enumerate(FLOORS), SHAPES)
    if shape == SHAPES[0] or (o + d) % 2 == 0
]


@pytest.mark.parametrize(("op", "dtype", "shape"), CHECKS, ids=str)
def test_values_and_gradients_are_the_references(op, dtype, shape):
    B, C, K, size = shape
    x = inputs(B=B, C=C, D=6, K=K, size=size, dtype=torch.float64)
    check(op, [(t * scale).to(dtype) for t, scale in zip(x, (1, 0.5, C**-0.5, 1), strict=True)], FLOORS[dtype])


def layouts():
    f = torch.randn(2, 20, 11, 12, dtype=torch.float32)
    yield "channels last", f.to(memory_format=torch.channels_last)
    yield "rows of a larger map", torch.randn(2, 20, 11, 20)[..., 3:15]
    yield "part of the channels", torch.randn(2, 50, 11, 12)[:, 1:41:2]
    yield "every other column", torch.randn(2, 20, 11, 24)[..., ::2]
    yield "transposed", torch.randn(2, 20, 12, 11).mT
    yield "one image for all", f[:1].expand(2, -1, -1, -1)
    yield "one value for all", torch.randn(2, 1, 1, 1).expand(2, 20, 11, 12)
    yield "not aligned", torch.randn(1 + f.numel())[1:].view_as(f)
    yield "one position", torch.randn(2, 20, 1, 1)
    yield "one channel", torch.randn(2, 1, 11, 12).to(memory_format=torch.channels_last)


@pytest.mark.parametrize(("name", "f"), list(layouts()), ids=lambda x: x if isinstance(x, str) else "")
def test_every_layout_is_read_where_it_lies(name, f, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "contiguous", None)  # no copy is made
    monkeypatch.setattr(torch.Tensor, "clone", None)
    C, K = f.shape[1], 5
    G, g0, upstream = torch.randn(2, K, C), torch.randn(2, K), torch.randn(2, K, *f.shape[2:])
    for op, settings, function in (
        ("local_global_similarity", (), lambda z: z),
        ("assign", (1.3,), lambda z: torch.softmax(1.3 * z, dim=1)),
    ):
        found = kernel_results(op, (f, G, g0, *settings), upstream)
        for a, b in zip(found, truth(function, f, G, g0, upstream), strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-4)
        assert found[1].stride() == torch.empty_like(f).stride()


@pytest.mark.parametrize("op", OPS)
def test_gradcheck_with_and_without_a_projection(op):
    f, H, W, b = inputs(B=2, C=3, D=4, K=3, size=(1, 2), requires_grad=True)

    def found(*x):
        return op(*x, backend="triton")

    assert torch.autograd.gradcheck(found, (f, H, W, b), fast_mode=True)
    assert torch.autograd.gradcheck(found, (f, H, W), fast_mode=True)
    assert torch.autograd.gradcheck(found, (f, H[..., :3].detach().requires_grad_()), fast_mode=True)


@pytest.mark.parametrize("K", [4, 40])
def test_every_subset_of_gradients(K):
    f, G, grad = torch.randn(2, 70, 5, 8), torch.randn(2, K, 70), torch.randn(2, K, 5, 8)
    full = truth(lambda z: torch.softmax(1.5 * z, dim=1), f, G, torch.zeros(2, K), grad)
    check_subsets("assign", (f, G, None, 1.5), grad, full)


def check_subsets(op, arguments, upstream, full):
    """Each subset of gradients has those of `full` = (value, df, dG, dg0), and no other."""
    for needs in itertools.starmap(Needs, itertools.product((False, True), repeat=3)):
        if any(needs):
            found = kernel_results(op, arguments, upstream, needs)
            for x, need, expected in zip(found[1:], needs, full[1:], strict=True):
                assert need or x.numel() == 0
                if need:
                    torch.testing.assert_close(x.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("op", OPS)
def test_backward_runs_twice_and_gives_the_same_bits(op):
    x = [t.requires_grad_() for t in inputs(B=2, C=70, K=15, size=(12, 12), dtype=torch.float32)]
    upstream = torch.randn(2, 15, 12, 12)
    out = op(*x, backend="triton")
    once = torch.autograd.grad(out, x, upstream, retain_graph=True)
    again = torch.autograd.grad(out, x, upstream)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_the_sum_over_splits_is_that_of_one_split(monkeypatch):
    f, G = torch.randn(2, 10, 15, 15, dtype=torch.float64), torch.randn(2, 4, 10, dtype=torch.float64)
    grad, needs = torch.randn(2, 4, 15, 15, dtype=torch.float64), ALL
    several = local_global_similarity.gradients(grad, None, 1.0, f, G, needs)
    monkeypatch.setattr(local_global_similarity, "PROGRAMS", 1)
    forget_plans()
    one = local_global_similarity.gradients(grad, None, 1.0, f, G, needs)
    for a, b in zip(several, one, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shape", [(0, 5, 3, (3, 4)), (2, 5, 3, (0, 4)), (2, 0, 3, (3, 4))], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_empty_inputs(op, shape):
    B, C, K, size = shape
    x = inputs(B=B, C=C, D=6, K=K, size=size, dtype=torch.float32)
    upstream = torch.randn(B, K, *size)
    pairs = zip(results(op, x, upstream, "triton"), results(op, x, upstream, "reference"), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_nan_and_infinity_come_out_as_nan():
    f, H, W, b = inputs(dtype=torch.float32)
    for bad in (torch.nan, torch.inf):
        f[1, 0, 1, 1] = bad
        V = isf.assign(f, H, W, b, backend="triton")
        assert V[1, :, 1, 1].isnan().all() and V.isnan().sum() == V.shape[1]
        assert isf.local_global_similarity(f, H, W, b, backend="triton")[1, :, 1, 1].isfinite().sum() == 0


def test_extreme_similarities_give_probabilities():
    f, H, _, _ = inputs(C=7, scale=60.0, dtype=torch.float32)
    for temperature in (1e-3, 1.0, 1e3):
        V = isf.assign(f, H, temperature=temperature, backend="triton")
        torch.testing.assert_close(V.sum(1), torch.ones_like(V[:, 0]))


def test_float16_features_may_have_global_features_and_coefficients_beyond_float16():
    f, G = torch.randn(2, 8, 3, 4).half(), torch.randn(2, 3, 8) * 1e5
    grad = (torch.randn(2, 3, 3, 4) * 1e-3).half()
    for temperature in (1e-7, 1e-4):
        found = kernel_results("assign", (f, G, None, temperature), grad)
        exact = truth(lambda z, tau=temperature: torch.softmax(tau * z, dim=1), f, G, torch.zeros(2, 3), grad)
        assert exact[2].abs().max() < 6e-8 or temperature > 1e-7  # below the smallest number of float16
        for a, b in zip(found, exact, strict=True):
            assert distance(a, b.to(a.dtype)) < 2e-3  # gradients of features are subnormal in float16


def test_offsets_beyond_32_bits(monkeypatch):
    """For maps larger than the memory: loads and stores only record their addresses."""
    seen = {"load": [], "store": []}

    def load(builder, ptrs, mask, other, *_):
        seen["load"].append(np.broadcast_to(ptrs.data, mask.data.shape)[mask.data])
        return interpreter.TensorHandle(np.zeros(ptrs.data.shape, np.float32), ptrs.get_element_ty())

    def store(builder, ptrs, value, mask, *_):
        seen["store"].append(np.broadcast_to(ptrs.data, mask.data.shape)[mask.data])

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_load", load)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_store", store)
    B, C, K, P = 2, 3, 3, 4
    case = Case("", op="local_global_similarity", B=B, C=C, K=K, h=1, w=P, bias=False)
    recorded = launches.record(case, fake=False)
    wide = {"b": 2**35, "c": 2**31 + 16, "y": 4, "x": 1}
    in_map = [b * wide["b"] + c * wide["c"] + p for b in range(B) for c in range(C) for p in range(P)]
    in_scores = [k * 2**30 + p for k in range(K) for p in range(P)]  # of the first tile of 2^30 positions
    for started, kind, name in (
        (recorded["forward"][0], "store", "out"),
        (recorded["backward"][0], "load", "grad"),
    ):
        maps = {f"{prefix}stride_{x}": n for x, n in wide.items() for prefix in ("", "df_")}
        for changed, grid in ((maps, started.grid), ({"P": 2**30, "tiles_per_split": 1}, (1,))):
            arguments = started.arguments | changed
            arguments = {x: arguments[x] for x in started.kernel.parameters if x in arguments}
            seen["load"].clear(), seen["store"].clear()
            started.kernel.function[grid](**arguments, **started.constexprs)
            loads, stores = (set(np.concatenate(seen[x]).tolist()) for x in ("load", "store"))
            if changed is maps:
                assert {arguments["features"].data_ptr() + 4 * offset for offset in in_map} <= loads
                if "df" in arguments:
                    assert {arguments["df"].data_ptr() + 4 * offset for offset in in_map} <= stores
            else:
                addresses = {arguments[name].data_ptr() + 4 * offset for offset in in_scores}
                assert addresses <= (loads if kind == "load" else stores)
