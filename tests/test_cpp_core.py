"""The C++ core without Python, under the sanitizers."""

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
KERNELS = ("mutual_information_loss", "similarity", "segment", "appearance", "refined_labels")
FLAGS = {
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "portable": [],
}


def best_flags() -> list[str]:
    """Flags of the widest instruction set of this CPU, compiled under the name "portable"."""
    if platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists():
        return FLAGS["portable"]
    has = Path("/proc/cpuinfo").read_text()
    return FLAGS["avx512" if "avx512dq" in has and "avx512bw" in has else "avx2" if "avx2" in has else "portable"]


def require(sanitizer: str, folder: Path) -> None:
    """Skip only where the compiler cannot build an empty program with this sanitizer."""
    source = folder / "empty.cpp"
    source.write_text("int main() { return 0; }\n")
    command = [COMPILER, f"-fsanitize={sanitizer}", source, "-o", folder / "empty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the compiler has no -fsanitize={sanitizer}: {done.stderr[-300:]}")


def build(folder: Path, sanitizer: str) -> Path:
    # With optimisation the checks of undefined behaviour take twice as long to compile.
    optimisation = "-O1" if sanitizer == "thread" else "-O0"
    common = [COMPILER, optimisation, "-g1", "-std=c++17", "-fno-math-errno", f"-fsanitize={sanitizer}", "-pthread"]
    common += ["-fno-sanitize-recover=undefined", "-DINFOSEG_ONE_ISA", f"-I{ROOT / 'csrc'}"]
    # How parts are shared among threads does not depend on the instructions.
    instructions = FLAGS["portable"] if sanitizer == "thread" else best_flags()
    one_set = [*instructions, "-DINFOSEG_ISA=portable"]
    sources = [(ROOT / "csrc" / kernel / "kernel.cpp", one_set) for kernel in KERNELS]
    sources += [(ROOT / "csrc" / "common" / f"{name}.cpp", []) for name in ("cpu", "threads", "scratch")]
    sources += [(ROOT / "tests" / "cpp" / "test_kernels.cpp", [])]

    def compile_one(source: tuple[Path, list[str]]) -> str:
        path, flags = source
        out = folder / f"{path.parent.name}-{path.stem}.o"
        done = subprocess.run([*common, *flags, "-c", path, "-o", out], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return str(out)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    program = folder / "test_kernels"
    done = subprocess.run([*common, *objects, "-o", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return program


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.long
@pytest.mark.parametrize(("sanitizer", "what"), [("address,undefined", "all"), ("thread", "threads")])
def test_kernels_pass_under_sanitizers(sanitizer, what, tmp_path):
    require(sanitizer, tmp_path)
    program = build(tmp_path, sanitizer)
    done = subprocess.run([program, what], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
