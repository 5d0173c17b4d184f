"""docs/adding-an-op.md: the op that its blocks add works, and every tool finds it."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "adding-an-op.md"
NAME = "class_purity"
MAX_FILES = 9
BLOCK = re.compile(r"^(File|Add to) `([^`]+)`[^\n]*:\n\n```\w+\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler"),
]

# Runs in the overlay. The compiled function joins the extension.
DRIVER = f"""
import sys
import _toy, torch
torch.set_num_threads(1)
from infoseg_fast import extension
extension.compiled().{NAME} = _toy.{NAME}

if sys.argv[1] == "interpreted":
    import pytest
    files = ["tests/test_{NAME}.py", "tests/test_op_places.py", "tests/test_custom_ops.py"]
    status = pytest.main(["-q", "-p", "no:cacheprovider", "-k", "{NAME} or documented or modules", *files])
    from infoseg_fast.bench import cuda_checks
    found = [check for name, check in cuda_checks.checks(torch.device("cpu"), cuda_checks.SMALL) if "{NAME}" in name]
    for check in found:
        check()
    print(len(found), "checks")
    sys.exit(status)

from infoseg_fast.bench import aot, roofline
from infoseg_fast.cli import main
sys.exit(
    main(["bench", "{NAME}", "--repeats", "3", "--no-compile"])
    or main(["env"])
    or roofline.main(["--op", "{NAME}"])
    or aot.main(["--only", "{NAME}", "--capability", "90", "--jobs", "1"])
)
"""


def blocks():
    """Kind ("File" or "Add to"), path and text of every block of the page that belongs to a file."""
    return [match.groups() for match in BLOCK.finditer(PAGE.read_text())]


@pytest.fixture(scope="module")
def overlay(tmp_path_factory):
    """A copy of the package and its tests with the op of the page."""
    folder = tmp_path_factory.mktemp("overlay")
    ignored = shutil.ignore_patterns("__pycache__", "build")
    for name in ("infoseg_fast", "kernels", "csrc", "tests", "docs"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
    inside = folder / "infoseg_fast/kernels"
    if not inside.exists():  # found there, and not where an editable installation says
        inside.symlink_to("../kernels")
    for kind, path, text in blocks():
        file = folder / path
        assert file.exists() == (kind == "Add to"), path
        file.parent.mkdir(exist_ok=True)
        if file.suffix == ".md":
            row = re.search(r"(\| `assign` .*\n)", file.read_text())[0]
            file.write_text(file.read_text().replace(row, row + text))
        elif file.name == "bindings.cpp":
            include, call = text.splitlines(keepends=True)
            (folder / "toy.cpp").write_text(f"{include}PYBIND11_MODULE(_toy, module) {{\n{call}}}\n")
        else:
            file.write_text((file.read_text() + "\n\n" if kind == "Add to" else "") + text)
    pybind11 = pytest.importorskip("pybind11")
    includes = [f"-I{path}" for path in (folder / "csrc", pybind11.get_include(), sysconfig.get_path("include"))]
    command = ["c++", "-std=c++17", "-O1", "-shared", "-fPIC", *includes, "toy.cpp", "csrc/common/threads.cpp", "-ldl"]
    output = "_toy" + sysconfig.get_config_var("EXT_SUFFIX")
    done = subprocess.run([*command, "-o", output], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    (folder / "driver.py").write_text(DRIVER)
    return folder


def run(folder, *arguments, **more):
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"} | more
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_the_page_touches_few_files():
    paths = [path for _, path, _ in blocks()]
    assert len(paths) == len(set(paths)) == 8 <= MAX_FILES
    assert "touches eight files; without the C++ kernel, five" in " ".join(PAGE.read_text().split())


def test_its_tests_those_of_every_op_and_the_checks_pass(overlay):
    found = run(overlay, "driver.py", "interpreted", TRITON_INTERPRET="1")
    passed = int(re.search(r"(\d+) passed", found)[1])
    assert passed > 20 and "failed" not in found
    assert int(found.split()[-2]) >= 3  # checks


def test_the_bench_env_the_cost_model_and_the_compiler_for_gpus_find_it(overlay):
    found = run(overlay, "driver.py", "compiled")
    assert re.search(rf"{NAME} +reference, cpp, triton", found)
    assert re.search(rf"^{NAME} ", found, re.MULTILINE)
    assert f"| {NAME} |" in found, "of the cost model"
    assert f"{NAME}_forward" in found and "2 compilations, 0 with a fault" in found
