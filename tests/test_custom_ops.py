"""What the factory settles for every op: custom ops, recorded graphs, transforms, second
derivatives.
"""

from dataclasses import replace

import pytest
import torch
from conftest import needs_extension
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from infoseg_fast import reference
from infoseg_fast.errors import BackendUnavailableError
from infoseg_fast.ops import OPS, dispatch
from infoseg_fast.ops.record import Case
from infoseg_fast.recipe.appearance import appearance_term

pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")

WIRED = [name for name, op in OPS.items() if op.wiring is not None]
DIFFERENTIABLE = [name for name, op in OPS.items() if op.differentiable]
SIZES = {"B": 3, "C": 5, "D": 7, "K": 4, "S": 6, "h": 4, "w": 5, "size": (16, 20)}
OTHER_SIZES = {"B": 5, "h": 6, "w": 3, "size": (24, 12)}
SETTINGS = {
    "segment_and_count": {"num_classes": 3},
    "mutual_information_loss": {"num_negatives": 2, "balance": 0.5, "temperature": 0.8},
    "assign": {"temperature": 1.5},
    "appearance_statistics": {"smooth": 1},
}
NAMES_THE_REFERENCE = r'backend="reference"'


def dtype_of(name):
    """float64 where the C++ kernel takes it."""
    return torch.float32 if dispatch.kernel(name, "cpp").unsupported("cpu", torch.float64) else torch.float64


def case_of(name, dtype, **more):
    masked = name in ("mutual_information_loss", "appearance_statistics")
    return Case("", op=name, dtype=dtype, masked=masked, settings=SETTINGS.get(name, {}), **SIZES | more)


def call(name, dtype=None, backend="auto", **more):
    """The tensors of a case, and the public function of them alone."""
    op, dtype = OPS[name], dtype or dtype_of(name)
    x, keywords = op.arguments(case_of(name, dtype, **more), "cpu", dtype)
    return x, lambda *x: op.function(*x, backend=backend, **keywords)


def kernel_arguments(name, dtype):
    """A kernel's arguments that hold numbers, those of the public call, with the settings one by
    one.
    """
    op, case = OPS[name], case_of(name, dtype)
    x, keywords = op.arguments(case, "cpu", dtype)
    tensors = [*x, *(v for v in keywords.values() if isinstance(v, torch.Tensor))]
    shaped = iter(tensors)
    if op.wiring.folds:
        features, H, weight, bias, *constants = [t for t in tensors if t.dtype != torch.uint8]
        constants += [t for t in tensors if t.dtype == torch.uint8]
        shaped = iter([features, *reference.fold_projection(H, weight, bias), *constants])
    arguments = []
    for value in op.kernel_arguments(case, "cpu"):
        if isinstance(value, torch.Tensor):
            arguments.append(next(shaped).detach().view(value.shape))
        else:
            arguments += value if hasattr(value, "_fields") else [value]
    return arguments


def gradients(function, x, upstream):
    x = [t.detach().requires_grad_() for t in x]
    out = function(*x)
    return [out.detach(), *torch.autograd.grad(out, x, upstream)]


def assert_close(found, expected):
    for a, b in zip(found, expected, strict=True):
        tolerance = {"rtol": 1e-9, "atol": 1e-11} if a.dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(a, b, **tolerance)


def assert_same(found, expected):
    """Equal numbers; of labels and counts all but those that rounding decides."""
    if found.is_floating_point():
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    else:
        assert found.shape == expected.shape and (found != expected).double().mean() < 0.02


@needs_extension
@pytest.mark.parametrize("name", WIRED)
def test_opcheck(name):
    wiring = OPS[name].wiring
    arguments, needs = (
        kernel_arguments(name, dtype_of(name)),
        [[True] * wiring.differentiable] if wiring.differentiable else [],
    )
    for i in range(wiring.differentiable):
        arguments[i].requires_grad_()
    torch.library.opcheck(wiring.custom, (*arguments, *needs, "cpp"))


@needs_extension
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_custom_op_direct_call_and_reference_give_the_same_gradients(name, monkeypatch):
    x, direct = call(name, backend="cpp")
    upstream = torch.randn_like(direct(*x))
    expected = gradients(call(name, backend="reference")[1], x, upstream)
    assert_close(gradients(direct, x, upstream), expected)
    monkeypatch.setattr(dispatch, "plain", lambda *tensors: False)
    assert_close(gradients(direct, x, upstream), expected)


@needs_extension
@pytest.mark.parametrize("way", ["direct", "custom op"])
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_a_gradient_penalty_raises_and_the_reference_has_one(name, way, monkeypatch):
    if way == "custom op":
        monkeypatch.setattr(dispatch, "plain", lambda *tensors: False)
    x, function = call(name)
    x = [t.requires_grad_() for t in x]
    upstream = torch.randn_like(function(*x).detach())
    first = torch.autograd.grad(function(*x), x, upstream, create_graph=True)
    assert_close(first, gradients(function, x, upstream)[1:])
    with pytest.raises(RuntimeError, match=NAMES_THE_REFERENCE):
        sum(g.square().sum() for g in first).backward()
    assert all(t.grad is None for t in x)
    _, exact = call(name, backend="reference")
    first = torch.autograd.grad(exact(*x), x, upstream, create_graph=True)
    sum(g.square().sum() for g in first).backward()
    assert all(t.grad.isfinite().all() for t in x) and any(t.grad.any() for t in x)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_second_derivatives_of_the_reference(name):
    x, function = call(name, torch.float64, "reference", B=2, C=2, D=3, K=2, S=2, h=1, w=2)
    if name == "mutual_information_loss":
        keywords = {"num_negatives": 1}
        function = lambda *x: OPS[name].function(*x, backend="reference", **keywords)  # noqa: E731
    if name == "information_of_moments":
        x = call(name, torch.float64)[0]
        total = x[0].sum(dim=0)
        function = lambda moments: OPS[name].function(moments, total, backend="reference")  # noqa: E731
    x = [t.requires_grad_() for t in x]
    assert torch.autograd.gradgradcheck(function, x, fast_mode=True)


@needs_extension
@pytest.mark.parametrize("name", WIRED)
def test_transforms_take_the_reference_and_a_named_kernel_raises(name):
    x, function = call(name)
    _, exact = call(name, backend="reference")
    _, named = call(name, backend="cpp")

    def transforms(function):
        yield lambda: torch.func.vmap(function)(*(torch.stack([t, t]) for t in x))[1]
        if name in DIFFERENTIABLE:
            yield lambda: torch.func.grad(lambda *x: function(*x).square().sum())(*x)
            yield lambda: torch.func.jvp(function, tuple(x), tuple(torch.ones_like(t) for t in x))[1]
            yield lambda: forward_mode(function)

    def forward_mode(function):
        with forward_ad.dual_level():
            out = function(*(forward_ad.make_dual(t, torch.ones_like(t)) for t in x))
            return forward_ad.unpack_dual(out).tangent

    for found, expected, refused in zip(*map(transforms, (function, exact, named)), strict=True):
        assert_same(found(), expected())
        with pytest.raises(BackendUnavailableError, match=NAMES_THE_REFERENCE):
            refused()


@needs_extension
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_batched_gradients_raise(name):
    x, function = call(name)
    x = [t.requires_grad_() for t in x]
    out = function(*x)
    with pytest.raises(RuntimeError, match=NAMES_THE_REFERENCE):
        torch.autograd.grad(out, x, torch.stack([torch.ones_like(out)] * 2), is_grads_batched=True)


class Module(torch.nn.Module):
    """The public call with its tensors, those among the keywords too, as the arguments."""

    def __init__(self, name, backend, keywords):
        super().__init__()
        self.function, self.backend = OPS[name].function, backend
        self.names = [key for key, value in keywords.items() if isinstance(value, torch.Tensor)]
        self.settings = {key: value for key, value in keywords.items() if key not in self.names}

    def forward(self, *x):
        number = len(x) - len(self.names)
        keywords = dict(zip(self.names, x[number:], strict=True))
        return self.function(*x[:number], **keywords, **self.settings, backend=self.backend)


def recorded(name, backend):
    """The module of an op, its example, inputs of another batch, height and width, and what they
    give.
    """
    op, dtype = OPS[name], torch.float32
    case = case_of(name, dtype)
    x, keywords = op.arguments(case, "cpu", dtype)
    module = Module(name, backend, keywords)
    other = replace(case, **OTHER_SIZES)
    if name == "local_appearance":  # the size of the result is a setting
        other = replace(case, B=5, size=(24, 40))
    y, other_keywords = op.arguments(other, "cpu", dtype)
    example, others = ([*t, *(k[key] for key in module.names)] for t, k in ((x, keywords), (y, other_keywords)))
    exact = Module(name, "reference", keywords)
    return module, tuple(example), tuple(others), [exact(*example), exact(*others)]


@pytest.mark.parametrize("name", WIRED)
def test_a_traced_graph_gives_the_eager_numbers_at_any_size(name):
    module, example, others, expected = recorded(name, "auto")
    traced = torch.jit.trace(module, example, check_trace=False)
    assert "infoseg_fast::" not in str(traced.inlined_graph)
    for x, truth in zip((example, others), expected, strict=True):
        assert_same(traced(*x), truth)


@needs_extension
@pytest.mark.parametrize("name", WIRED)
def test_a_kernel_asked_for_by_name_is_not_traced(name):
    module, example, *_ = recorded(name, "cpp")
    with pytest.raises(BackendUnavailableError, match=f"under torch.jit.trace; {NAMES_THE_REFERENCE}"):
        torch.jit.trace(module, example, check_trace=False)


def dynamic(name, example):
    """The batch, the height and the width of maps, and the batch of global features."""
    sizes = {4: (0, 2, 3), 3: (0,)}
    if name in ("segment_and_count", "mutual_information_loss", "appearance_statistics"):
        sizes[3] = 0, 1, 2  # targets and masks
    kept = {"refined_labels": (3, 4), "information_of_moments": (0, 1)}.get(name, ())
    auto = torch.export.Dim.AUTO
    found = []
    for place, x in enumerate(example):
        axes = sizes.get(x.dim(), ()) if place not in kept else ()
        axes = (0,) if x.dim() == 3 and x.is_floating_point() else axes
        found.append({axis: auto for axis in axes} or None)
    return (tuple(found),)


@pytest.mark.parametrize("name", WIRED)
def test_an_exported_program_gives_the_eager_numbers_at_any_size(name):
    module, example, others, expected = recorded(name, "auto")
    program = torch.export.export(module, example, dynamic_shapes=dynamic(name, example))
    assert not any("infoseg_fast" in str(node.target) for node in nodes(program.graph_module))
    for x, truth in zip((example, others), expected, strict=True):
        assert_same(program.module(check_guards=False)(*x), truth)  # PyTorch 2.9 cannot check those of *x


def nodes(module):
    """The nodes of a graph and of the graphs that it calls."""
    return [node for m in module.modules() if isinstance(m, torch.fx.GraphModule) for node in m.graph.nodes]


@needs_extension
@pytest.mark.parametrize("name", ["assign", "segment_and_count", "mutual_information_loss"])
def test_an_exported_program_keeps_a_kernel_asked_for_by_name(name):
    module, example, others, expected = recorded(name, "cpp")
    program = torch.export.export(module, example, dynamic_shapes=dynamic(name, example))
    assert any(f"infoseg_fast.{name}" in str(node.target) for node in nodes(program.graph_module))
    for x, truth in zip((example, others), expected, strict=True):
        assert_same(program.module(check_guards=False)(*x), truth)  # PyTorch 2.9 cannot check those of *x


def compiled_ops(function, *x):
    """What the compiled function returns, and the names of the package's ops in its graph."""
    found = []

    def backend(graph, example):
        found.extend(node.target for node in nodes(graph) if "infoseg_fast" in str(node.target))
        return graph

    torch._dynamo.reset()
    out = torch.compile(function, fullgraph=True, backend=backend)(*x)
    return out, [str(target).split(".")[1] for target in found]


@needs_extension
@pytest.mark.parametrize("name", WIRED)
def test_the_compiler_keeps_the_kernel(name):
    x, function = call(name, torch.float32)
    out, found = compiled_ops(function, *x)
    assert found == [name]
    assert_same(out, function(*x))


@needs_extension
def test_the_compiler_keeps_the_kernels_of_the_appearance_term():
    x, _ = call("assign", torch.float32)
    images = torch.rand(3, 3, 16, 20)
    out, found = compiled_ops(lambda *x: appearance_term(*x, images=images, smooth=1), *x)
    assert found == ["local_appearance", "appearance_statistics", "class_moments", "information_of_moments"]
    torch.testing.assert_close(out, appearance_term(*x, images=images, smooth=1))


@needs_extension
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_compiled_gradients_are_the_direct_ones(name):
    x, function = call(name)
    upstream = torch.randn_like(function(*x))
    for dynamic in (None, True):
        torch._dynamo.reset()
        compiled_function = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        assert_close(gradients(compiled_function, x, upstream), gradients(function, x, upstream))


@pytest.mark.parametrize("name", ["local_global_similarity", "assign", "segment"])
def test_tensors_without_memory_give_the_shape(name):
    x, function = call(name)
    found, expected = function(*(t.to("meta") for t in x)), function(*x)
    assert found.is_meta and (found.shape, found.dtype) == (expected.shape, expected.dtype)


@needs_extension
@pytest.mark.parametrize("name", WIRED)
def test_a_mode_that_looks_at_operations_sees_the_op(name):
    class Seen(TorchDispatchMode):
        ops = ()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.ops = *self.ops, str(func)
            return func(*args, **kwargs or {})

    x, function = call(name, torch.float32)
    with Seen() as seen:
        function(*x)
    assert f"infoseg_fast.{name}.default" in seen.ops


@needs_extension
def test_a_gradient_has_the_layout_of_the_features(monkeypatch):
    monkeypatch.setattr(dispatch, "plain", lambda *tensors: False)
    x, function = call("local_global_similarity", C=8, h=4, w=4)
    f = x[0].to(memory_format=torch.channels_last).requires_grad_()
    function(f, *x[1:]).sum().backward()
    assert f.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("name", WIRED)
def test_the_users_defaults_change_nothing(name, backend):
    x, function = call(name, torch.float32, backend)
    leaves = [t.requires_grad_(t.is_floating_point() and name in DIFFERENTIABLE) for t in x]
    expected = outcome(function, leaves)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):  # what names no device has no values
            found = outcome(function, leaves)
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other) and one.dtype == other.dtype


@pytest.mark.parametrize("name", WIRED)
def test_views_with_the_negative_bit_are_read_as_their_values(name):
    x, function = call(name)
    lazy = [torch._neg_view(-t) if t.is_floating_point() else t for t in x]
    assert torch.equal(function(*lazy), function(*x))


def outcome(function, leaves):
    """The result, and the gradients of its sum."""
    out = function(*leaves)
    if not out.requires_grad:
        return [out]
    return [out.detach(), *torch.autograd.grad(out.sum(), [x for x in leaves if x.requires_grad], allow_unused=False)]
