"""Tests of the Triton kernels themselves: tests/test_triton.py runs them under TRITON_INTERPRET=1."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["*"]
else:
    import triton.language as tl
    from triton.runtime import interpreter

    from infoseg_fast.kernels.plans import forget_plans

    from .bounds import Bounds, checked

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

    # So does making the types and shapes of the values, which are few.
    def remembered(kind: type, name_of) -> None:
        """Instances with the same name share what their first one made."""
        make, made = kind.__init__, {}

        def made_once(self, *arguments):
            name = name_of(*arguments)
            if name not in made:
                make(self, *arguments)
                made[name] = dict(vars(self))
            vars(self).update(made[name])
            if kind is tl.tensor:
                self.handle = arguments[0]

        kind.__init__ = made_once

    remembered(tl.block_type, lambda element, shape: (element.name, *(getattr(n, "value", n) for n in shape)))
    remembered(tl.tensor, lambda handle, kind: kind.name)
    _dtype, _dtypes = interpreter._get_np_dtype, {}

    def _dtype_of(kind):
        if kind.name not in _dtypes:
            _dtypes[kind.name] = _dtype(kind)
        return _dtypes[kind.name]

    interpreter._get_np_dtype = _dtype_of


@pytest.fixture(autouse=True)
def poisoned():
    """Uninitialised memory holds NaN, or the largest integer."""
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms imports the compiler
    forget_plans()  # of a test that changed a constant
    assert torch.empty(1).isnan() and torch.empty(0).new_empty(3).isnan().all()
    assert torch.empty_like(torch.zeros(2, dtype=torch.uint8)).eq(255).all()
    yield
    torch.set_deterministic_debug_mode("default")


@pytest.fixture
def tensor_cores(monkeypatch):
    """Products and exponentials are rounded as on a GPU."""
    from .tensor_cores import emulate

    emulate(monkeypatch)
