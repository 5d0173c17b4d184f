"""The providers that `infoseg bench` times, an op and its competitors, and the rows of its table."""

import statistics
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata

import torch
from torch import Tensor

from ..env import commit, processor, versions
from ..errors import DataError
from ..ops import OPS
from ..ops.record import Case
from . import baselines, peers

Step = Callable[[], list[Tensor]]
RESULTS = ("value", "features", "global_features", "weight", "bias")  # value and gradients of the ops of features
MEASURED = (
    "op", "case", "provider", "version", "mode", "shape", "dtype", "median_ms", "p20_ms", "p80_ms",
    "ratio_to_op", "floor_ms", "share_of_floor", "error", *(f"error_{name}" for name in RESULTS), "extra_mb",
)  # fmt: skip
SHOWN = ("op", "case", "mode", "provider", *MEASURED[7:14], "extra_mb")
INSTALLED = ("machine", "infoseg_fast", "python", "torch", "numpy", "triton", "commit")
# An op is timed if its error is at most twice that of PyTorch in the same dtype, plus a floor.
ERROR_FACTOR = 2.0
ERROR_FLOOR = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
DIFFERING_SHARE = 1e-2  # floor of integer results: labels and counts at the borders of classes differ


class WrongResultError(DataError):
    """The results of an op are wrong. It is not timed."""


def installed() -> dict[str, str]:
    """The columns `INSTALLED`."""
    found = {name.replace("-", "_"): version or "" for name, version in versions().items()}
    return {"machine": processor(), "commit": commit() or ""} | {
        name: found[name] for name in INSTALLED if name in found
    }


def chosen_cases(use: str, names: Sequence[str]) -> list[Case]:
    """The cases for `use` whose op or name is among `names`; all cases if there are no names."""
    cases = [case for op in OPS.values() for case in op.cases_for(use)]
    return [case for case in cases if not names or case.op in names or case.name in names]


def providers(
    case: Case,
    keywords: dict,
    compiled: bool = False,
    autotuned: bool = False,
    backend: str = "auto",
    with_peers: bool = False,
) -> dict[str, Callable]:
    """Functions of the case's tensors, by the name of the provider.

    Args:
        keywords: keywords of `Op.arguments`.
        compiled, autotuned: add the eager function under torch.compile, by default and with
            max-autotune.
        backend: backend of the op, if it has this one.
        with_peers: add the packages of `peers`.

    Returns:
        "infoseg_fast" is the op. "eager" is the best PyTorch of the same algebra (`baselines`), or
        the reference. "as written" is the loss as the paper writes it.
    """
    op = OPS[case.op]
    choice = {"backend": backend} if backend in op.backends else {}
    eager = partial(getattr(baselines, case.op, op.reference), **keywords)
    found = {"infoseg_fast": partial(op.function, **keywords, **choice)}
    if case.op == "mutual_information_loss" and not keywords and (case.name == "jsd" or "cuda" in case.uses):
        found["as written"] = baselines.as_written
    found["eager"] = eager
    if op.wiring is not None:  # the compiler cannot trace numpy and scipy
        if compiled:
            found["compiled"] = torch.compile(lambda *x: eager(*x), dynamic=False)
        if autotuned:
            mode = "max-autotune-no-cudagraphs"
            found["max-autotune"] = torch.compile(lambda *x: eager(*x), dynamic=False, mode=mode)
    if with_peers:
        found |= {name: partial(function, **keywords) for name, function in peers.of(case.op).items()}
    return found


def version_of(provider: str) -> str:
    """The version of the package of a provider; that of torch for code of this package."""
    try:
        return metadata.version("infoseg-fast" if provider == "infoseg_fast" else provider)
    except metadata.PackageNotFoundError:
        return f"torch {torch.__version__}"


def differentiated(case: Case) -> bool:
    return OPS[case.op].differentiable and case.gradient


def arguments(case: Case, device: torch.device, dtype: torch.dtype | None = None) -> tuple[list[Tensor], dict]:
    """`Op.arguments` of the case. Tensors require gradients if the case has them.

    Args:
        dtype: dtype of the tensors. None: the dtype of the case.
    """
    tensors, keywords = OPS[case.op].arguments(case, device, dtype or case.dtype)
    return [x.requires_grad_() if differentiated(case) else x for x in tensors], keywords


def steps(case: Case, provider: Callable, tensors: list[Tensor]) -> dict[str, Step]:
    """The functions to time, by mode: "forward" and, for a case with gradients, "forward +
    backward". Each returns the value or values, then the gradients.
    """

    def forward() -> list[Tensor]:
        with torch.no_grad():
            out = provider(*tensors)
        return list(out) if isinstance(out, tuple) else [out]

    if not differentiated(case):
        return {"forward": forward}
    upstream = upstream_of(forward()[0])

    def both() -> list[Tensor]:
        out = provider(*tensors)
        return [out.detach(), *torch.autograd.grad(out, tensors, upstream)]

    return {"forward": forward, "forward + backward": both}


def upstream_of(value: Tensor) -> Tensor:
    """An upstream gradient: 1 for a scalar, else normal numbers, the same each time."""
    upstream = torch.randn(value.shape, generator=torch.Generator().manual_seed(2)) if value.dim() else torch.ones(())
    return upstream.to(value.device, value.dtype)


def relative_errors(found: list[Tensor], truth: list[Tensor]) -> list[float]:
    """Relative 2-norm of the error of each result. For integer results the share that differs."""
    found, truth = ([torch.as_tensor(x) for x in results] for results in (found, truth))
    return [
        ((a.double() - b.double()).norm() / b.double().norm()).item()
        if a.is_floating_point()
        else (a != b).double().mean().item()
        for a, b in zip(found, truth, strict=True)
    ]


def measure(
    case: Case,
    device: torch.device,
    timed: Callable[[dict], dict],
    extra_memory: Callable[[Step], float | None],
    floor_ms: Callable[[Case, str], float],
    **choice,
) -> list[dict]:
    """The rows of one case, with the columns `MEASURED`. A competitor that fails is left out with a
    warning.

    Args:
        timed: gives the times in ms of each step, by provider and mode.
        extra_memory: gives the peak MB of a step above its inputs and results, or None.
        floor_ms: gives a lower bound of the time of a mode in ms.
        choice: keywords of `providers`.

    Raises:
        WrongResultError: the error of the op is too large. Nothing is timed.
    """
    tensors, keywords = arguments(case, device)
    exact, exact_keywords = arguments(case, device, torch.float64)
    truth = {mode: step() for mode, step in steps(case, providers(case, exact_keywords)["eager"], exact).items()}
    del exact, exact_keywords
    if choice.get("compiled") or choice.get("autotuned"):
        torch.compiler.reset()  # the compiler gives up after eight cases of one function
    found = {}
    for name, provider in providers(case, keywords, **choice).items():
        try:
            made = steps(case, provider, tensors)
            for step in made.values():
                step()
            found |= {(name, mode): step for mode, step in made.items()}
        except Exception as error:  # a competitor that PyTorch cannot compile or hold in memory
            if name == "infoseg_fast":
                raise
            warnings.warn(f"{case.name}: {name} failed: {str(error).splitlines()[0]}", stacklevel=2)
    errors = {key: relative_errors(step(), truth[key[1]]) for key, step in found.items()}
    for mode, exact_results in truth.items():
        check(case, mode, exact_results, errors)
    memory = {key: extra_memory(step) for key, step in found.items()}
    times = timed(found)
    rows = []
    for name, mode in found:
        t, own = times[name, mode], statistics.median(times["infoseg_fast", mode])
        median, tenths, floor = statistics.median(t), statistics.quantiles(t, n=10), floor_ms(case, mode)
        own_errors, extra = errors[name, mode], memory[name, mode]
        each = [f"{error:.1e}" for error in own_errors] if len(own_errors) == len(RESULTS) else [""] * len(RESULTS)
        values = (
            case.op, case.name, name, version_of(name), mode, shape_of(case), str(case.dtype).removeprefix("torch."),
            round(median, 4), round(tenths[1], 4), round(tenths[7], 4), round(median / own, 2), round(floor, 4),
            round(floor / median, 3), f"{max(own_errors):.1e}", *each, "" if extra is None else round(extra, 2),
        )  # fmt: skip
        rows.append(dict(zip(MEASURED, values, strict=True)))
    return rows


def check(case: Case, mode: str, truth: list[Tensor], errors: dict[tuple[str, str], list[float]]) -> None:
    """Raise WrongResultError if rounding does not explain the op's `errors` (by provider and
    mode).
    """
    own, plain = (errors.get((name, mode)) for name in ("infoseg_fast", "eager"))
    for number, (exact, error) in enumerate(zip(truth, own, strict=True)):
        floor = ERROR_FLOOR[case.dtype] if torch.as_tensor(exact).is_floating_point() else DIFFERING_SHARE
        of_plain = plain[number] if plain else 0.0
        if not error <= ERROR_FACTOR * of_plain + floor:  # NaN is wrong too
            raise WrongResultError(
                f"{case.op}, {case.name}, {mode}: error {error:.1e}, of plain PyTorch {of_plain:.1e}; not timed"
            )


def shape_of(case: Case) -> str:
    (rows, columns), sizes = case.size, f"B={case.B} C={case.C} D={case.D} K={case.K}"
    return f"{sizes} {case.h}x{case.w} {rows}x{columns}"
