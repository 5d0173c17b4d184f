"""Launches of the Triton kernels, recorded on fake CUDA tensors or passed to a stub: no GPU is
needed.
"""

import contextlib
import itertools
import math

import pytest
import torch

pytest.importorskip("triton")

from torch._subclasses.fake_tensor import FakeTensorMode

import infoseg_fast as isf
from infoseg_fast import kernels
from infoseg_fast.bench.cuda_values import matmul_precision, triton_ops, variants
from infoseg_fast.bench.launches import record
from infoseg_fast.bench.specialisation import Specialisation
from infoseg_fast.kernels import configs, launch, local_global_similarity, tiles
from infoseg_fast.ops import OPS, dispatch
from infoseg_fast.ops.protocol import Needs
from infoseg_fast.ops.record import Case

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
NOTHING = Needs(False, False, False)
COCO = {"B": 64, "C": 256, "K": 15, "h": 32, "w": 32, "size": (128, 128)}


def tensors(started):
    return [x for x in started.arguments.values() if isinstance(x, torch.Tensor)]


def compiled(op, **more):
    """What a case compiles, by phase."""
    phases = record(Case("", op=op, **more))
    return {phase: [Specialisation.of(started) for started in launches] for phase, launches in phases.items()}


@pytest.mark.parametrize("op", triton_ops())
def test_an_op_stays_on_the_device_of_its_features_and_never_waits_for_it(op):
    # A fake tensor has no values, so a launch that needs a value on the host fails here.
    for case in variants(op, COCO):
        phases = record(case, device="cuda:1")
        assert ("backward" in phases) <= OPS[op].differentiable and "forward" in phases
        for started in itertools.chain(*phases.values()):
            assert all(x.device == torch.device("cuda", 1) for x in tensors(started))
            assert started.programs > 0 and len(started.grid) == 1


@pytest.mark.parametrize(
    ("op", "more", "forward", "backward"),
    [
        ("assign", {}, "similarity_forward", "similarity_backward sum_partials_kernel"),
        ("assign", {"C": 512}, "similarity_forward", "similarity_backward"),
        ("class_moments", {}, "class_moments_forward sum_rows_kernel", "similarity_backward sum_partials_kernel"),
        ("segment", {"size": (32, 32)}, "similarity_forward", ""),
        ("segment", {"size": (9, 9)}, "similarity_forward upsampled_labels", ""),
        ("local_appearance", {"C": 3}, "local_appearance_cells local_appearance_texture", ""),
        ("appearance_statistics", {"C": 5}, "appearance_statistics_sums appearance_statistics_products", ""),
        ("information_of_moments", {"C": 5}, "information_of_moments sum_rows_kernel", "information_of_moments"),
        ("refined_labels", {"C": 3, "size": (99, 99)}, "refined_labels", ""),
    ],
)
def test_the_launches_of_an_op(op, more, forward, backward):
    """One launch per phase, one more for sums over programs, or for what needs all positions before
    it can begin.
    """
    expected = {"forward": forward.split(), "backward": backward.split()}
    if OPS[op].wiring.folds:
        expected |= {"fold": ["projection_fold"], "gradient of the fold": ["projection_gradient"] if backward else []}
    names = {phase: [started.kernel.name for started in x] for phase, x in record(Case("", op=op, **more)).items()}
    assert names == {phase: found for phase, found in expected.items() if found}


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_kernel_gets_the_strides_of_the_features_and_no_copy(channels_last):
    phases = record(Case("", op="assign", B=3, C=40, h=6, w=10, channels_last=channels_last))
    for started in (phases["forward"][0], phases["backward"][0]):
        f = started.arguments["features"]
        assert tuple(started.arguments[f"stride_{x}"] for x in "bcyx") == f.stride()
        assert started.constexprs["LAYOUT"] == ("channels" if channels_last else "positions")
    df = phases["backward"][0].arguments["df"]
    assert df.stride() == f.stride() and df.dtype == f.dtype


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_appearance_gets_the_strides_of_the_images_and_no_copy(channels_last):
    case = Case("", op="local_appearance", C=3, h=8, w=8, size=(32, 32), channels_last=channels_last)
    cells, _ = record(case)["forward"]
    assert tuple(cells.arguments[f"stride_{x}"] for x in "bcyx") == cells.arguments["images"].stride()
    assert (cells.constexprs["ROWS"], cells.constexprs["ALIGN"]) == ((False, 1) if channels_last else (True, 4))


def test_equal_code_is_compiled_once():
    """Batch and image sizes, the radius of a mean and, for pixels, the number of classes do not
    matter.
    """
    forward = compiled("assign", B=64)["forward"]
    assert forward == compiled("assign", B=128, h=64)["forward"] != compiled("assign", K=14)["forward"]
    smoothed = compiled("appearance_statistics", C=5, h=64, settings={"smooth": 3})
    assert smoothed == compiled("appearance_statistics", C=5)
    refined = compiled("refined_labels", C=3)
    assert refined == compiled("refined_labels", C=3, K=200, h=7, size=(28, 128)) != compiled("refined_labels", C=4)
    assert compiled("refined_labels", C=3) != compiled("refined_labels", C=3, size=(33, 39))  # its divisor is 1


def test_auto_takes_the_triton_kernel_of_every_op_on_a_gpu(monkeypatch):
    monkeypatch.setattr("infoseg_fast.ops.dispatch._unavailable", lambda name: None)
    assert set(triton_ops()) == set(kernels.KERNELS)
    for op in triton_ops():
        assert dispatch.choose(op, "auto", "cuda", torch.float32) == "triton"


@pytest.mark.parametrize(
    ("make", "kind", "align"),
    [
        (lambda: torch.empty(2, 8, 4, 4), "positions", 16),
        (lambda: torch.empty(2, 8, 50, 50), "positions", 4),
        (lambda: torch.empty(2, 8, 3, 5), "positions", 1),
        (lambda: torch.empty(2, 24, 3, 5).to(memory_format=torch.channels_last), "channels", 8),
        (lambda: torch.empty(2, 8, 4, 8)[..., :4], "strided", 1),
        (lambda: torch.empty(2, 16, 4, 4)[:, ::2], "positions", 16),
        (lambda: torch.empty(2, 8, 4, 4).mT, "strided", 1),
        (lambda: torch.empty(2, 8, 1, 1), "positions", 1),
        (lambda: torch.empty(1, 1, 1, 1).expand(2, 8, 4, 4), "strided", 1),
    ],
)
def test_layouts(make, kind, align):
    assert tiles.layout(make()) == (kind, align)


def test_offsets_have_64_bits():
    with FakeTensorMode(), launch.recorded() as launches:
        f = torch.empty(40, 256, 512, 512, dtype=torch.float16, device="cuda")  # 2.7e9 elements
        G = torch.empty(40, 15, 256, device="cuda")
        kernels.KERNELS["local_global_similarity"].forward(f, G, None, NOTHING)
    signature = dict(Specialisation.of(launches[0]).signature)
    assert f.numel() > 2**31
    assert {signature[f"stride_{x}"] for x in "bcyx"} == {"i64"}
    assert launches[0].programs == 40 * math.ceil(512 * 512 / 128)  # on the axis that takes 2^31 - 1 programs


@pytest.mark.parametrize("dtype", DTYPES)
def test_types_of_arguments(dtype):
    launches = record(Case("", op="assign", dtype=dtype))["forward"]
    signature = dict(Specialisation.of(launches[0]).signature)
    name = {"float32": "fp32", "float64": "fp64", "bfloat16": "bf16", "float16": "fp16"}[str(dtype)[6:]]
    sums = "fp64" if dtype == torch.float64 else "fp32"
    assert signature["features"] == signature["out"] == "*" + name
    assert signature["G"] == signature["g0"] == "*" + sums
    assert signature["temperature"] == "fp64"


@pytest.mark.parametrize(("set_to", "expected"), [("highest", "tf32x3"), ("high", "tf32"), ("medium", "tf32")])
def test_float32_products_follow_the_matmul_precision_of_pytorch(set_to, expected):
    with matmul_precision(set_to):
        launches = record(Case("", op="assign"))
        half = record(Case("", op="assign", dtype=torch.bfloat16))
    for phase in ("forward", "backward"):
        assert launches[phase][0].constexprs["PRECISION"] == expected
        assert half[phase][0].constexprs["PRECISION"] == "ieee"  # one product of 16-bit numbers, summed in float32


def test_only_aligned_pointers_are_declared_aligned():
    with FakeTensorMode(), launch.recorded() as launches:
        f = torch.empty(1 + 2 * 16 * 4 * 4, device="cuda").narrow(0, 1, 512).view(2, 16, 4, 4)
        kernels.KERNELS["local_global_similarity"].forward(f, torch.empty(2, 3, 16, device="cuda"), None, NOTHING)
    found = Specialisation.of(launches[0])
    assert "features" not in found.aligned and {"G", "out"} <= set(found.aligned)


class Stub:
    """Stands for a compiled kernel; records the current device, the grid and the arguments."""

    def __init__(self, fn, current):
        self.fn, self.current, self.started = fn, current, []

    def __getitem__(self, grid):
        return lambda **arguments: self.started.append((self.current[-1], grid, arguments))


@pytest.fixture
def stub(monkeypatch):
    current = [torch.device("cuda", 0)]

    @contextlib.contextmanager
    def guard(device):
        current.append(torch.device(device))
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", guard)
    kernel = local_global_similarity.similarity_forward
    stub = Stub(kernel.function.fn, current)
    monkeypatch.setattr(local_global_similarity, "similarity_forward", launch.Kernel(stub, True, True, kernel.cost))
    return stub


def test_a_kernel_starts_on_the_device_of_its_tensors_which_need_not_be_the_current_one(stub):
    with FakeTensorMode():
        f, G = torch.empty(2, 64, 40, 40, device="cuda:1"), torch.empty(2, 3, 64, device="cuda:1")
        kernels.KERNELS["assign"].forward(f, G, None, 1.5, NOTHING)
    ((device, grid, arguments),) = stub.started
    # Triton launches on the current stream of the current device, and the guard sets both.
    assert device == torch.device("cuda", 1) and stub.current == [torch.device("cuda", 0)]
    assert grid == (2 * math.ceil(1600 / 128),)
    assert arguments["temperature"] == 1.5 and arguments["num_warps"] == 4 and arguments["enable_fp_fusion"] is True
    assert set(arguments) >= set(local_global_similarity.similarity_forward.parameters)


def test_an_empty_grid_starts_nothing(stub):
    with FakeTensorMode():
        f, G = torch.empty(0, 64, 4, 4, device="cuda"), torch.empty(0, 3, 64, device="cuda")
        kernels.KERNELS["assign"].forward(f, G, None, 1.0, NOTHING)
    assert stub.started == []


def test_the_ops_trace_on_fake_cuda_tensors(monkeypatch):
    monkeypatch.setattr("infoseg_fast.ops.dispatch._unsupported", lambda op, name, *kind: None)
    with FakeTensorMode():
        f, H, W, b = (torch.empty(s, device="cuda") for s in ((2, 8, 5, 6), (2, 3, 7), (7, 8), (7,)))
        target = torch.empty(2, 20, 20, dtype=torch.uint8, device="cuda")
        V = isf.assign(f, H, W, b)
        assert V.shape == (2, 3, 5, 6) and V.is_cuda
        moments = isf.class_moments(f, H, W, b, statistics=torch.empty(2, 4, 5, 6, device="cuda"))
        assert moments.shape == (3, 4) and moments.is_cuda
        assert isf.segment(f, H, W, b, size=(20, 20)).shape == (2, 20, 20)
        counts, outside = isf.segment_and_count(f, H, target, W, b, num_classes=4, return_outside=True)
        assert counts.shape == (3, 4) and counts.dtype == torch.int64 and outside.shape == () and counts.is_cuda


def test_the_reason_why_no_kernel_can_run(monkeypatch):
    assert "CUDA device" in kernels.unavailable() or torch.cuda.is_available()
    kernel = kernels.KERNELS["assign"]
    assert "not on cpu" in kernel.unsupported("cpu", torch.float32)
    assert kernel.unsupported("cuda", torch.float32) is None
    kernels.unavailable.cache_clear()
    try:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
        assert "compute capability 7.5" in kernels.unavailable()
        kernels.unavailable.cache_clear()
        monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
        assert "triton is not installed" in kernels.unavailable()
    finally:
        kernels.unavailable.cache_clear()


def test_every_shape_finds_a_configuration_and_every_row_has_a_reason():
    assert kernels.KERNELS  # importing them adds their rows
    words = (
        ("tf32x3", "tf32", "float16", "ieee"),
        ("complete", "kept", "more"),
        ("same_position", "reassigned", "infonce"),
    )
    variants = [" ".join(chosen) for chosen in itertools.product(*words)]
    for name in {row.kernel for row in configs.TABLE}:
        loss = name.startswith("loss_")
        dtypes = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
        for variant in variants if loss else dtypes:
            one_block = loss and "more" not in variant  # two images of up to 32 classes
            for K in (2, 16, 17, 32) if one_block else (2, 16, 17, 32, 33, 64, 65, 256):
                found = configs.rows(name, configs.Key(4, 128, K, variant))
                assert all(config.num_warps in (1, 4, 8) for config in found)
    assert all(len(row.reason) > 10 for row in configs.TABLE)


@pytest.fixture
def tuned(monkeypatch, tmp_path):
    """The list of timed configurations, with a fake timer for autotuning."""
    timed = []

    def time(body, config, repeats=9):
        timed.append(config)
        body(config)
        return abs(config.num_stages - 3) + 1.0

    monkeypatch.setenv("INFOSEG_AUTOTUNE", "1")
    monkeypatch.setenv("INFOSEG_AUTOTUNE_CACHE", str(tmp_path / "deep" / "cache.json"))
    monkeypatch.setattr(configs, "_time", time)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    configs._cache.cache_clear()
    yield timed
    configs._cache.cache_clear()


KEY = configs.Key(2, 128, 15, "bfloat16")


def test_autotuning_times_once_and_keeps_the_fastest(tuned, tmp_path):
    device = torch.device("cuda", 0)
    found = configs.run("similarity_forward", KEY, device, lambda config: config)
    assert found.num_stages == 3 and tuned == configs.rows("similarity_forward", KEY)
    number = len(tuned)
    configs.run("similarity_forward", KEY, device, lambda config: config)
    configs._cache.cache_clear()  # as in another process
    assert configs.run("similarity_forward", KEY, device, lambda config: config) == found
    assert len(tuned) == number and (tmp_path / "deep" / "cache.json").exists()


def test_nothing_is_timed_by_default_on_a_cpu_or_while_a_graph_is_captured(tuned, monkeypatch):
    first = configs.rows("similarity_forward", KEY)[0]
    assert configs.run("similarity_forward", KEY, torch.device("cpu"), lambda config: config) == first
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert configs.run("similarity_forward", KEY, torch.device("cuda", 0), lambda config: config) == first
    monkeypatch.delenv("INFOSEG_AUTOTUNE")
    assert configs.run("similarity_forward", KEY, torch.device("cuda", 0), lambda config: config) == first
    assert tuned == []
