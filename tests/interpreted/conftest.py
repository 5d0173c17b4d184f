"""Tests of the Triton kernels themselves: tests/test_triton.py runs them under TRITON_INTERPRET=1."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["*"]
else:
    from triton.runtime import interpreter

    from .bounds import Bounds, checked
    from .tensor_cores import emulate

    emulate()
    _bounds = Bounds()
    checked(_bounds)
    # Every call of a device function patches the language, two fifths of the time; once per launch
    # is enough.
    _patched: set[object] = set()
    _launch = interpreter.GridExecutor.__call__

    def _call(function, *arguments, **named):
        if function.fn not in _patched:
            _patched.add(function.fn)
            interpreter._patch_lang(function.fn)
        return function.rewrite()(*arguments, **named)

    def _launch_anew(executor, *arguments, **named):
        _patched.clear()
        _bounds.of([*arguments, *named.values()])
        return _launch(executor, *arguments, **named)

    interpreter.InterpretedFunction.__call__ = _call
    interpreter.GridExecutor.__call__ = _launch_anew


@pytest.fixture(autouse=True)
def poisoned():
    """Uninitialised memory holds NaN, or the largest integer."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan() and torch.empty(0).new_empty(3).isnan().all()
    assert torch.empty_like(torch.zeros(2, dtype=torch.uint8)).eq(255).all()
    yield
    torch.use_deterministic_algorithms(False)
