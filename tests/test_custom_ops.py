"""The wiring of the ops into PyTorch, around the reference as a kernel."""

import pytest
import torch
from conftest import inputs

from infoseg_fast import reference
from infoseg_fast.ops import custom


def folded(requires_grad=True, **sizes):
    f, H, W, b = inputs(**sizes)
    G, g0 = reference.fold_projection(H, W, b)
    return tuple(x.detach().requires_grad_(requires_grad) for x in (f, G, g0))


LOSSES = [("jsd", "same_position", 2), ("jsd", "reassigned", 3), ("infonce", "same_position", 3)]


def loss_arguments(f, G, g0, how, valid=None, needs=(True, True, True)):
    return (f, G, g0, valid, 0.8, *how, 0.5, *needs, "reference")


def test_opcheck_of_every_op():
    f, G, g0 = folded()
    torch.library.opcheck(custom.local_global_similarity, (f, G, g0, "reference"))
    torch.library.opcheck(custom.local_global_similarity, (f, G, None, "reference"))
    torch.library.opcheck(custom.assign, (f, G, g0, 1.5, "reference"))
    Y = torch.randn(4, 5, 3, 4, dtype=f.dtype)
    torch.library.opcheck(custom.class_moments, (f, G, g0, Y, 1.5, True, "reference"))
    torch.library.opcheck(custom.class_moments, (f.detach(), G.detach(), None, Y, 1.5, False, "reference"))
    torch.library.opcheck(custom.segment, (f.detach(), G.detach(), g0.detach(), 1.5, 9, 7, "probs", "reference"))
    for how in LOSSES:
        torch.library.opcheck(custom.mutual_information_loss, loss_arguments(f, G, g0, how))
    valid = torch.rand(4, 12) < 0.5
    torch.library.opcheck(custom.mutual_information_loss, loss_arguments(f, G, g0, LOSSES[0], valid))


@pytest.mark.parametrize("how", LOSSES)
def test_loss_and_gradients_are_the_references(how):
    x = folded()
    names = ("estimator", "negatives", "num_negatives")
    expected = reference.folded_loss(*x, None, temperature=0.8, balance=0.5, **dict(zip(names, how, strict=True)))
    found = custom.mutual_information_loss(*loss_arguments(*x, how))[0]
    torch.testing.assert_close(found, expected)
    upstream = torch.tensor(-2.5, dtype=torch.float64)
    for a, b in zip(torch.autograd.grad(found, x, upstream), torch.autograd.grad(expected, x, upstream), strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_of_similarity_assign_and_moments_are_the_references():
    x = folded()
    Y = torch.randn(4, 5, 3, 4, dtype=torch.float64)
    for found, expected in (
        (
            custom.local_global_similarity(*x, "reference"),
            reference.similarity.folded_similarity(*x),
        ),
        (
            custom.assign(*x, 1.5, "reference"),
            torch.softmax(1.5 * reference.similarity.folded_similarity(*x), dim=1),
        ),
        (
            custom.class_moments(*x, Y, 1.5, True, "reference")[0],
            reference.moments_of(torch.softmax(1.5 * reference.similarity.folded_similarity(*x), dim=1), Y),
        ),
    ):
        torch.testing.assert_close(found, expected)
        upstream = torch.randn_like(found)
        gradients = torch.autograd.grad(found, x, upstream), torch.autograd.grad(expected, x, upstream)
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b)


def test_a_gradient_has_the_layout_of_the_features():
    f, G, g0 = folded(C=8, size=(4, 4))
    f = f.detach().to(memory_format=torch.channels_last).requires_grad_()
    custom.local_global_similarity(f, G, g0, "reference").sum().backward()
    assert f.grad.is_contiguous(memory_format=torch.channels_last)
