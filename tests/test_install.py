"""Building and installing from a wheel and an sdist, without torch and without a compiler."""

import json
import os
import platform
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import write_folder

import infoseg_fast as isf

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the checkout without build products and environment, as a clone is."""
    copy = tmp_path_factory.mktemp("source") / "infoseg-fast"
    left_out = shutil.ignore_patterns(".*", "build", "runs", "*.so", "_build.json", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=left_out)
    return copy


@pytest.fixture
def checkout(source, tmp_path) -> Path:
    """A copy of the source that a test may change."""
    return shutil.copytree(source, tmp_path / "checkout")


def write_program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}")
    path.chmod(0o755)


def build(source: Path, out: Path, kind: str, **environment) -> Path:
    """Build with the tools of this environment, in which importing torch fails."""
    out.mkdir()
    (out / "torch.py").write_text("raise ImportError('the build must not need torch')\n")
    # Without optimisation the kernels compile in a fraction of the time. Only the tests about nvcc
    # run it.
    defaults = {"PYTHONPATH": str(out), "CXXFLAGS": "-O0", "INFOSEG_BUILD_CUDA": "0"}
    environment = os.environ | defaults | environment
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (out / "build.log").write_text(done.stdout + done.stderr)
    return next(path for path in out.iterdir() if path.suffix in (".whl", ".gz"))


def run_with(wheel: Path, where: Path, code: str) -> str:
    """Run code with the wheel's content first on the path, without the editable install's hook."""
    where.mkdir()
    zipfile.ZipFile(wheel).extractall(where)
    first = f"""import sys
sys.path.insert(0, {str(where)!r})
sys.meta_path[:] = [finder for finder in sys.meta_path if "Editable" not in getattr(finder, "__name__", "")]
"""
    done = subprocess.run(
        [sys.executable, "-c", first + code],
        cwd=where,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def in_a_bare_environment(wheel: Path, where: Path, code: str) -> str:
    """Install the wheel alone in a new environment without compilers, which borrows its
    dependencies from this one. Check its command, train and predict with it, then run code.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(where)], check=True)
    python = where / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True)
    packages = next(where.glob("lib/python*/site-packages"))
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    data = write_folder(where / "data", number=4)
    environment = {"PATH": str(where / "bin"), "HOME": str(where), "OMP_NUM_THREADS": "1"}

    def call(*command) -> str:
        done = subprocess.run(
            list(map(str, command)), cwd=where, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    said = call(where / "bin" / "infoseg", "env")
    assert "usable" in said and isf.__version__ in said
    tiny = ["--width", 4, "--dim", 8, "--depth", 1, "--batch-size", 4, "--steps", 2, "--crop", 32]
    call(where / "bin" / "infoseg", "train", "--data", data, "--out", where / "run", *tiny)
    call(where / "bin" / "infoseg", "predict", where / "run", data / "images", "--out", where / "maps")
    assert len(list((where / "maps").rglob("*.png"))) == 4
    return call(python, "-c", f"import sys\nsys.path.insert(0, {str(packages)!r})\n{code}")


USE = """
import torch, infoseg_fast as isf, infoseg_fast.kernels
from infoseg_fast import extension
assert isf.__file__.startswith(sys.path[0]) and infoseg_fast.kernels.__file__.startswith(sys.path[0])
a = torch.zeros(5, dtype=torch.uint8)
assert isf.confusion_matrix(a, a, 2, 2).tolist() == [[5, 0], [0, 0]]
print(extension.unavailable())
"""


def compilers(folder: Path) -> dict[str, str]:
    """Names of compilers that give what this checkout's build compiled from the same files, where
    it did.
    """
    folder.mkdir()
    library = ROOT / "infoseg_fast" / "_cuda.so"
    objects = ROOT / "build" / f"csrc-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    kept = {"c++": f'{objects}/$(basename "$out")', "nvcc": str(library) if library.exists() else ""}
    for name, file in kept.items():
        write_program(
            folder / name,
            "previous= out=\n"
            'for word; do [ "$previous" = -o ] && out=$word; previous=$word; done\n'
            f'[ -n "$out" ] && [ -f "{file}" ] && exec cp "{file}" "$out"\n'
            f'exec {shutil.which(name) or "false"} "$@"\n',
        )
    return {"CXX": str(folder / "c++")} | ({"CUDACXX": str(folder / "nvcc")} if shutil.which("nvcc") else {})


@pytest.mark.long
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_a_wheel_from_an_sdist_has_the_extension_and_the_kernels(source, tmp_path):
    sdist = build(source, tmp_path / "sdist", "sdist")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
        archive.extractall(tmp_path / "unpacked", filter="data")
    paths = [path for folder in ("csrc", "kernels") for path in (source / folder).rglob("*") if path.is_file()]
    assert {path.relative_to(source).as_posix() for path in paths} <= names
    tools = compilers(tmp_path / "tools") | {"INFOSEG_BUILD_CUDA": "auto"}
    wheel = build(next((tmp_path / "unpacked").iterdir()), tmp_path / "wheel", "wheel", **tools)
    assert not [name for name in names if "__pycache__" in name or name.endswith((".so", ".json.tmp"))]
    assert {"examples/pictures.ipynb", "docs/index.md", "mkdocs.yml", "CHANGELOG.md"} <= names
    assert in_a_bare_environment(wheel, tmp_path / "bare", USE).splitlines()[-1] == "None"
    if sys.platform == "linux":  # only libraries that every Linux of some age has
        audit = [sys.executable, "-m", "auditwheel", "show", str(wheel)]
        assert "manylinux_2_" in subprocess.run(audit, capture_output=True, text=True, check=True).stdout
    with zipfile.ZipFile(wheel) as archive:
        assert {"infoseg_fast/py.typed", "infoseg_fast/compat/lightning.py"} <= set(archive.namelist())
        record = json.loads(archive.read("infoseg_fast/_build.json"))["cuda"]
        assert record["built"] == ("infoseg_fast/_cuda.so" in archive.namelist())
    assert record["built"] or record["reason"]


def test_a_failed_build_of_the_cuda_library_is_reported_when_it_was_asked_for(source, tmp_path):
    nvcc = tmp_path / "nvcc"
    write_program(
        nvcc,
        'case "$1" in --list-gpu-arch) echo compute_80;; --version) echo release 13.0;; '
        "*) echo 'x.cu(3): error: no such thing' >&2; exit 1;; esac\n",
    )
    asked = {"CUDACXX": str(nvcc), "INFOSEG_BUILD_CUDA": "1", "INFOSEG_BUILD_CPP": "0"}
    wheel = build(source, tmp_path / "wheel", "wheel", **asked)
    log = (tmp_path / "wheel/build.log").read_text()
    assert "the CUDA library was NOT built" in log and "error: no such thing" in log
    with zipfile.ZipFile(wheel) as archive:
        assert "no such thing" in json.loads(archive.read("infoseg_fast/_build.json"))["cuda"]["reason"]


def test_without_a_compiler_the_install_succeeds_and_says_what_is_missing(source, tmp_path):
    tools = tmp_path / "bin"  # a PATH on which there is no compiler
    tools.mkdir()
    wheel = build(source, tmp_path / "wheel", "wheel", PATH=str(tools), CXX="")
    log = (tmp_path / "wheel/build.log").read_text()
    assert "the C++ extension was NOT built: no C++ compiler was found" in log
    with zipfile.ZipFile(wheel) as archive:
        record = json.loads(archive.read("infoseg_fast/_build.json"))
    assert not record["cpp"]["built"]
    assert "no C++ compiler was found" in run_with(wheel, tmp_path / "installed", USE)


def build_in(checkout: Path, compiler: Path | str, **environment) -> list[str]:
    """Build in a checkout. Returns the instruction sets of the kernels, as the build recorded them."""
    environment = os.environ | {"CXX": str(compiler), "INFOSEG_BUILD_CUDA": "0"} | environment
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    subprocess.run(command, cwd=checkout, env=environment, capture_output=True, check=True)
    record = json.loads((checkout / "infoseg_fast/_build.json").read_text())["cpp"]
    assert record["built"], record["reason"]
    return record["instruction_sets"]


@pytest.fixture
def stub(tmp_path) -> Path:
    """A compiler that makes empty files. It fails if a folder of headers does not exist."""
    compiler = tmp_path / "compiler"
    write_program(
        compiler,
        'case "$*" in --version) echo 14.1; exit;; *-dM*) exit;; esac\n'
        'for word; do case "$word" in -I*) [ -d "${word#-I}" ] || exit 1;; esac; done\n'
        'while [ "$1" != -o ]; do shift; done\n: > "$2"\n',
    )
    return compiler


def test_a_checkout_may_have_any_path(checkout, stub, tmp_path):
    moved = checkout.rename(tmp_path / "a $path of é's")
    build_in(moved, stub, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")


def test_a_wheel_has_no_module_of_an_earlier_build(checkout, stub, tmp_path):
    (checkout / "kernels/deleted.py").write_text("")
    build(checkout, tmp_path / "first", "wheel", CXX=str(stub))
    (checkout / "kernels/deleted.py").unlink()
    with zipfile.ZipFile(build(checkout, tmp_path / "second", "wheel", CXX=str(stub))) as archive:
        names = archive.namelist()
    assert "infoseg_fast/kernels/deleted.py" not in names and "infoseg_fast/kernels/tiles.py" in names


def test_an_sdist_has_no_record_of_a_build(checkout, tmp_path):
    (checkout / "infoseg_fast/_build.json").write_text("{}")
    with tarfile.open(build(checkout, tmp_path / "sdist", "sdist")) as archive:
        assert not any(name.endswith("_build.json") for name in archive.getnames())


def built(checkout: Path, **environment) -> tuple[dict, str]:
    """The record and the messages of a build."""
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    environment = os.environ | {"INFOSEG_BUILD_CUDA": "0"} | environment
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=True)
    return json.loads((checkout / "infoseg_fast/_build.json").read_text()), done.stderr


@pytest.mark.parametrize("library, name, accepted", [("cpp", "CPP", "1 and 0"), ("cuda", "CUDA", "auto, 0 and 1")])
def test_a_switch_that_is_not_accepted_is_named(checkout, stub, library, name, accepted):
    record, messages = built(checkout, **{"CXX": str(stub), f"INFOSEG_BUILD_{name}": "no"})
    expected = f"INFOSEG_BUILD_{name} is 'no'; {accepted} are accepted"
    assert record[library] == {"built": False, "reason": expected} and expected in messages


def test_empty_variables_are_unset(checkout, stub, tmp_path):
    stub.rename(tmp_path / "c++")
    variables = {"INFOSEG_BUILD_ISA": "", "INFOSEG_BUILD_CPP": "", "CXX": " "}
    record, _ = built(checkout, PATH=f"{tmp_path}:{os.environ['PATH']}", **variables)
    assert record["cpp"]["built"] and len(record["cpp"]["instruction_sets"]) == (5 if X86 else 1)


def test_the_reason_of_a_compiler_that_says_nothing_names_the_object(checkout, tmp_path):
    moved = checkout.rename(tmp_path / "errors")  # no message, though the word is in the paths
    record, _ = built(moved, CXX="false")
    assert "failed: FAILED: " in record["cpp"]["reason"] and "Entering" not in record["cpp"]["reason"]


def test_a_checkout_has_its_own_kernels_beside_an_editable_installation(checkout):
    # The finder of the editable installation knows infoseg_fast.kernels of another checkout.
    code = """
import sys, types
from importlib import util

def find_spec(name, path=None, target=None):
    if name == "infoseg_fast.kernels":
        return util.spec_from_file_location(name, sys.argv[1], submodule_search_locations=[])

sys.meta_path.append(types.SimpleNamespace(find_spec=find_spec))
import infoseg_fast.kernels
print(infoseg_fast.kernels.__file__)
"""
    command = [sys.executable, "-c", code, str(ROOT / "kernels/__init__.py")]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == checkout / "kernels/__init__.py"


def test_on_macos_the_extension_takes_python_from_the_process_that_loads_it(monkeypatch):
    monkeypatch.setattr("setuptools.setup", lambda **settings: None)
    ninja_file = runpy.run_path(str(ROOT / "setup.py"))["ninja_file"]
    arguments = ["c++"], "Apple clang version 17", ["portable"], Path("_C.so")
    assert "dynamic_lookup" not in ninja_file(*arguments) or sys.platform == "darwin"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "-shared -pthread -undefined dynamic_lookup $in" in ninja_file(*arguments)


X86 = platform.machine() == "x86_64"
# What a compiler answers, asked for the macros of a CPU.
MACROS = {
    "avx2": "__x86_64__ __AVX2__ __FMA__ __F16C__",
    "avx512": "__x86_64__ __AVX2__ __FMA__ __F16C__ __AVX512F__ __AVX512BW__ __AVX512DQ__ __AVX512VL__",
}
MACROS["avx512bf16"] = MACROS["avx512"] + " __AVX512BF16__"
MACROS["amx"] = MACROS["avx512bf16"] + " __AMX_TILE__ __AMX_BF16__ __AMX_INT8__"


def test_a_second_build_compiles_only_what_changed(checkout, tmp_path):
    log, compiler = tmp_path / "log", tmp_path / "compiler"

    def compiled(version: str = "1.0", flags: str = "", sets: str = "all") -> list[str]:
        """The objects that a build compiles, with a compiler that only logs its outputs."""
        log.write_text("")
        write_program(
            compiler,
            f'case "$*" in --version) echo {version}; exit;; *-dM*) echo {MACROS["avx2"]}; exit;; esac\n'
            f'while [ "$1" != -o ]; do shift; done\necho "$2" >> {log}; touch "$2"\n',
        )
        built = build_in(checkout, compiler, CXXFLAGS=flags, INFOSEG_BUILD_ISA=sets)
        every = ["amx", "avx512bf16", "avx512", "avx2", "portable"]
        assert built == ((["avx2"] if sets == "native" else every) if X86 else ["portable"])
        return sorted(name for name in log.read_text().split() if name.endswith(".o"))

    # The instruction set of this CPU first: a later build for all adds the others and no more.
    native = compiled(sets="native")
    assert not any(name.endswith(("512.o", "bf16.o", "amx.o")) for name in native)
    others = compiled()
    assert len(native) > 10 and (len(others) > 10 or not X86) and not {*native} & {*others}
    assert compiled(sets="native") == compiled() == []
    everything = sorted(native + others)
    kernel = checkout / "csrc/segment/kernel.cpp"
    kernel.write_text(kernel.read_text() + "\n")
    assert compiled() == [name for name in everything if "segment-kernel" in name]
    assert compiled(flags="-DNEW") == everything
    assert compiled(flags="-DNEW", version="1.1") == everything


@pytest.mark.skipif(not X86, reason="one instruction set")
@pytest.mark.parametrize("best", MACROS)
def test_a_native_build_takes_the_best_instruction_set_of_the_cpu(checkout, tmp_path, best):
    compiler = tmp_path / "compiler"
    write_program(
        compiler,
        f'case "$*" in --version) echo 14.1; exit;; *-dM*) echo {MACROS[best]}; exit;; esac\n'
        'while [ "$1" != -o ]; do shift; done\ntouch "$2"\n',
    )
    with_avx512 = [best, "avx512"] if best in ("amx", "avx512bf16") else [best]
    assert build_in(checkout, compiler, INFOSEG_BUILD_ISA="native") == with_avx512


@pytest.mark.skipif(not X86, reason="one instruction set")
def test_an_old_compiler_compiles_the_instruction_sets_that_it_knows(checkout, tmp_path):
    compiler = tmp_path / "compiler"
    write_program(
        compiler,
        'case "$*" in --version) echo 9.4; exit;; *bf16*-dM*) exit 1;; *-dM*) exit;; esac\n'
        'while [ "$1" != -o ]; do shift; done\ntouch "$2"\n',
    )
    assert build_in(checkout, compiler, INFOSEG_BUILD_ISA="all") == ["avx512", "avx2", "portable"]


@pytest.mark.skipif(not X86 or shutil.which("c++") is None, reason="one instruction set, or no C++ compiler")
def test_an_extension_for_one_cpu_names_what_it_lacks(checkout, tmp_path):
    tools = tmp_path / "tools"
    kept = compilers(tools)["CXX"]

    def tried(call: str) -> str:
        """What a call of the module raises."""
        code = f"""
from importlib import machinery, util
loader = machinery.ExtensionFileLoader("_C", {str(next(checkout.glob("infoseg_fast/_C*.so")))!r})
try:
    module = util.module_from_spec(util.spec_from_loader("_C", loader))
    loader.exec_module(module)
    {call}
except (ImportError, RuntimeError) as error:
    print(type(error).__name__, error)
"""
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    (sets,) = {*build_in(checkout, kept, CXXFLAGS="-O0", INFOSEG_BUILD_ISA="native")} - {"amx", "avx512bf16"}
    other = "avx2" if sets == "avx512" else "avx512"
    assert tried(f"module.set_instruction_set({other!r})") == (
        f"RuntimeError {other} was not compiled into this extension (INFOSEG_BUILD_ISA=all compiles it)\n"
    )
    assert tried(f"module.set_instruction_set({sets!r})") == ""
    # Sums that take 128 bits: the solver for them is that of this instruction set too.
    assert tried(f"import numpy; module.linear_sum_assignment(numpy.array({[[2**63 - 1, -(2**63)], [0, 1]]}), 0)") == ""
    if sets == "avx512":
        return
    newer = tools / "newer"  # as if it were built on a newer CPU
    write_program(newer, f'case "$*" in *-dM*) echo {MACROS["avx512"]};; *) exec {kept} "$@";; esac\n')
    assert build_in(checkout, newer, CXXFLAGS="-O0", INFOSEG_BUILD_ISA="native") == ["avx512"]
    assert tried("") == "ImportError its kernels were compiled for avx512 alone, which this CPU cannot run\n"


@pytest.mark.long
def test_a_compile_error_is_reported_in_one_line(checkout, tmp_path):
    with (checkout / "csrc/mutual_information_loss/kernel.cpp").open("a") as file:
        file.write("\nthis is no C++;\n")
    wheel = build(checkout, tmp_path / "wheel", "wheel")
    with zipfile.ZipFile(wheel) as archive:
        reason = json.loads(archive.read("infoseg_fast/_build.json"))["cpp"]["reason"]
        assert not any(name.endswith(".so") for name in archive.namelist())
    assert "error" in reason and "\n" not in reason
