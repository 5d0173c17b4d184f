"""Which backend runs, and what is said when one cannot."""

import logging
import os
import subprocess
import sys
import types

import pytest
import torch
from conftest import inputs

import infoseg_fast as isf
from infoseg_fast.errors import BackendUnavailableError
from infoseg_fast.ops import dispatch


class Kernel:
    """A similarity of all ones, for float64 on CPUs alone."""

    def unsupported(self, device_type, dtype):
        return None if dtype == torch.float64 else "it takes float64 only"

    def forward(self, features, G, g0, needs):
        return features.new_ones(len(features), G.shape[1], *features.shape[2:]), []


@pytest.fixture
def fake_backend(monkeypatch):
    backend = types.SimpleNamespace(KERNELS={"local_global_similarity": Kernel()}, unavailable=lambda: None)
    real = dispatch._module
    monkeypatch.setattr(dispatch, "_module", lambda name: (backend, None) if name == "cpp" else real(name))
    dispatch.log_once.cache_clear()
    return backend


def test_auto_takes_a_kernel_that_can_run(fake_backend):
    assert (isf.local_global_similarity(*inputs()) == 1).all()


def test_auto_falls_back_and_says_why_once(fake_backend, caplog):
    with caplog.at_level(logging.WARNING, logger="infoseg_fast"):
        for _ in range(3):
            found = isf.local_global_similarity(*inputs(dtype=torch.float32))
    assert not (found == 1).any()
    assert [record.message for record in caplog.records] == [
        "local_global_similarity does not run on the cpp backend: it takes float64 only"
    ]


def test_a_backend_asked_for_by_name_raises_with_every_reason(fake_backend):
    with pytest.raises(BackendUnavailableError, match=r"cpp.*float64 only.*reference: available.*triton: "):
        isf.local_global_similarity(*inputs(dtype=torch.float32), backend="cpp")
    fake_backend.unavailable = lambda: "no compiler"
    with pytest.raises(BackendUnavailableError, match="no compiler"):
        isf.local_global_similarity(*inputs(), backend="cpp")


def test_the_reference_can_always_be_asked_for(fake_backend):
    assert not (isf.local_global_similarity(*inputs(), backend="reference") == 1).any()


def test_backends_names_each_with_none_or_a_reason():
    found = isf.backends()
    assert list(found) == ["reference", "cpp", "triton"] and found["reference"] is None
    assert all(reason is None or (isinstance(reason, str) and "\n" not in reason) for reason in found.values())


def test_import_needs_no_extension_and_asks_no_driver():
    code = """
import sys, torch
sys.modules["infoseg_fast._C"] = None  # importing it raises ImportError
def asked(*a, **k): raise AssertionError("a driver was asked at import")
torch.cuda.is_available = torch.cuda.device_count = torch.cuda.init = asked
import infoseg_fast as isf
assert "triton" not in sys.modules
f, H = torch.randn(2, 4, 3, 3), torch.randn(2, 3, 4)
print(isf.mutual_information_loss(f, H).item(), isf.backends.__module__)
print(isf.confusion_matrix(torch.zeros(3, dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8), 2, 2).tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "[[3, 0], [0, 0]]" in done.stdout
    assert "does not run on the cpp backend" in done.stderr


def test_a_triton_that_cannot_be_imported_is_a_reason(tmp_path):
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton/__init__.py").write_text("raise ImportError('for another PyTorch')")
    code = f"""
import sys, torch
sys.path.insert(0, {str(tmp_path)!r})
import infoseg_fast as isf
assert isf.backends()["triton"] == "importing triton failed: for another PyTorch", isf.backends()
try:
    isf.segment(torch.zeros(1, 4, 8, 8), torch.zeros(1, 3, 4), backend="triton")
except isf.BackendUnavailableError as error:
    assert "for another PyTorch" in str(error)
else:
    raise AssertionError
"""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
