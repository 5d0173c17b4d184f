"""The C++ kernels against float64 on every instruction set, dtype and layout, and their threads."""

import multiprocessing

import pytest
import statement
import torch
import torch.nn.functional as F
from conftest import assert_wanted_gradients, inputs, needs_extension, torch_threads, wanting
from processes import each_rank

import infoseg_fast as isf
from infoseg_fast import extension, reference
from infoseg_fast.bench import cpu as bench
from infoseg_fast.bench import providers
from infoseg_fast.ops import OPS, cpp

pytestmark = needs_extension
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Relative error of a gradient's norm: rounding of the result, and of sums in the accumulation
# dtype.
TOLERANCE = {torch.float32: 5e-6, torch.float64: 2e-13, torch.bfloat16: 1e-2, torch.float16: 1.5e-3}


def laid_out(x, layout):
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        B, C, h, w = x.shape
        return x.new_full((B, C + 1, h + 2, 2 * w + 1), torch.nan)[:, 1:, 1:-1, 1::2].copy_(x)
    return x


# B, C, D (0: no projection), K, h, w, layout, mask: whole tiles, ragged ones, more classes than
# positions.
SHAPES = [
    (5, 21, 33, 3, 9, 11, "contiguous", False),
    (5, 21, 33, 7, 9, 11, "channels_last", True),
    (5, 64, 0, 15, 8, 16, "contiguous", True),
    (5, 70, 32, 18, 8, 16, "channels_last", True),
    (5, 70, 32, 27, 13, 10, "strided", False),
    (5, 13, 8, 6, 1, 2, "contiguous", False),
]
LOSSES = [
    {},
    {"num_negatives": 3, "balance": 2.0, "temperature": 0.7},
    {"num_negatives": 4, "balance": 1.0},
    {"negatives": "reassigned", "num_negatives": 2},
    {"negatives": "reassigned", "num_negatives": 4, "balance": 0.5},
    {"estimator": "infonce", "num_negatives": 1, "balance": 2.0},
    {"estimator": "infonce", "num_negatives": 4},
]


def arguments(shape, dtype):
    """Inputs in `dtype`, the same as float64 leaves, and the mask."""
    B, C, D, K, h, w, layout, masked = shape
    f, H, W, b = inputs(B=B, C=C, D=D or C, K=K, size=(h, w))
    x = [f, H * 0.4] if D == 0 else [f, H * 0.5, W / C**0.5, b]
    x = [t.to(dtype) for t in x]
    x[0] = laid_out(x[0], layout)
    exact = [t.double().detach().requires_grad_() for t in x]
    mask = torch.rand(B, h, w) < 0.7 if masked else None
    return [t.detach().requires_grad_() for t in x], exact, mask


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_loss_and_its_gradients_are_true(instruction_set, shape, dtype):
    for how in LOSSES:
        x, exact, mask = arguments(shape, dtype)
        stated = statement.loss(*exact, mask=mask, **how)
        found = isf.mutual_information_loss(*x, mask=mask, backend="cpp", **how)
        # bfloat16 products take global features rounded to bfloat16 where the CPU has instructions
        # for them.
        rtol = {torch.float64: 1e-12, torch.bfloat16: 1e-3}.get(dtype, 1e-5)
        torch.testing.assert_close(found.double(), stated, rtol=rtol, atol=1e-6)
        (-1.7 * found).backward()
        (-1.7 * stated).backward()
        for a, b in zip(x, exact, strict=True):
            assert (a.grad.double() - b.grad).norm() <= TOLERANCE[dtype] * b.grad.norm(), how
        with torch.no_grad():
            again = isf.mutual_information_loss(*x, mask=mask, backend="cpp", **how)
        torch.testing.assert_close(again, found.detach(), rtol=1e-6, atol=0)


# B, partners, C, K, h, w, layout, mask: runs of one image and more, partners up to the whole batch,
# through all three kernels.
PARTNERS = [
    (2, 1, 16, 4, 3, 5, "channels_last", False),
    (3, 2, 32, 15, 9, 8, "channels_last", True),
    (4, 3, 20, 12, 5, 7, "contiguous", True),
    (5, 3, 32, 27, 16, 5, "channels_last", False),
    (5, 4, 33, 9, 8, 9, "strided", True),
    (8, 7, 9, 6, 3, 3, "contiguous", True),
    (11, 9, 21, 7, 4, 5, "contiguous", True),
    (11, 10, 16, 5, 8, 9, "channels_last", True),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("partners", PARTNERS)
def test_any_number_of_partners_on_any_number_of_threads(instruction_set, partners, dtype):
    B, n, C, K, h, w, layout, masked = partners
    how = {"num_negatives": n, "temperature": 1.3, "balance": 0.3}
    x, exact, mask = arguments((B, C, 0, K, h, w, layout, masked), dtype)
    stated = statement.loss(*exact, mask=mask, **how)
    truth = torch.autograd.grad(stated, exact)
    for threads in (1, 2, 3):
        with torch_threads(threads):
            found = isf.mutual_information_loss(*x, mask=mask, backend="cpp", **how)
            rtol = {torch.float64: 1e-12, torch.bfloat16: 1e-3}.get(dtype, 1e-5)
            torch.testing.assert_close(found.double(), stated, rtol=rtol, atol=1e-6)
            for a, b in zip(torch.autograd.grad(found, x), truth, strict=True):
                assert (a.double() - b).norm() <= TOLERANCE[dtype] * b.norm(), threads
            with torch.no_grad():
                again = isf.mutual_information_loss(*x, mask=mask, backend="cpp", **how)
            torch.testing.assert_close(again, found.detach(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("partners", [1, 2, 3])
def test_what_lies_where_no_image_is_valid_reaches_neither_the_loss_nor_the_other_positions(partners):
    x, _, _ = arguments((4, 20, 0, 15, 9, 8, "contiguous", False), torch.float32)
    mask = torch.rand(4, 9, 8) < 0.7
    mask[:, 5] = False
    filled = x[0].detach().masked_fill(~mask.any(dim=0), torch.nan).requires_grad_()
    losses = [
        isf.mutual_information_loss(f, x[1], mask=mask, num_negatives=partners, backend="cpp") for f in (filled, x[0])
    ]
    (found,), (expected,) = (torch.autograd.grad(a, f) for a, f in zip(losses, (filled, x[0]), strict=True))
    assert torch.equal(*losses) and torch.equal(found, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_similarity_and_assignment_are_true(instruction_set, shape, dtype):
    for softmax in (False, True):
        x, exact, _ = arguments(shape, dtype)
        if softmax:
            found = isf.assign(*x, temperature=1.3, backend="cpp")
            stated = torch.softmax(1.3 * isf.local_global_similarity(*exact, backend="reference"), dim=1)
        else:
            found = isf.local_global_similarity(*x, backend="cpp")
            stated = isf.local_global_similarity(*exact, backend="reference")
        assert found.dtype == dtype
        upstream = torch.randn_like(found)
        found.backward(upstream)
        stated.backward(upstream.double())
        assert (found.double() - stated).norm() <= TOLERANCE[dtype] * stated.norm()
        for a, b in zip(x, exact, strict=True):
            assert (a.grad.double() - b.grad).norm() <= TOLERANCE[dtype] * b.grad.norm()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_moments_and_their_gradients_are_true(instruction_set, shape, dtype):
    for S, layout in ((1, "contiguous"), (21, "strided"), (70, "channels_last")):
        x, exact, _ = arguments(shape, dtype)
        B, h, w = len(x[0]), *x[0].shape[2:]
        Y = laid_out(torch.randn(B, S, h, w, dtype=torch.float64 if dtype == torch.float64 else torch.float32), layout)
        found = isf.class_moments(*x, statistics=Y, temperature=1.3, backend="cpp")
        stated = isf.class_moments(*exact, statistics=Y, temperature=1.3, backend="reference")
        upstream = torch.randn_like(found)
        found.backward(upstream)
        stated.backward(upstream.double())
        # Not rounded to the features' dtype; a product of bfloat16 pairs rounds the global
        # features.
        rtol = {torch.float64: 1e-13, torch.bfloat16: 5e-3}.get(dtype, 5e-6)
        assert (found.double() - stated).norm() <= rtol * stated.norm()
        for a, b in zip(x, exact, strict=True):
            assert (a.grad.double() - b.grad).norm() <= TOLERANCE[dtype] * b.grad.norm()
        with torch.no_grad():
            assert torch.equal(isf.class_moments(*x, statistics=Y, temperature=1.3, backend="cpp"), found)


@pytest.mark.parametrize("dtype", DTYPES)
def test_labels_are_the_argmax_of_what_is_upsampled(instruction_set, dtype):
    for shape in SHAPES:
        x, exact, _ = arguments(shape, dtype)
        h, w = x[0].shape[2:]
        for interpolate in ("probs", "logits"):
            volume = isf.local_global_similarity(*exact, backend="reference").detach()
            if interpolate == "probs":
                volume = torch.softmax(1.3 * volume, dim=1)
            for size in (None, (4 * h, 4 * w), (37, 53), (2, 3), (1, 1), (100, 7)):
                large = F.interpolate(volume, size=size or (h, w), mode="bilinear", align_corners=False)
                how = {"temperature": 1.3, "interpolate": interpolate, "backend": "cpp"}
                labels = isf.segment(*x, size=size, **how)
                chosen = large.gather(1, labels.long()[:, None])[:, 0]
                # Near ties may differ.
                torch.testing.assert_close(
                    chosen, large.amax(1), rtol=0, atol=2e-5 if dtype != torch.float64 else 1e-12
                )
                target = torch.randint(0, 4, labels.shape, dtype=torch.uint8)
                counts = isf.segment_and_count(*x[:2], target, *x[2:], num_classes=4, ignore_index=2, **how)
                assert torch.equal(counts, isf.confusion_matrix(labels, target, x[1].shape[1], 4, ignore_index=2))


CASES = OPS["mutual_information_loss"].cases_for("cpu")


def step_of(case, function, dtype=None):
    """A forward and backward pass; `function` changes the provider."""
    x, keywords = providers.arguments(case, "cpu", dtype)
    return providers.steps(case, function(providers.providers(case, keywords)), x)["forward + backward"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_errors_are_at_most_twice_those_of_eager_pytorch(case):
    """Of the loss and of each gradient, against float64, at the shapes that are timed."""
    truth = step_of(case, lambda found: found["eager"], torch.float64)()
    found, eager = (
        providers.relative_errors(step_of(case, lambda found, way=way: found[way])(), truth)
        for way in ("infoseg_fast", "eager")
    )
    for name, ours, theirs in zip(providers.RESULTS, found, eager, strict=True):
        assert ours <= 2 * theirs + torch.finfo(torch.float32).eps, (name, ours, theirs)


@pytest.mark.parametrize("upstream", [1.0, 0.5])
@pytest.mark.parametrize("name", ["jsd", "jsd n=3", "jsd reassigned", "infonce all", "jsd all"])
def test_a_step_needs_little_memory_beside_its_gradients(name, upstream):
    """At most 4 B K (1 + n) P numbers above inputs and gradients, and no term in B * B * P."""
    case = next(case for case in CASES if case.name == name)
    extra = bench.extra_memory(step_of(case, lambda found: lambda *x: upstream * found["infoseg_fast"](*x)))
    if extra is None:
        pytest.skip("no peak memory to be had here")
    scores = case.B * case.K * (1 + min(case.negatives, 3)) * case.h * case.w
    assert extra * 2**20 <= 4 * 4 * scores


@pytest.mark.parametrize("needed", range(1, 16))
@pytest.mark.parametrize("how", LOSSES[1:])
def test_every_subset_of_gradients(how, needed):
    x = inputs(B=5, C=21, K=7, size=(5, 6))
    every = [t.detach().requires_grad_() for t in x]
    expected = torch.autograd.grad(isf.mutual_information_loss(*every, backend="reference", **how), every)
    some = wanting(x, needed)
    (3 * isf.mutual_information_loss(*some, backend="cpp", **how)).backward()
    assert_wanted_gradients(some, [3 * gradient for gradient in expected])


@pytest.mark.parametrize("needed", range(1, 16))
def test_every_subset_of_gradients_of_the_moments(needed):
    x, Y = inputs(B=5, C=21, K=7, size=(5, 6)), torch.randn(5, 4, 5, 6)
    every = [t.detach().requires_grad_() for t in x]
    upstream = torch.randn(7, 4, dtype=torch.float64)
    expected = torch.autograd.grad(isf.class_moments(*every, statistics=Y, backend="reference"), every, upstream)
    some = wanting(x, needed)
    found = isf.class_moments(*some, statistics=Y, backend="cpp")
    for _ in range(2):  # a second backward pass gives the same gradient
        found.backward(upstream, retain_graph=True)
    assert_wanted_gradients(some, [2 * gradient for gradient in expected])


def test_moments_over_many_positions_are_summed_in_float64():
    """A million equal terms: a running sum in float32 is off by more than a thousandth."""
    f, H = torch.zeros(4, 3, 512, 512), torch.zeros(4, 2, 3)
    Y = torch.full((4, 1, 512, 512), 0.1)
    found = isf.class_moments(f, H, statistics=Y, backend="cpp")
    torch.testing.assert_close(found, torch.full((2, 1), 2**20 * 0.05), rtol=1e-6, atol=0)


@pytest.mark.parametrize("how", LOSSES)
def test_a_second_backward_pass_gives_the_same_gradient(how):
    x = inputs(B=5, C=21, K=7, size=(5, 6), requires_grad=True)
    middle = x[0] * 1.0
    loss = isf.mutual_information_loss(middle, *x[1:], backend="cpp", **how)
    loss.backward(retain_graph=True)
    once = [t.grad.clone() for t in x]
    loss.backward()
    for t, gradient in zip(x, once, strict=True):
        torch.testing.assert_close(t.grad, 2 * gradient)


@pytest.mark.parametrize("upstream", [1.0, 0.25])
def test_a_gradient_is_handed_over_without_a_copy(upstream):
    f, H, W, b = inputs(B=4, C=8, size=(8, 8), dtype=torch.float32, requires_grad=True)
    kernel, formed = cpp.KERNELS["mutual_information_loss"], []
    forward = kernel.forward
    kernel.forward = lambda *x: formed.append((found := forward(*x))[1][0].data_ptr()) or found
    try:
        (upstream * isf.mutual_information_loss(f, H, W, b, backend="cpp")).backward()
    finally:
        del kernel.forward
    assert f.grad.data_ptr() == formed[0]


def test_a_scaled_loss_saves_small_gradients_in_float16():
    """The largest of them is under float16's least number."""
    x, _, _ = arguments((4, 6, 8, 3, 40, 40, "contiguous", False), torch.float16)
    x = [x[0], *(t.detach() * 2.0**-6 for t in x[1:])]
    exact = [t.detach().double().requires_grad_() for t in x]
    scale = 2.0**16
    (found,) = torch.autograd.grad(scale * isf.mutual_information_loss(*x, backend="cpp"), x[:1])
    (truth,) = torch.autograd.grad(scale * isf.mutual_information_loss(*exact, backend="reference"), exact[:1])
    assert (truth / scale).abs().max() < 2.0**-24
    assert (found.double() - truth).norm() <= 2e-3 * truth.norm()


@pytest.mark.parametrize("how", LOSSES)
def test_gradcheck(how):
    x = inputs(B=5, C=3, D=4, K=8, size=(2, 3), requires_grad=True)
    assert torch.autograd.gradcheck(lambda *x: isf.mutual_information_loss(*x, backend="cpp", **how), x)
    assert torch.autograd.gradcheck(lambda *x: isf.assign(*x, backend="cpp"), x)
    Y = torch.randn(5, 3, 2, 3)
    assert torch.autograd.gradcheck(lambda *x: isf.class_moments(*x, statistics=Y, backend="cpp"), x)


def test_opcheck_of_every_way_of_the_loss_and_without_a_bias():
    f, H, W, b = inputs(B=5, C=21, K=7, size=(5, 6))
    f, G, g0 = (t.detach().requires_grad_() for t in (f, *reference.fold_projection(H, W, b)))
    for how in (("jsd", "same_position", 1), ("jsd", "same_position", 4), ("infonce", "same_position", 4)):
        arguments = f, G, g0, None, 0.8, *how, 0.5, [True] * 3, "cpp"
        torch.library.opcheck(OPS["mutual_information_loss"].wiring.custom, arguments)
    arguments = f, G, None, [True, True, False], "cpp"
    torch.library.opcheck(OPS["local_global_similarity"].wiring.custom, arguments)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("pool", ["automatic", "own"])
@pytest.mark.parametrize("how", LOSSES)
def test_the_same_thread_count_gives_the_same_bits(how, pool, threads):
    x = inputs(B=5, C=40, K=9, size=(16, 17), dtype=torch.float32, requires_grad=True)
    Y = torch.randn(5, 4, 16, 17)
    extension.compiled().set_thread_pool(pool)
    runs = []
    try:
        with torch_threads(threads):
            for _ in range(3):
                loss = isf.mutual_information_loss(*x, backend="cpp", **how)
                moments = isf.class_moments(*x, statistics=Y, backend="cpp")
                gradients = torch.autograd.grad(loss, x), torch.autograd.grad(moments.sin().sum(), x)
                runs.append((loss, *gradients[0], moments, *gradients[1]))
    finally:
        extension.compiled().set_thread_pool("automatic")
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))
    exact = [t.detach().double().requires_grad_() for t in x]
    loss = isf.mutual_information_loss(*exact, backend="reference", **how)
    for a, b in zip(runs[0][1:5], torch.autograd.grad(loss, exact), strict=True):
        assert (a.double() - b).norm() <= 5e-6 * b.norm()


def _loss(pipe=None):
    torch.manual_seed(0)
    loss = isf.mutual_information_loss(*inputs(B=4, C=8, size=(16, 16)), backend="cpp").item()
    if pipe is not None:
        pipe.send(loss)
    return loss


def _loss_in_a_fork(rank, number, threads):
    """The loss here, with threads, and then in a fork of this process."""
    torch.set_num_threads(threads)
    here = _loss()
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_loss, args=(send,), daemon=True)
    child.start()
    assert receive.poll(60), "the child hangs"
    return here, receive.recv()


def test_threads_survive_a_fork():
    ((here, there),) = each_rank(_loss_in_a_fork, 1, 2)
    assert here == pytest.approx(there, rel=1e-6)


@pytest.mark.parametrize("how", LOSSES)
def test_nothing_of_the_results_is_left_unwritten(how, monkeypatch):
    """Every output starts as NaN."""
    empty_like, new_empty = torch.empty_like, torch.Tensor.new_empty

    def poisoned(make):
        def wrapped(*args, **kwargs):
            x = make(*args, **kwargs)
            return x.fill_(torch.nan) if x.is_floating_point() else x.fill_(77)

        return wrapped

    x = inputs(B=5, C=21, K=7, size=(9, 11), dtype=torch.float32, requires_grad=True)
    monkeypatch.setattr(torch, "empty_like", poisoned(empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(new_empty))
    loss = isf.mutual_information_loss(*x, backend="cpp", **how)
    probs = isf.assign(*x, backend="cpp")
    moments = isf.class_moments(*x, statistics=torch.ones(5, 3, 9, 11), backend="cpp")
    labels = isf.segment(*x, size=(20, 23), backend="cpp")
    gradients = [g for out in (loss, probs[:, 0].sum(), moments[0].sum()) for g in torch.autograd.grad(out, x)]
    assert moments.isfinite().all() and loss.isfinite() and probs.isfinite().all() and (labels < 7).all()
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e3])
def test_extreme_similarities_and_identical_features_stay_finite(instruction_set, temperature, dtype):
    f, H, _, _ = inputs(B=5, C=16, K=5, D=16, dtype=dtype, size=(4, 5), scale=30.0)
    for features in (f, f[:1, :, :1, :1].expand_as(f)):
        for how in LOSSES:
            x = features.clone().requires_grad_(), H.clone().requires_grad_()
            how = how | {"temperature": temperature, "balance": 1.0}
            loss = isf.mutual_information_loss(*x, backend="cpp", **how)
            loss.backward()
            assert loss.isfinite() and all(t.grad.isfinite().all() for t in x)


def test_many_classes_and_few_positions(instruction_set):
    x, exact, _ = arguments((3, 5, 6, 256, 1, 3, "contiguous", False), torch.float32)
    for how in ({}, {"num_negatives": 2}, {"estimator": "infonce", "num_negatives": 2}):
        found = isf.mutual_information_loss(*x, backend="cpp", **how)
        torch.testing.assert_close(found.double(), statement.loss(*exact, **how), rtol=1e-5, atol=1e-6)


def _train(backend, disturbed=None):
    """Losses and labels of a training run.

    With a seed, every step changes the weights by about one rounding.
    """
    torch.manual_seed(3)
    net = torch.nn.Conv2d(3, 16, 5, padding=2)
    head, projection = torch.nn.Linear(16, 4 * 24), torch.nn.Conv2d(16, 24, 1)
    weights = [*net.parameters(), *head.parameters(), *projection.parameters()]
    optimizer = torch.optim.Adam(weights, lr=3e-3)
    noise = None if disturbed is None else torch.Generator().manual_seed(disturbed)
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(24, 3, 12, 12, generator=generator)
    how = {"estimator": "infonce", "num_negatives": "all", "balance": 2.0, "backend": backend}
    losses = []
    for _ in range(100):
        with torch.no_grad():
            for x in weights if noise else ():
                x *= 1 + 1e-7 * torch.randn(x.shape, generator=noise)
        f = torch.relu(net(images[torch.randperm(24, generator=generator)[:6]]))
        H = head(f.mean(dim=(2, 3))).view(6, 4, 24)
        loss = isf.mutual_information_loss(f, H, projection.weight, projection.bias, **how)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        f = torch.relu(net(images))
        H = head(f.mean(dim=(2, 3))).view(24, 4, 24)
        return losses, isf.segment(f, H, projection.weight, projection.bias, size=(24, 24), backend=backend)


def test_100_training_steps_give_the_references_losses_and_segmentation():
    (found, labels), (expected, expected_labels) = _train("cpp"), _train("reference")
    assert found[0] - found[-1] > 0.01  # it learns something
    # The effect of rounding in every step: the reference against itself.
    found, expected = torch.tensor(found), torch.tensor(expected)
    runs = torch.tensor([_train("reference", disturbed=seed)[0] for seed in range(3)])
    growth = (runs - expected).abs().amax(dim=0).cummax(dim=0).values
    assert ((found - expected).abs() <= 8 * growth + 1e-6).all()
    assert (labels == expected_labels).float().mean() > 0.995
