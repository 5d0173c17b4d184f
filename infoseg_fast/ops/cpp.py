"""The backend "cpp": C++ kernels for CPUs, from the compiled extension (see `infoseg_fast.ops.protocol`).

The extension knows no torch: it gets data pointers, sizes and strides. Threads follow `torch.get_num_threads()`.
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
_NO_MAP = (0,) * 9


def unavailable() -> str | None:
    """Why no C++ kernel can run here; None when one can."""
    return extension.unavailable()


def _map(x: Tensor) -> tuple[int, ...]:
    """A [B, C, h, w] tensor as the extension takes it."""
    return x.data_ptr(), *x.shape, *x.stride()


def _pointer(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


class _Kernel:
    def unsupported(self, device_type: str, dtype: torch.dtype) -> str | None:
        """Why features of this kind cannot be taken; None when they can."""
        if device_type != "cpu":
            return f"it runs on the CPU, not on {device_type}"
        return None if dtype in _DTYPES else f"it has no kernel for {dtype}"


class _Similarity(_Kernel):
    softmax = False

    def forward(self, features, G, g0, *rest):
        *temperature, _ = rest
        B, _, h, w = features.shape
        out = features.new_empty(B, G.shape[1], h, w)
        extension.compiled().similarity_forward(
            _DTYPES[features.dtype],
            _map(features),
            G.data_ptr(),
            _pointer(g0),
            G.shape[1],
            torch.get_num_threads(),
            out.data_ptr(),
            self.softmax,
            *(temperature or (1.0,)),
            _NO_MAP,
            0,
        )
        return out, []

    def backward(self, grad, saved, features, G, g0, needs):
        return _gradients(grad, None, None, 1.0, features, G, needs)


class _Assign(_Similarity):
    softmax = True

    def backward(self, grad, saved, features, G, g0, temperature, needs):
        return _gradients(grad, saved[0], None, temperature, features, G, needs)


class _ClassMoments(_Kernel):
    def fake_saved(self, features, G, g0, statistics, temperature, needs):
        B, _, h, w = features.shape
        return [features.new_empty(B, G.shape[1], h, w)] if any(needs) else []

    def forward(self, features, G, g0, statistics, temperature, needs):
        K = G.shape[1]
        moments = G.new_empty(K, statistics.shape[1])
        saved = self.fake_saved(features, G, g0, statistics, temperature, needs)
        extension.compiled().similarity_forward(
            _DTYPES[features.dtype],
            _map(features),
            G.data_ptr(),
            _pointer(g0),
            K,
            torch.get_num_threads(),
            _pointer(saved[0]) if saved else 0,
            True,
            temperature,
            _map(statistics),
            moments.data_ptr(),
        )
        return moments, saved

    def backward(self, grad, saved, features, G, g0, statistics, temperature, needs):
        return _gradients(grad, saved[0], statistics, temperature, features, G, needs)


def _gradients(grad, probs, statistics, temperature, features, G, needs):
    """From the gradient by the scores, with `probs` by them, or with statistics too by their moments."""
    df, dG, dg0 = empty_gradients(features, G, needs)
    extension.compiled().similarity_backward(
        _DTYPES[features.dtype],
        _map(features),
        G.data_ptr(),
        G.shape[1],
        torch.get_num_threads(),
        _DTYPES[grad.dtype],
        grad.data_ptr() if statistics is None else 0,
        _pointer(probs),
        temperature,
        _NO_MAP if statistics is None else _map(statistics),
        0 if statistics is None else grad.data_ptr(),
        _map(df) if needs.features else _NO_MAP,
        _pointer(dG) if needs.G else 0,
        _pointer(dg0) if needs.g0 else 0,
    )
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
        # A value that no byte has is ignored nowhere.
        ignored = ignore_index if ignore_index is not None and 0 <= ignore_index <= 255 else None
        place = _segment(features, G, g0, temperature, target.shape[1:], interpolate, labels, target, ignored, counts)
        if place >= 0:
            raise ValueError(
                f"target holds {int(target.flatten()[place])} at flat index {place}; "
                f"values below {num_classes} are accepted"
            )
        return counts, counts.new_zeros(()), target.new_empty(0) if labels is None else labels


def _segment(features, G, g0, temperature, size, interpolate, labels, target=None, ignore_index=None, counts=None):
    """Labels and counts, each where its tensor is given; the place of a target value out of range, or -1."""
    return extension.compiled().segment(
        _DTYPES[features.dtype],
        _map(features),
        G.data_ptr(),
        _pointer(g0),
        G.shape[1],
        temperature,
        interpolate == "logits",
        *size,
        torch.get_num_threads(),
        _pointer(labels),
        _pointer(target),
        0 if counts is None else counts.shape[1],
        -1 if ignore_index is None else ignore_index,
        _pointer(counts),
    )


class _Loss(_Kernel):
    """Forms the gradient for upstream 1 going forward, while the features are in cache; going back it is handed over.

    Not in float16: small gradients would be lost before an upstream gradient that scales the loss could save them.
    There they are formed going back, from nothing but the inputs.
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
        """The loss; writes the gradients of `upstream` times it."""
        df, dG, dg0 = gradients
        return extension.compiled().mutual_information_loss(
            _DTYPES[features.dtype],
            _map(features),
            G.data_ptr(),
            _pointer(g0),
            _pointer(valid),
            G.shape[1],
            (
                settings.temperature,
                _ESTIMATORS[settings.estimator],
                _NEGATIVES[settings.negatives],
                settings.num_negatives,
                settings.balance,
            ),
            torch.get_num_threads(),
            upstream,
            _map(df) if df.numel() else _NO_MAP,
            dG.data_ptr(),
            dg0.data_ptr(),
        )


class _Float32(_Kernel):
    def unsupported(self, device_type, dtype):
        only = None if dtype == torch.float32 else f"it takes float32, not {dtype}"
        return super().unsupported(device_type, dtype) or only


class _LocalAppearance(_Float32):
    def forward(self, images, size):
        B, c = images.shape[:2]
        out = images.new_empty(B, c + 2, *size)
        threads = torch.get_num_threads()
        extension.compiled().local_appearance(_map(images), *size, DARK, FLAT, threads, out.data_ptr())
        return out


class _AppearanceStatistics(_Float32):
    def forward(self, appearance, mask, smooth):
        y, valid = appearance.contiguous(), None if mask is None else mask.contiguous()
        B, d, h, w = y.shape
        out = y.new_empty(B, (d + 1) * (d + 2) // 2, h, w)
        threads = torch.get_num_threads()
        extension.compiled().appearance_statistics(
            y.data_ptr(), _pointer(valid), (B, d, h, w), smooth, threads, out.data_ptr()
        )
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
            _DTYPES[moments.dtype],
            moments.data_ptr(),
            total.data_ptr(),
            K,
            (math.isqrt(8 * S + 1) - 1) // 2,
            resolution,
            _pointer(saved[0] if saved else None),
        )
        return moments.new_full((), value), saved

    def backward(self, grad, saved, moments, total, resolution, needs):
        return [grad * saved[0]]


class _RefinedLabels(_Float32):
    def forward(self, prior, colour, around, residual, log_scale):
        B, c, *size = colour.shape
        arguments = [x.contiguous() for x in (prior, around, colour, residual, log_scale)]
        labels = prior.new_empty(B, *size, dtype=torch.uint8)
        extension.compiled().refined_labels(
            *(x.data_ptr() for x in arguments),
            (B, len(log_scale), c, *prior.shape[2:], *size),
            FLOOR,
            torch.get_num_threads(),
            labels.data_ptr(),
        )
        return labels


class _RefinedProbs(_Float32):
    def forward(self, prior, colour, around, residual, log_scale):
        arguments = [x.contiguous() for x in (prior, around, colour, residual, log_scale)]
        probs = torch.empty_like(arguments[0])
        extension.compiled().refined_probs(
            *(x.data_ptr() for x in arguments),
            (len(prior), len(log_scale), colour.shape[1], *prior.shape[2:], *colour.shape[2:]),
            FLOOR,
            torch.get_num_threads(),
            probs.data_ptr(),
        )
        return probs


# op name -> kernel, as infoseg_fast.ops.protocol describes.
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
    "refined_probs": _RefinedProbs(),
}
