"""Build of the compiled extension and the CUDA library. Needs neither torch nor a GPU, and never makes the installation
fail.

Every csrc/*.cpp is compiled into `infoseg_fast._C`. The suffix of a source's name says for which instruction set it is
compiled; sources without one run on every x86-64 (or other) CPU and choose among the others at run time. Ninja builds
them in parallel and again only when a header they include has changed.

Every csrc/*.cu is compiled by nvcc into `infoseg_fast/_cuda.so`, a library with a C interface that holds the CUDA
runtime and is loaded when first used. INFOSEG_BUILD_CUDA says when: "auto" (the default) where there is an nvcc, "0"
never, "1" always, and then a failure is told as loudly as the extension's.

What was built, and why something was not, goes to `infoseg_fast/_build.json`, which `infoseg env` reads.
"""

import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
SOURCES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").glob("*.cpp"))
CUDA_SOURCES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").glob("*.cu"))

CXX_FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-Wall", "-Wextra"]
AVX512_FLAGS = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"]
# Longest suffix first: the first one that fits a source's name gives its flags.
INSTRUCTION_SETS = {
    "_avx512bf16": [*AVX512_FLAGS, "-mavx512bf16"],
    "_avx512": AVX512_FLAGS,
    "_avx2": ["-mavx2", "-mfma", "-mf16c"],
}
# Compute capabilities; later GPUs take the last one's PTX.
CUDA_TARGETS = (80, 86, 89, 90, 100, 120)
NVCC_FLAGS = ["-O3", "-std=c++17", "--threads=0", "-cudart=static", "-Xcompiler=-fPIC,-fvisibility=hidden"]


class BuildError(Exception):
    """Why the extension was not built, in one line."""


def find_compiler() -> list[str]:
    for candidate in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if candidate and shutil.which(shlex.split(candidate)[0]):
            return shlex.split(candidate)
    raise BuildError("no C++ compiler was found (looked for $CXX, c++, g++ and clang++)")


def flags_of(source: str) -> list[str]:
    stem = Path(source).stem
    for suffix, flags in INSTRUCTION_SETS.items():
        if stem.endswith(suffix):
            return flags
    return []


def is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def ninja_file(compiler: list[str], sources: list[str], objects: Path, output: Path) -> str:
    import pybind11

    includes = [f"-I{sysconfig.get_path('include')}", f"-I{pybind11.get_include()}", f"-I{ROOT / 'csrc'}"]
    cxx, common = shlex.join(compiler), shlex.join([*CXX_FLAGS, *includes])
    escape = str.maketrans({"$": "$$", " ": "$ ", ":": "$:"})
    lines = [
        "ninja_required_version = 1.5",
        "rule compile",
        f"  command = {cxx} -MMD -MF $out.d {common} $flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {cxx} -shared -pthread $in -o $out",
    ]
    built = []
    for source in sources:
        target = str(objects / (Path(source).stem + ".o")).translate(escape)
        built.append(target)
        lines += [f"build {target}: compile {str(ROOT / source).translate(escape)}"]
        lines += [f"  flags = {shlex.join(flags_of(source))}"]
    lines += [f"build {str(output).translate(escape)}: link {' '.join(built)}"]
    return "\n".join(lines) + "\n"


def find_nvcc() -> str:
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    for candidate in (
        os.environ.get("CUDACXX"),
        *[home and os.path.join(home, "bin", "nvcc") for home in homes],
        "nvcc",
    ):
        if candidate and (found := shutil.which(candidate)):
            return found
    if found := shutil.which("/usr/local/cuda/bin/nvcc"):
        return found
    raise BuildError("no nvcc was found (looked for $CUDACXX, $CUDA_HOME/bin, the PATH and /usr/local/cuda)")


def cuda_targets(nvcc: str) -> list[str]:
    """nvcc's flags for those of CUDA_TARGETS that this nvcc knows."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=False).stdout
    known = {int(line.split("_")[1]) for line in listed.split() if line.removeprefix("compute_").isdigit()}
    targets = [target for target in CUDA_TARGETS if target in known]
    if not targets:
        raise BuildError(f"{nvcc} compiles for none of the GPUs {', '.join(map(str, CUDA_TARGETS))}")
    flags = [f"-gencode=arch=compute_{target},code=sm_{target}" for target in targets]
    return [*flags, f"-gencode=arch=compute_{targets[-1]},code=compute_{targets[-1]}"]


class NinjaBuild(build_ext):
    """Compiles with ninja; on failure says why, loudly, and goes on without the extension."""

    def run(self) -> None:
        self.status = {"cpp": {"built": False, "reason": "the build did not reach it"}}
        super().run()
        package = self.get_finalized_command("build_py").get_package_dir("infoseg_fast")
        folder = ROOT / package if self.inplace or self.editable_mode else Path(self.build_lib, "infoseg_fast")
        folder.mkdir(parents=True, exist_ok=True)
        self.status["cuda"] = self.build_cuda(folder.resolve() / "_cuda.so")
        (folder / "_build.json").write_text(json.dumps(self.status, indent=1) + "\n")

    def build_extension(self, ext: Extension) -> None:
        try:
            if os.environ.get("INFOSEG_BUILD_CPP", "1") == "0":
                raise BuildError("it was switched off at build time (INFOSEG_BUILD_CPP=0)")
            self.status["cpp"] = self.compile(Path(self.get_ext_fullpath(ext.name)).resolve())
        except BuildError as error:
            self.status["cpp"] = {"built": False, "reason": str(error)}
            print(
                f"\n{'*' * 100}\ninfoseg-fast: the C++ extension was NOT built: {error}.\n"
                "The package works without it, on its slower PyTorch references. "
                f"`infoseg env` repeats this.\n{'*' * 100}\n",
                file=sys.stderr,
            )

    def build_cuda(self, output: Path) -> dict:
        wanted = os.environ.get("INFOSEG_BUILD_CUDA", "auto")
        try:
            if wanted == "0":
                raise BuildError("it was switched off at build time (INFOSEG_BUILD_CUDA=0)")
            nvcc = find_nvcc()
            version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
            command = [nvcc, *NVCC_FLAGS, *cuda_targets(nvcc), "-shared", *[str(ROOT / s) for s in CUDA_SOURCES]]
            # Compiling takes seconds: not again for the same sources, command and compiler.
            contents = b"".join((ROOT / source).read_bytes() for source in CUDA_SOURCES)
            stamp = hashlib.sha256(json.dumps([command, version]).encode() + contents).hexdigest()
            record = Path(self.build_temp).resolve() / "cuda.sha256"
            if not (output.exists() and record.exists() and record.read_text() == stamp):
                done = subprocess.run([*command, "-o", str(output)], capture_output=True, text=True, check=False)
                if done.returncode:
                    lines = (done.stdout + done.stderr).splitlines()
                    told = [line for line in lines if "error" in line.lower() or "unsupported" in line.lower()] or lines
                    raise BuildError(f"{nvcc} failed: {told[0].strip() if told else 'without a message'}")
                record.parent.mkdir(parents=True, exist_ok=True)
                record.write_text(stamp)
            release = [line.strip() for line in version.splitlines() if "release" in line]
            return {"built": True, "reason": None, "compiler": release[0] if release else nvcc}
        except BuildError as error:
            output.unlink(missing_ok=True)
            if wanted == "1":
                print(
                    f"\n{'*' * 100}\ninfoseg-fast: the CUDA library was NOT built: {error}.\n{'*' * 100}\n",
                    file=sys.stderr,
                )
            return {"built": False, "reason": str(error)}

    def compile(self, output: Path) -> dict:
        compiler = find_compiler()
        sources = [source for source in SOURCES if is_x86() or not flags_of(source)]
        objects = Path(self.build_temp).resolve() / "csrc"
        objects.mkdir(parents=True, exist_ok=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        (objects / "build.ninja").write_text(ninja_file(compiler, sources, objects, output))
        ninja = subprocess.run(
            [sys.executable, "-m", "ninja", "-C", str(objects)], capture_output=True, text=True, check=False
        )
        sys.stdout.write(ninja.stdout)
        if ninja.returncode:
            messages = [line for line in (ninja.stdout + ninja.stderr).splitlines() if "error" in line.lower()]
            cause = messages[0].strip() if messages else (ninja.stderr.strip() or "ninja failed")
            raise BuildError(f"{shlex.join(compiler)} failed: {cause}")
        version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False)
        return {"built": True, "reason": None, "compiler": (version.stdout.splitlines() or ["unknown"])[0]}


setup(
    # The layout keeps the Triton kernels at the top level; they are installed inside the package.
    packages=[
        "infoseg_fast",
        "infoseg_fast.bench",
        "infoseg_fast.data",
        "infoseg_fast.kernels",
        "infoseg_fast.ops",
        "infoseg_fast.recipe",
        "infoseg_fast.reference",
        "infoseg_fast.scores",
    ],
    package_dir={"infoseg_fast": "infoseg_fast", "infoseg_fast.kernels": "kernels"},
    package_data={"infoseg_fast": ["_build.json"]},
    ext_modules=[Extension("infoseg_fast._C", SOURCES, optional=True)],
    cmdclass={"build_ext": NinjaBuild},
)
