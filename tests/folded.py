"""What kernels of features are compared with: the reference from folded global features, with gradients by autograd."""

import torch

from infoseg_fast.ops.protocol import Gradients
from infoseg_fast.reference import moments_of
from infoseg_fast.reference.assign import folded_probs
from infoseg_fast.reference.folding import folded_similarity

VALUES = {
    "local_global_similarity": folded_similarity,
    "assign": folded_probs,
    "class_moments": lambda f, G, g0, Y, temperature: moments_of(folded_probs(f, G, g0, temperature), Y),
}


def value(op, f, G, g0, *rest):
    """The op's result in the accumulation dtype; `rest` as a kernel takes it, without `needs`."""
    return VALUES[op](f, G, g0, *rest)


def gradients(op, grad, f, G, g0, *rest):
    """Gradients by features, G and g0; the last one also where g0 is None."""
    g0 = G.new_zeros(G.shape[:2]) if g0 is None else g0
    x = [t.detach().requires_grad_() for t in (f, G, g0)]
    out = value(op, *x, *rest)
    return Gradients(*torch.autograd.grad(out, x, grad.to(out.dtype)))
