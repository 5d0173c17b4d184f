"""The backend "cpp": C++ kernels for CPUs, from the compiled extension (see
`infoseg_fast.ops.protocol`).

The extension does not use torch: its arguments are addresses, sizes and strides by name, and None
for a tensor that is not given or not needed. The number of threads is `torch.get_num_threads()`.
"""

import math

import torch
from torch import Tensor

from .. import extension
from ..reference.local_appearance import DARK, FLAT
from ..reference.refined_labels import FLOOR
from .protocol import Needs, empty_gradients

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_ESTIMATORS = {"jsd": 0, "infonce": 1}
_NEGATIVES = {"same_position": 0, "reassigned": 1}


def unavailable() -> str | None:
    """The reason why no C++ kernel can run here. None: kernels can run."""
    return extension.unavailable()


def _map(x: Tensor | None) -> tuple[int, ...] | None:
    """A tensor [B, C, h, w] for the extension: its address, dtype, shape and strides."""
    return None if x is None else (x.data_ptr(), _DTYPES[x.dtype], *x.shape, *x.stride())


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


class _Kernel:
    def unsupported(self, device_type: str, dtype: torch.dtype) -> str | None:
        """The reason why the kernel cannot take such tensors. None: it can."""
        if device_type != "cpu":
            return f"it runs on the CPU, not on {device_type}"
        return None if dtype in _DTYPES else f"it has no kernel for {dtype}"


class _Similarity(_Kernel):
    def forward(self, features, G, g0, needs):
        return _scores(features, G, g0, False, 1.0), []

    def backward(self, grad, saved, features, G, g0, needs):
        return _gradients(features, G, needs, grad=grad)


class _Assign(_Kernel):
    def forward(self, features, G, g0, temperature, needs):
        return _scores(features, G, g0, True, temperature), []

    def backward(self, grad, saved, features, G, g0, temperature, needs):
        return _gradients(features, G, needs, grad=grad, probs=saved[0], temperature=temperature)


def _scores(features, G, g0, softmax, temperature) -> Tensor:
    B, _, h, w = features.shape
    out = features.new_empty(B, G.shape[1], h, w)
    extension.compiled().similarity_forward(
        features=_map(features), G=G.data_ptr(), g0=_pointer(g0), K=G.shape[1], softmax=softmax,
        temperature=temperature, threads=torch.get_num_threads(), out=out.data_ptr(),
    )  # fmt: skip
    return out


class _ClassMoments(_Kernel):
    def fake_saved(self, features, G, g0, statistics, temperature, needs):
        B, _, h, w = features.shape
        return [features.new_empty(B, G.shape[1], h, w)] if any(needs) else []

    def forward(self, features, G, g0, statistics, temperature, needs):
        K = G.shape[1]
        moments = G.new_empty(K, statistics.shape[1])
        saved = self.fake_saved(features, G, g0, statistics, temperature, needs)
        extension.compiled().similarity_forward(
            features=_map(features), G=G.data_ptr(), g0=_pointer(g0), statistics=_map(statistics), K=K,
            softmax=True, temperature=temperature, threads=torch.get_num_threads(),
            out=saved[0].data_ptr() if saved else None, moments=moments.data_ptr(),
        )  # fmt: skip
        return moments, saved

    def backward(self, grad, saved, features, G, g0, statistics, temperature, needs):
        return _gradients(
            features, G, needs, grad_moments=grad, statistics=statistics, probs=saved[0], temperature=temperature
        )


def _gradients(
    features, G, needs, *, grad=None, grad_moments=None, statistics=None, probs=None, temperature=1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """df, dG and dg0 from the gradient of the output (`grad`) or of the moments of `statistics`
    (`grad_moments`).
    """
    df, dG, dg0 = empty_gradients(features, G, needs)
    extension.compiled().similarity_backward(
        features=_map(features), G=G.data_ptr(), statistics=_map(statistics), probs=_pointer(probs),
        grad_dtype=None if grad is None else _DTYPES[grad.dtype], grad=_pointer(grad),
        moments=_pointer(grad_moments), K=G.shape[1], softmax=probs is not None, temperature=temperature,
        threads=torch.get_num_threads(), df=_map(df) if needs.features else None,
        dG=dG.data_ptr() if needs.G else None, dg0=dg0.data_ptr() if needs.g0 else None,
    )  # fmt: skip
    return df, dG, dg0


class _Segment(_Kernel):
    def forward(self, features, G, g0, temperature, size, interpolate):
        labels = features.new_empty(len(features), *size, dtype=torch.uint8)
        _segment(features, G, g0, temperature, size, interpolate, labels)
        return labels


class _SegmentAndCount(_Kernel):
    def forward(self, features, G, g0, target, temperature, interpolate, num_classes, ignore_index, labels_wanted):
        labels = torch.empty_like(target) if labels_wanted else None
        counts = features.new_zeros(G.shape[1], num_classes, dtype=torch.int64)
        # No byte has a value outside 0 .. 255.
        ignored = ignore_index if ignore_index is not None and 0 <= ignore_index <= 255 else None
        place = _segment(features, G, g0, temperature, target.shape[1:], interpolate, labels, target, ignored, counts)
        if place >= 0:
            raise ValueError(
                f"target holds {int(target.flatten()[place])} at flat index {place}; "
                f"values below {num_classes} are accepted"
            )
        return counts, counts.new_zeros(()), target.new_empty(0) if labels is None else labels


def _segment(features, G, g0, temperature, size, interpolate, labels, target=None, ignore_index=None, counts=None):
    """Write the labels and the counts that are given. Returns the flat index of the first target
    value out of range, or -1.
    """
    return extension.compiled().segment(
        features=_map(features), G=G.data_ptr(), g0=_pointer(g0), target=_pointer(target), K=G.shape[1],
        rows=size[0], columns=size[1], num_classes=None if counts is None else counts.shape[1],
        temperature=temperature, logits=interpolate == "logits", ignore_index=ignore_index,
        threads=torch.get_num_threads(), labels=_pointer(labels), counts=_pointer(counts),
    )  # fmt: skip


class _Loss(_Kernel):
    """The forward pass also computes the gradient of the loss, while the features are in cache. The
    backward pass scales it. In float16 the backward pass computes the gradient from the inputs,
    since small gradients would become 0 without the upstream factor of a scaled loss.
    """

    def forward(self, features, G, g0, valid, settings, needs):
        saved = self.fake_saved(features, G, g0, valid, settings, needs)
        loss = self._run(
            features, G, g0, valid, settings, saved or empty_gradients(features, G, Needs(False, False, False))
        )
        return G.new_full((), loss), saved

    def fake_saved(self, features, G, g0, valid, settings, needs):
        if not any(needs) or features.dtype == torch.float16:
            return []
        return list(empty_gradients(features, G, needs))

    def backward(self, grad_loss, saved, features, G, g0, valid, settings, needs):
        if saved:
            return [x * grad_loss for x in saved]
        gradients = empty_gradients(features, G, needs)
        self._run(features, G, g0, valid, settings, gradients, grad_loss.item())
        return gradients

    def hand_over(self, grad_loss, saved):
        if grad_loss.item() != 1:
            for x in saved:
                x.mul_(grad_loss)
        return saved

    def _run(self, features, G, g0, valid, settings, gradients, upstream=1.0) -> float:
        """The loss. Writes the gradients of `upstream` times the loss."""
        df, dG, dg0 = gradients
        return extension.compiled().mutual_information_loss(
            features=_map(features), G=G.data_ptr(), g0=_pointer(g0), valid=_pointer(valid), K=G.shape[1],
            temperature=settings.temperature, estimator=_ESTIMATORS[settings.estimator],
            negatives=_NEGATIVES[settings.negatives], partners=settings.num_negatives, balance=settings.balance,
            threads=torch.get_num_threads(), upstream=upstream, df=_map(df) if df.numel() else None,
            dG=dG.data_ptr(), dg0=dg0.data_ptr(),
        )  # fmt: skip


class _Float32(_Kernel):
    def unsupported(self, device_type, dtype):
        only = None if dtype == torch.float32 else f"it takes float32, not {dtype}"
        return super().unsupported(device_type, dtype) or only


class _LocalAppearance(_Float32):
    def forward(self, images, size):
        out = images.new_empty(len(images), images.shape[1] + 2, *size)
        extension.compiled().local_appearance(
            images=_map(images), rows=size[0], columns=size[1], dark=DARK, flat=FLAT,
            threads=torch.get_num_threads(), out=out.data_ptr(),
        )  # fmt: skip
        return out


class _AppearanceStatistics(_Float32):
    def forward(self, appearance, mask, smooth):
        y, valid = appearance.contiguous(), None if mask is None else mask.contiguous()
        B, d, h, w = y.shape
        out = y.new_empty(B, (d + 1) * (d + 2) // 2, h, w)
        extension.compiled().appearance_statistics(
            y=y.data_ptr(), valid=_pointer(valid), B=B, d=d, h=h, w=w, radius=smooth,
            threads=torch.get_num_threads(), out=out.data_ptr(),
        )  # fmt: skip
        return out


class _InformationOfMoments(_Kernel):
    def unsupported(self, device_type, dtype):
        only = None if dtype in (torch.float32, torch.float64) else f"it takes float32 and float64, not {dtype}"
        return super().unsupported(device_type, dtype) or only

    def fake_saved(self, moments, total, resolution, needs):
        return [moments.new_empty(moments.shape)] if needs[0] else []

    def forward(self, moments, total, resolution, needs):
        moments, total = moments.contiguous(), total.contiguous()
        saved = self.fake_saved(moments, total, resolution, needs)
        K, S = moments.shape
        value = extension.compiled().information_of_moments(
            dtype=_DTYPES[moments.dtype], moments=moments.data_ptr(), total=total.data_ptr(), K=K,
            n=(math.isqrt(8 * S + 1) - 1) // 2, resolution=resolution,
            gradient=saved[0].data_ptr() if saved else None,
        )  # fmt: skip
        return moments.new_full((), value), saved

    def backward(self, grad, saved, moments, total, resolution, needs):
        return [grad * saved[0]]


class _RefinedLabels(_Float32):
    def forward(self, prior, colour, around, residual, log_scale):
        labels = prior.new_empty(len(colour), *colour.shape[2:], dtype=torch.uint8)
        prior, colour, around, residual, log_scale = (
            x.contiguous() for x in (prior, colour, around, residual, log_scale)
        )
        B, K, h, w = prior.shape
        extension.compiled().refined_labels(
            prior=prior.data_ptr(), around=around.data_ptr(), colour=colour.data_ptr(),
            residual=residual.data_ptr(), log_scale=log_scale.data_ptr(), B=B, K=K, c=colour.shape[1], h=h, w=w,
            rows=colour.shape[2], columns=colour.shape[3], floor=FLOOR, threads=torch.get_num_threads(),
            labels=labels.data_ptr(),
        )  # fmt: skip
        return labels


# The kernels by the name of their op, see infoseg_fast.ops.protocol.
KERNELS: dict[str, object] = {
    "local_global_similarity": _Similarity(),
    "assign": _Assign(),
    "class_moments": _ClassMoments(),
    "segment": _Segment(),
    "segment_and_count": _SegmentAndCount(),
    "mutual_information_loss": _Loss(),
    "local_appearance": _LocalAppearance(),
    "appearance_statistics": _AppearanceStatistics(),
    "information_of_moments": _InformationOfMoments(),
    "refined_labels": _RefinedLabels(),
}
