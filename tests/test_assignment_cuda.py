"""The CUDA matcher: its source run on the CPU by tests/cuda_harness, watched by sanitizers, and
compiled by nvcc.

On a machine with a GPU the same matrices go through the GPU as well.
"""

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import torch
from fibers import ASSIGNMENT, COMPILER, CONFUSION, compiled, needs_compiler, race_check, runner
from hard_costs import hard_costs

import infoseg_fast as isf
from infoseg_fast import cuda_library
from infoseg_fast.ops import linear_sum_assignment as assignment

NVCC = shutil.which("nvcc")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc")


def solve_with_fibers(library, cost: torch.Tensor, maximize: bool = False):
    return assignment.launch(runner(library), cost, maximize)


def as_read(cost: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(cost if cost.dtype == np.float32 else assignment.readable(cost))


def assert_like_scipy(kind, cost, maximize, rows, cols, status):
    """The very assignment that scipy finds, ties included, or a status where scipy raises."""
    try:
        expected = scipy.optimize.linear_sum_assignment(cost, maximize)
    except ValueError as error:
        assert status[0, 0] == (2 if "infeasible" in str(error) else 1), (kind, cost.shape)
        assert (cols == -1).all()
        return
    assert status[0, 0] == 0, (kind, cost.shape)
    assert (rows.numpy() == expected[0]).all() and (cols.numpy() == expected[1]).all(), (kind, cost.shape, maximize)


@needs_compiler
@pytest.mark.parametrize("schedule", [0, 20240229])
def test_assignments_are_scipys_own_on_hard_matrices(fibers, schedule):
    fibers.cuda_harness_set_schedule(schedule)
    for kind, cost, maximize in [*hard_costs(3, 1300, 33), *hard_costs(4, 60, 120)]:
        assert_like_scipy(kind, cost, maximize, *solve_with_fibers(fibers, as_read(cost), maximize))


@needs_compiler
@pytest.mark.parametrize("shape", [(3, 2048), (2048, 3), (40, 600), (1, 1), (32, 32), (33, 33), (32, 33), (33, 32)])
def test_sizes_at_the_kernels_borders(fibers, shape):
    cost = np.random.default_rng(0).random(shape)
    assert_like_scipy("border", cost, False, *solve_with_fibers(fibers, torch.from_numpy(cost)))


@needs_compiler
@pytest.mark.parametrize("shape", [(9, 4, 6), (5, 6, 4), (3, 40, 35), (3, 35, 40), (0, 3, 3), (3, 0, 4)])
def test_batches_with_any_strides(fibers, shape):
    costs = torch.rand(shape, dtype=torch.float64)
    expected = isf.linear_sum_assignment(costs)
    for same in (costs, costs.permute(2, 0, 1).contiguous().permute(1, 2, 0), costs.mT.contiguous().mT):
        rows, cols, status = solve_with_fibers(fibers, same)
        assert torch.equal(rows, expected[0]) and torch.equal(cols, expected[1]) and not status[:, 0].any()


@needs_compiler
@pytest.mark.parametrize("size", [6, 45])
def test_failures_are_reported_for_their_own_problem_only(fibers, size):
    costs = torch.rand(4, size, size + 1, dtype=torch.float64)
    costs[1, 2, 3] = costs[1, 4, 0] = float("nan")
    costs[3, 5] = float("inf")
    rows, cols, status = solve_with_fibers(fibers, costs)
    assert status.tolist() == [[0, 0], [1, 2], [0, 0], [2, 5]]
    for b in (0, 2):
        assert torch.equal(cols[b], isf.linear_sum_assignment(costs[b])[1])
    for b in (1, 3):
        assert (cols[b] == -1).all() and torch.equal(rows[b], torch.arange(size))
    with pytest.raises(ValueError, match=r"invalid numeric entries: row 2 of cost\[1\]"):
        assignment.explain(status, costs)
    with pytest.raises(ValueError, match=r"infeasible: column 5 has no allowed row"):
        assignment.explain(status[3:], costs[3].T)


@needs_compiler
@pytest.mark.parametrize("size", [5, 40])
def test_integers_are_exact_or_refused(fibers, size):
    small = torch.randint(0, 1000, (size, size))
    for shift in (0, 2**62, -(2**62)):
        for maximize in (False, True):
            _, cols, status = solve_with_fibers(fibers, small + shift, maximize)
            chosen = small[torch.arange(size), cols].sum()
            rows_best, cols_best = isf.linear_sum_assignment(small, maximize)
            assert not status.any() and chosen == small[rows_best, cols_best].sum()
    small[0, 0] = 2**60
    _, cols, status = solve_with_fibers(fibers, small)
    assert status[0, 0] == 3 and (cols == -1).all()
    with pytest.raises(ValueError, match="integers too far apart"):
        assignment.explain(status, small)


@needs_compiler
def test_what_the_kernels_do_not_take_is_refused(fibers):
    assert fibers.infoseg_assign_max_columns() == 2048
    arguments = [None, 1, 1, 2049, 3, 0, 3, 1, 0, None, None, None, None]
    assert fibers.infoseg_assign(*arguments) != 0
    arguments[1], arguments[3] = 7, 3
    assert fibers.infoseg_assign(*arguments) != 0


def watched(program: Path) -> subprocess.CompletedProcess:
    # Some kernels place memory where ThreadSanitizer cannot have it; without randomisation they do
    # not.
    command = ["setarch", "-R", str(program)] if shutil.which("setarch") else [str(program)]
    environment = os.environ | {"TSAN_OPTIONS": "halt_on_error=1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)
    if "FATAL: ThreadSanitizer" in done.stderr:
        pytest.skip(f"ThreadSanitizer does not run here: {done.stderr.strip()}")
    return done


@functools.cache
def has_thread_sanitizer() -> bool:
    probe = [COMPILER or "g++", "-fsanitize=thread", "-x", "c++", "-", "-o", os.devnull]
    return subprocess.run(probe, input="int main() {}", capture_output=True, text=True, check=False).returncode == 0


@needs_compiler
def test_thread_sanitizer_finds_no_race(tmp_path):
    if not has_thread_sanitizer():
        pytest.skip("the compiler has no ThreadSanitizer")
    done = watched(race_check(tmp_path, "-fsanitize=thread"))
    assert done.returncode == 0 and "checked" in done.stdout, done.stderr


@needs_compiler
def test_thread_sanitizer_names_every_barrier_that_is_missing(tmp_path):
    if not has_thread_sanitizer():
        pytest.skip("the compiler has no ThreadSanitizer")
    for name, source, number in (("assignment", ASSIGNMENT, 4), ("confusion", CONFUSION, 2)):
        text = source.read_text()
        barriers = [match.span() for match in re.finditer(r"__syncthreads\(\);", text)]
        assert len(barriers) == number
        for begin, end in barriers:
            without = tmp_path / "without.cu"
            without.write_text(text[:begin] + text[end:])
            done = watched(race_check(tmp_path, "-fsanitize=thread", **{name: without}))
            assert "data race" in done.stderr and re.search(r"without\.cu:\d+", done.stderr), done.stderr
    done = watched(race_check(tmp_path, "-fsanitize=thread", "-DINFOSEG_WITHOUT_SYNCWARP"))
    assert "data race" in done.stderr and "neighbours_kernel" in done.stderr


@needs_compiler
def test_address_and_undefined_behaviour_sanitizers_find_nothing(tmp_path):
    program = race_check(tmp_path, "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0 and "checked" in done.stdout, done.stderr


MISTAKES = {
    "a collective of half a warp": ("if (threadIdx.x < 16) __syncwarp();", "a thread returned|no thread can go on"),
    "two collectives at once": (
        "if (threadIdx.x < 16) __ballot_sync(0xffffffffu, true); else __shfl_sync(0xffffffffu, 1, 0);",
        "do not match",
    ),
    "a lane outside its mask": ("__ballot_sync(0x0000ffffu, true);", "outside the mask"),
    "a shuffle from outside the mask": (
        "if (threadIdx.x < 16) __shfl_sync(0x0000ffffu, 1, 20);",
        "reads a lane outside the mask",
    ),
    "a barrier that some never reach": (
        "if (threadIdx.x < 40) __syncthreads();",
        "a thread returned|no thread can go on",
    ),
}


@needs_compiler
def test_the_harness_names_mistakes_that_hang_a_gpu(tmp_path):
    branches = "".join(f"if (which == {i}) {{ {code} }}\n" for i, (code, _) in enumerate(MISTAKES.values()))
    source = tmp_path / "mistakes.cpp"
    source.write_text(
        '#include "cuda_runtime.h"\n'
        f"__global__ void kernel(int which) {{ {branches} }}\n"
        "int main(int, char** arguments) { cudaLaunchConfig_t config{}; config.blockDim = dim3(64);\n"
        "  cudaLaunchKernelEx(&config, kernel, std::atoi(arguments[1])); }\n"
    )
    path = compiled(tmp_path / "mistakes", [source], "-O1")
    for i, (name, (_, words)) in enumerate(MISTAKES.items()):
        done = subprocess.run([str(path), str(i)], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode != 0 and re.search(words, done.stderr) and "thread 3" in done.stderr, (name, done.stderr)


@needs_nvcc
@pytest.mark.parametrize("target", [80, 90])
@pytest.mark.parametrize(("source", "kernels"), [(ASSIGNMENT, 6), (CONFUSION, 1)])
def test_nvcc_spills_no_registers(source, kernels, target, tmp_path):
    command = [NVCC, "-O3", "-std=c++17", "-cubin", "--resource-usage", f"-arch=sm_{target}", str(source)]
    done = subprocess.run([*command, "-o", str(tmp_path / "x.cubin")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = done.stdout + done.stderr
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert len(spills) == kernels and set(spills) == {("0", "0", "0")}, report


def test_the_library_loads_without_a_gpu_or_says_why_not():
    reason = cuda_library.unavailable()
    assert reason is None or isinstance(reason, str)
    if cuda_library.library() is not None:
        assert cuda_library.library().infoseg_assign_max_columns() == 2048
        if not torch.cuda.is_available():
            assert cuda_library._not_ready().startswith("its CUDA runtime reports:")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_assignments_are_scipys_own_too():
    assert cuda_library.unavailable() is None, cuda_library.unavailable()
    for kind, cost, maximize in [*hard_costs(3, 400, 33), *hard_costs(4, 100, 200)]:
        on_gpu = as_read(cost).cuda()
        rows, cols, status = assignment.launch(cuda_library.run, on_gpu, maximize)
        assert_like_scipy(kind, cost, maximize, rows.cpu(), cols.cpu(), status.cpu())
    costs = torch.rand(300, 27, 27, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        rows, cols = isf.linear_sum_assignment(costs, backend="cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(cols.cpu(), isf.linear_sum_assignment(costs.cpu())[1]) and rows.is_cuda
    costs[3, 4, 5] = float("nan")
    with pytest.raises(ValueError, match=r"row 4 of cost\[3\]"):
        isf.linear_sum_assignment(costs, check=True)
