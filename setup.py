"""Build of the C++ extension `infoseg_fast._C` and the CUDA library `infoseg_fast/_cuda.so`.

The build needs neither torch nor a GPU. A failure to compile never makes the installation fail.

csrc/*/kernel.cpp is compiled once for each instruction set, with its flags and with INFOSEG_ISA
defined as its name; every other csrc/**/*.cpp is compiled once. Ninja runs the compiler. Objects
stay in build/ of the checkout, so that a second build compiles only what has changed: a source, a
header that it includes, the compiler, a flag or the Python version. CXX names the compiler, and
CXXFLAGS adds flags. INFOSEG_BUILD_ISA=native compiles for the best instruction set of this CPU
alone; a CPU that lacks it cannot load the extension. The default, all, adds the others.

nvcc compiles every csrc/**/*.cu into a library with a C interface. The library holds the CUDA
runtime and is loaded when first used. INFOSEG_BUILD_CUDA=auto (the default) builds it where there
is an nvcc, 0 never, 1 always: then a failure is reported as loudly as the extension's.
INFOSEG_BUILD_CPP=0 leaves out the extension.

`infoseg_fast/_build.json` records what was built, and why something was not. `infoseg env` reads
it.
"""

import hashlib
import itertools
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
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
OBJECTS = ROOT / "build" / f"csrc-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
SOURCES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.cpp"))
CUDA_SOURCES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.cu"))

CXX_FLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-Wall", "-Wextra"]
AVX512_FLAGS = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"]
# The best first. avx512bf16 and amx are avx512 with instructions that multiply bfloat16, in pairs
# and in tile registers (BF16_KERNELS).
INSTRUCTION_SETS = {
    "amx": [*AVX512_FLAGS, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"],
    "avx512bf16": [*AVX512_FLAGS, "-mavx512bf16"],
    "avx512": AVX512_FLAGS,
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "portable": [],
}
LOSS = "csrc/mutual_information_loss/kernel.cpp"
# The kernels that gain from instructions on bfloat16.
BF16_KERNELS = {"amx": [LOSS, "csrc/similarity/kernel.cpp"], "avx512bf16": [LOSS]}
# Sources that compile faster and run as fast without -O3: loops over tiles are vectors already, and
# -fvect-cost-model makes the rest vectors as -O3 does.
OPTIMISATION = {
    "csrc/bindings.cpp": ["-O1"],
    "csrc/similarity/kernel.cpp": ["-O2", "-fvect-cost-model=dynamic"],
}
# Compute capabilities; later GPUs take the PTX of the last one.
CUDA_TARGETS = (80, 86, 89, 90, 100, 120)
NVCC_FLAGS = ["-O3", "-std=c++17", "--threads=0", "-cudart=static", "-Xcompiler=-fPIC,-fvisibility=hidden"]


class BuildError(Exception):
    """Why a library was not built, in one line."""


def warn(message: str) -> None:
    print(f"\n{'*' * 100}\ninfoseg-fast: {message}\n{'*' * 100}\n", file=sys.stderr)


def first_error(output: str) -> str:
    # Ninja prints its folder, and commands after [n/m] and FAILED. Their paths may contain the word.
    pairs = itertools.pairwise(["", *output.splitlines()])
    lines = [line for last, line in pairs if not line.startswith(("ninja: E", "[")) and not last.startswith("FAILED")]
    errors = [line for line in lines if "error" in line.lower() or "unsupported" in line.lower()] or lines
    return errors[0].strip() if errors else "without a message"


def switch(name: str, *accepted: str) -> str:
    """The value of a switch of the build. Unset or empty: the first that is accepted."""
    value = os.environ.get(name) or accepted[0]
    if value not in accepted:
        raise BuildError(f"{name} is {value!r}; {', '.join(accepted[:-1])} and {accepted[-1]} are accepted")
    return value


def find_compiler() -> list[str]:
    for candidate in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        words = shlex.split(candidate)
        if words and shutil.which(words[0]):
            return words
    raise BuildError("no C++ compiler was found (looked for $CXX, c++, g++ and clang++)")


def version_of(command: list[str]) -> str:
    return subprocess.run([*command, "--version"], capture_output=True, text=True, check=False).stdout


def chosen_sets(compiler: list[str]) -> list[str]:
    """The instruction sets to compile for, as INFOSEG_BUILD_ISA says."""
    wanted = switch("INFOSEG_BUILD_ISA", "all", "native")
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ["portable"]

    def preprocessed(*flags: str) -> subprocess.CompletedProcess:
        command = [*compiler, *flags, "-dM", "-E", "-x", "c++", os.devnull]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    # An old compiler does not know the newest sets.
    every = [name for name, flags in INSTRUCTION_SETS.items() if not preprocessed(*flags).returncode]
    native = preprocessed("-march=native")
    if wanted == "all" or native.returncode:
        return every
    macros = set(native.stdout.split())  # -mavx2 defines __AVX2__, -mamx-tile defines __AMX_TILE__
    best = next(s for s in every if {f"__{f[2:].upper().replace('-', '_')}__" for f in INSTRUCTION_SETS[s]} <= macros)
    return [best, "avx512"] if best in BF16_KERNELS else [best]


def compilations(sets: list[str]) -> list[tuple[str, str, list[str]]]:
    """(source, object, flags) of every compilation, those that take longest first."""
    found = []
    for source in SOURCES:
        name = source.removeprefix("csrc/").removesuffix(".cpp").replace("/", "-")
        if not source.endswith("/kernel.cpp"):
            found.append((source, f"{name}.o", []))
            continue
        for isa in sets:
            if isa not in BF16_KERNELS or source in BF16_KERNELS[isa]:
                found.append((source, f"{name}-{isa}.o", [*INSTRUCTION_SETS[isa], f"-DINFOSEG_ISA={isa}"]))
    return sorted(found, key=lambda one: (one[0] != LOSS, one[0] not in OPTIMISATION))


def ninja_file(compiler: list[str], version: str, sets: list[str], output: Path) -> str:
    import pybind11

    includes = [f"-I{sysconfig.get_path('include')}", f"-I{pybind11.get_include()}", f"-I{ROOT / 'csrc'}"]
    call = shlex.join(compiler).replace("$", "$$")
    flags = shlex.join([*CXX_FLAGS, *shlex.split(os.environ.get("CXXFLAGS", "")), *includes]).replace("$", "$$")
    # The Python that loads the extension has the functions of Python. The linker of macOS asks for them.
    python = " -undefined dynamic_lookup" if sys.platform == "darwin" else ""
    escape = str.maketrans({"$": "$$", " ": "$ ", ":": "$:"})
    lines = [
        "ninja_required_version = 1.5",
        "rule compile",
        # The comment makes a new version of the compiler a new command: ninja then compiles
        # everything again.
        f"  command = {call} -MMD -MF $out.d $optimisation {flags} $flags -c $in -o $out # {version}",
        "  description = compile $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {call} -shared -pthread{python} $in -o $out",
    ]
    for source, name, own in compilations(sets):
        # clang does not know this flag; it makes the same vectors with -O2.
        known = [f for f in OPTIMISATION.get(source, ["-O3"]) if "clang" not in version or "model" not in f]
        lines += [
            f"build {name}: compile {str(ROOT / source).translate(escape)}",
            f"  optimisation = {shlex.join(known)}",
            f"  flags = {shlex.join(own)}",
        ]
    names = " ".join(name for _, name, _ in compilations(sets))
    return "\n".join([*lines, f"build {str(output).translate(escape)}: link {names}"]) + "\n"


def find_nvcc() -> str:
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    paths = [f"{home}/bin/nvcc" for home in homes]
    for candidate in (os.environ.get("CUDACXX"), *paths, "nvcc", "/usr/local/cuda/bin/nvcc"):
        if candidate and (found := shutil.which(candidate)):
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


class FreshModules(build_py):
    """Leaves nothing of an earlier build: a module that was deleted since would be installed."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib, "infoseg_fast"), ignore_errors=True)
        super().run()


class NinjaBuild(build_ext):
    """Builds both libraries. When one fails, says why and continues without it."""

    def run(self) -> None:
        self.status = {"cpp": {"built": False, "reason": "the build did not reach it"}}
        super().run()
        package = self.get_finalized_command("build_py").get_package_dir("infoseg_fast")
        folder = ROOT / package if self.inplace or self.editable_mode else Path(self.build_lib, "infoseg_fast")
        folder.mkdir(parents=True, exist_ok=True)
        if not self.status["cpp"]["built"]:
            for stale in folder.glob("_C.*.so"):
                stale.unlink()
        self.status["cuda"] = self.build_cuda(folder.resolve() / "_cuda.so")
        (folder / "_build.json").write_text(json.dumps(self.status, indent=1) + "\n")

    def build_extension(self, ext: Extension) -> None:
        try:
            if switch("INFOSEG_BUILD_CPP", "1", "0") == "0":
                raise BuildError("it was switched off at build time (INFOSEG_BUILD_CPP=0)")
            self.status["cpp"] = self.compile(Path(self.get_ext_fullpath(ext.name)).resolve())
        except (BuildError, OSError) as error:
            self.status["cpp"] = {"built": False, "reason": str(error)}
            warn(
                f"the C++ extension was NOT built: {error}.\nThe package works without it, on its slower PyTorch "
                "references. `infoseg env` repeats this."
            )

    def compile(self, output: Path) -> dict:
        compiler = find_compiler()
        version = (version_of(compiler).splitlines() or ["unknown"])[0]
        for folder in (OBJECTS, output.parent):
            folder.mkdir(parents=True, exist_ok=True)
        sets = chosen_sets(compiler)
        # Paths and messages that the locale cannot write do not stop the build.
        (OBJECTS / "build.ninja").write_bytes(os.fsencode(ninja_file(compiler, version, sets, output)))
        command = [sys.executable, "-m", "ninja", "-C", str(OBJECTS)]
        ninja = subprocess.run(command, capture_output=True, text=True, errors="backslashreplace", check=False)
        sys.stdout.write(ninja.stdout)
        if ninja.returncode:
            raise BuildError(f"{shlex.join(compiler)} failed: {first_error(ninja.stdout + ninja.stderr)}")
        return {"built": True, "reason": None, "compiler": version, "instruction_sets": sets}

    def build_cuda(self, output: Path) -> dict:
        quiet = os.environ.get("INFOSEG_BUILD_CUDA", "") in ("", "auto", "0")
        try:
            if switch("INFOSEG_BUILD_CUDA", "auto", "0", "1") == "0":
                raise BuildError("it was switched off at build time (INFOSEG_BUILD_CUDA=0)")
            nvcc = find_nvcc()
            version = version_of([nvcc])
            command = [nvcc, *NVCC_FLAGS, *cuda_targets(nvcc), "-shared", *[str(ROOT / s) for s in CUDA_SOURCES]]
            # The same sources, command and compiler are not compiled again.
            contents = b"".join((ROOT / source).read_bytes() for source in CUDA_SOURCES)
            stamp = hashlib.sha256(json.dumps([command, version]).encode() + contents).hexdigest()
            kept, record = OBJECTS / "_cuda.so", OBJECTS / "cuda.sha256"
            if not (kept.exists() and record.exists() and record.read_text() == stamp):
                OBJECTS.mkdir(parents=True, exist_ok=True)
                record.unlink(missing_ok=True)  # an nvcc that is stopped can leave a part of its output
                done = subprocess.run([*command, "-o", str(kept)], capture_output=True, text=True, check=False)
                if done.returncode:
                    raise BuildError(f"{nvcc} failed: {first_error(done.stdout + done.stderr)}")
                record.write_text(stamp)
            shutil.copyfile(kept, output)
            release = [line.strip() for line in version.splitlines() if "release" in line]
            return {"built": True, "reason": None, "compiler": release[0] if release else nvcc}
        except (BuildError, OSError) as error:
            output.unlink(missing_ok=True)
            if not quiet:
                warn(f"the CUDA library was NOT built: {error}.")
            return {"built": False, "reason": str(error)}


setup(
    # The Triton kernels lie at the top level of the checkout and are installed inside the package.
    packages=[
        "infoseg_fast",
        "infoseg_fast.bench",
        "infoseg_fast.compat",
        "infoseg_fast.data",
        "infoseg_fast.distributed",
        "infoseg_fast.kernels",
        "infoseg_fast.maps",
        "infoseg_fast.ops",
        "infoseg_fast.recipe",
        "infoseg_fast.reference",
        "infoseg_fast.scores",
    ],
    package_dir={"infoseg_fast": "infoseg_fast", "infoseg_fast.kernels": "kernels"},
    package_data={"infoseg_fast": ["_build.json", "py.typed"]},
    ext_modules=[Extension("infoseg_fast._C", SOURCES, optional=True)],
    cmdclass={"build_ext": NinjaBuild, "build_py": FreshModules},
)
