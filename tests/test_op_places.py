"""Every op of `OPS` has all its places: module, reference, kernels, tests, a row of the
documentation.
"""

import importlib
import re
from pathlib import Path

import pytest

from infoseg_fast.ops import OPS, cpp

ROOT = Path(__file__).resolve().parent.parent
TESTS = {path.name: path.read_text().split('"""')[1] for path in (ROOT / "tests").glob("test_*.py")}


def test_modules_with_a_record_are_the_ops():
    files = {path.stem for path in (ROOT / "infoseg_fast" / "ops").glob("*.py") if "\nOP = " in path.read_text()}
    assert files == set(OPS)


@pytest.mark.parametrize("name", OPS)
def test_an_op_has_one_name_in_all_its_places(name):
    op = OPS[name]
    assert op.name == name and op.function.__name__ == name
    assert importlib.import_module(f"infoseg_fast.ops.{name}").__dict__[name] is op.function
    assert callable(importlib.import_module(f"infoseg_fast.reference.{name}").__dict__[name])
    assert op.wiring is None or op.wiring.name == name
    assert any(f"`{name}`" in docstring for docstring in TESTS.values()), "no test file names it in its docstring"
    assert re.search(rf"^\| `{name}` \|", (ROOT / "docs" / "ops.md").read_text(), flags=re.MULTILINE)
    assert op.cases_for("cpu")


@pytest.mark.parametrize("name", OPS)
def test_an_op_has_the_kernels_of_its_backends(name):
    op = OPS[name]
    assert op.backends
    for backend in op.backends:
        if backend == "triton":
            pytest.importorskip("triton")
            assert name in importlib.import_module("infoseg_fast.kernels").KERNELS
        elif backend == "cuda":
            assert list((ROOT / "csrc").rglob(f"{name}.cu"))
        else:
            assert name in cpp.KERNELS or list((ROOT / "csrc").rglob(f"{name}.cpp"))


def test_documented_ops_are_the_ops():
    table = (ROOT / "docs" / "ops.md").read_text().split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)) == set(OPS)
