"""The Triton kernels of `local_global_similarity` and `assign` in the interpreter, against the reference in float64."""

import itertools

import folded
import numpy as np
import pytest
import torch
from conftest import inputs
from triton.runtime import interpreter

import infoseg_fast as isf
from infoseg_fast.bench import launch_cases as cases
from infoseg_fast.kernels import KERNELS, similarity
from infoseg_fast.ops import OPS as RECORDS
from infoseg_fast.ops.protocol import Needs

OPS = [isf.local_global_similarity, isf.assign]
ALL = Needs(True, True, True)
# (B, C, K, size): one program; ragged tiles of positions and channels; several chunks of classes and of channels.
SHAPES = [(2, 5, 3, (3, 4)), (2, 70, 15, (11, 13)), (1, 40, 70, (9, 8))]


def results(op, x, upstream, backend):
    x = [t.detach().requires_grad_() for t in x]
    out = op(*x, backend=backend)
    return [out.detach(), *torch.autograd.grad(out, x, upstream.to(out.dtype))]


def distance(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30)).item()


def check(op, x, floor):
    """Error of value and gradients at most twice that of eager PyTorch in the same dtype, and a floor."""
    f, K = x[0], x[1].shape[1]
    upstream = torch.randn(len(f), K, *f.shape[2:]).to(f.dtype)
    exact = results(op, [t.double() for t in x], upstream, "reference")
    found = results(op, x, upstream, "triton")
    eager = results(op, x, upstream, "reference")
    for name, a, b, e in zip(("value", "f", "H", "W", "b"), found, exact, eager, strict=False):
        assert a.dtype == f.dtype and a.shape == b.shape
        assert distance(a, b) <= 2 * distance(e, b) + floor, name


# What rounding the folded global features and the coefficients to the dtype adds where PyTorch keeps them in float32.
FLOORS = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1.6e-2}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOORS, ids=str)
@pytest.mark.parametrize("op", OPS)
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
    for op in ("local_global_similarity", "assign"):
        kernel, extra = KERNELS[op], (1.3,) if op == "assign" else ()
        arguments, exact_arguments = (f, G, g0, *extra), (f.double(), G.double(), g0.double(), *extra)
        out, _ = kernel.forward(*arguments, ALL)
        torch.testing.assert_close(out.double(), folded.value(op, *exact_arguments), rtol=1e-5, atol=1e-5)
        found = kernel.backward(upstream, [out] if op == "assign" else [], *arguments, ALL)
        exact = folded.gradients(op, upstream.double(), *exact_arguments)
        for a, b in zip(found, exact, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-4)
        assert found.features.stride() == torch.empty_like(f).stride()


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
    kernel = KERNELS["assign"]
    V, _ = kernel.forward(f, G, None, 1.5, ALL)
    full = folded.gradients("assign", grad, f, G, None, 1.5)
    for needs in itertools.starmap(Needs, itertools.product((False, True), repeat=3)):
        if any(needs):
            for x, need, expected in zip(kernel.backward(grad, [V], f, G, None, 1.5, needs), needs, full, strict=True):
                assert need or x.numel() == 0
                if need:
                    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("op", OPS)
def test_reruns_give_the_same_bits_and_backward_runs_twice(op):
    x = [t.requires_grad_() for t in inputs(B=2, C=70, K=15, size=(12, 12), dtype=torch.float32)]
    upstream = torch.randn(2, 15, 12, 12)
    out = op(*x, backend="triton")
    once = torch.autograd.grad(out, x, upstream, retain_graph=True)
    again = torch.autograd.grad(out, x, upstream)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert torch.equal(op(*x, backend="triton"), out)


def test_the_sum_over_splits_is_that_of_one_split(monkeypatch):
    f, G = torch.randn(2, 10, 15, 15, dtype=torch.float64), torch.randn(2, 4, 10, dtype=torch.float64)
    grad, needs = torch.randn(2, 4, 15, 15, dtype=torch.float64), ALL
    several = similarity.gradients(grad, None, 1.0, f, G, needs)
    monkeypatch.setattr(similarity, "PROGRAMS", 1)
    one = similarity.gradients(grad, None, 1.0, f, G, needs)
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


def test_autocast_gives_its_dtype():
    f, H, W, b = inputs(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        V = isf.assign(f, H, W, b, backend="triton")
    assert V.dtype == torch.bfloat16
    torch.testing.assert_close(V.float(), isf.assign(f, H, W, b, backend="reference"), rtol=0.05, atol=0.05)


def test_opcheck():
    f, G, g0 = torch.randn(3, 5, 3, 4), torch.randn(3, 4, 5), torch.randn(3, 4)
    f, G, g0 = (x.requires_grad_() for x in (f, G, g0))
    for op, arguments in (("local_global_similarity", (f, G, None)), ("assign", (f, G, g0, 1.5))):
        needs = [x is not None for x in arguments[:3]]
        torch.library.opcheck(RECORDS[op].wiring.custom, (*arguments, needs, "triton"))


@pytest.mark.parametrize("op", OPS)
def test_compiles_as_one_graph(op):
    x = inputs(dtype=torch.float32)
    upstream = torch.randn(4, 3, 3, 4)
    compiled = torch.compile(lambda *x, backend: op(*x, backend=backend), backend="aot_eager", fullgraph=True)
    for a, b in zip(results(compiled, x, upstream, "triton"), results(op, x, upstream, "triton"), strict=True):
        torch.testing.assert_close(a, b)


def test_float16_features_may_have_global_features_and_coefficients_beyond_float16():
    f, G = torch.randn(2, 8, 3, 4).half(), torch.randn(2, 3, 8) * 1e5
    grad = (torch.randn(2, 3, 3, 4) * 1e-3).half()
    for temperature in (1e-7, 1e-4):
        arguments = f, G, None, temperature
        V, _ = KERNELS["assign"].forward(*arguments, ALL)
        torch.testing.assert_close(V.float(), folded.value("assign", *arguments), rtol=2e-3, atol=2e-3)
        found = KERNELS["assign"].backward(grad, [V], *arguments, ALL)
        exact = folded.gradients("assign", grad, *arguments)
        assert exact.G.abs().max() < 6e-8 or temperature > 1e-7  # below float16's least number
        for a, b in zip(found, exact, strict=True):
            assert distance(a, b) < 2e-3


def test_offsets_beyond_32_bits(monkeypatch):
    """Of maps that no memory here holds: addresses are noted in the place of loads and stores."""
    seen = {"load": [], "store": []}

    def load(builder, ptrs, mask, other, *_):
        seen["load"].append(np.broadcast_to(ptrs.data, mask.data.shape)[mask.data])
        return interpreter.TensorHandle(np.zeros(ptrs.data.shape, np.float32), ptrs.get_element_ty())

    def store(builder, ptrs, value, mask, *_):
        seen["store"].append(np.broadcast_to(ptrs.data, mask.data.shape)[mask.data])

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_load", load)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_store", store)
    B, C, K, P = 2, 3, 3, 4
    case = cases.Case("local_global_similarity", "", B=B, C=C, K=K, h=1, w=P, bias=False)
    launches = cases.record(case, fake=False)
    wide = {"b": 2**35, "c": 2**31 + 16, "y": 4, "x": 1}
    in_map = [b * wide["b"] + c * wide["c"] + p for b in range(B) for c in range(C) for p in range(P)]
    in_scores = [k * 2**30 + p for k in range(K) for p in range(P)]  # of the first tile of 2^30 positions
    for started, kind, name in (
        (launches["forward"][0], "store", "out"),
        (launches["backward"][0], "load", "grad"),
    ):
        maps = {f"{prefix}stride_{x}": n for x, n in wide.items() for prefix in ("", "df_")}
        for changed, grid in ((maps, started.grid), ({"P": 2**30, "tiles_a_split": 1}, (1,))):
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
