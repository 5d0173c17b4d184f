"""How the Triton kernels are started, on fake CUDA tensors and with the driver's part replaced: no GPU is needed."""

import contextlib
import itertools
import math

import pytest
import torch

pytest.importorskip("triton")

from torch._subclasses.fake_tensor import FakeTensorMode

import infoseg_fast as isf
from infoseg_fast import kernels
from infoseg_fast.bench import launch_cases as cases
from infoseg_fast.bench.specialisation import Specialisation
from infoseg_fast.kernels import configs, launch, similarity, tiles
from infoseg_fast.ops import dispatch
from infoseg_fast.ops.protocol import Needs
from infoseg_fast.recipe.refinement import Colours, Refinement, refined_labels

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
UP = {"size": (128, 128), "num_classes": 27}
NO_GRADIENTS = Needs(False, False, False)
ONE_OF_EACH = [
    cases.Case("local_global_similarity", "similarity", device="cuda:1"),
    cases.Case("assign", "assign", device="cuda:1", K=200),
    cases.Case("class_moments", "class moments", device="cuda:1"),
    cases.Case("segment", "segment", device="cuda:1"),
    cases.Case("segment_and_count", "segment and count", device="cuda:1", settings=UP),
    cases.Case("mutual_information_loss", "loss", device="cuda:1"),
    cases.Case("mutual_information_loss", "all partners", device="cuda:1", settings={"num_negatives": 63}),
    cases.Case("local_appearance", "appearance", device="cuda:1", C=3, settings={"size": (8, 8)}),
    cases.Case("appearance_statistics", "statistics", device="cuda:1", C=5, masked=True, settings={"smooth": 1}),
    cases.Case("information_of_moments", "information", device="cuda:1", C=5),
    cases.Case("refined_labels", "refined labels", device="cuda:1", C=3, settings={"size": (128, 128)}),
    cases.Case("refined_probs", "refined probs", device="cuda:1", C=3, settings={"size": (128, 128)}),
]


def tensors(started):
    return [x for x in started.arguments.values() if isinstance(x, torch.Tensor)]


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda case: case.op)
def test_an_op_stays_on_the_device_of_its_features_and_never_waits_for_it(case):
    # A fake tensor has no values, so a launch that needed one on the host would fail here.
    for launches in cases.record(case).values():
        assert launches
        for started in launches:
            assert all(x.device == torch.device("cuda", 1) for x in tensors(started))
            assert started.programs > 0 and len(started.grid) == 1


def test_one_launch_a_phase_and_one_more_for_sums_over_programs():
    def names(case):
        return {phase: [x.kernel.name for x in launches] for phase, launches in cases.record(case).items()}

    assert names(cases.Case("assign", "")) == {
        "forward": ["similarity_forward"],
        "backward": ["similarity_backward", "sum_partials_kernel"],
    }
    assert names(cases.Case("assign", "", C=512))["backward"] == ["similarity_backward"]
    assert names(cases.Case("class_moments", "")) == {
        "forward": ["moments_forward", "sum_rows_kernel"],
        "backward": ["similarity_backward", "sum_partials_kernel"],
    }
    assert names(cases.Case("segment", ""))["forward"] == ["similarity_forward"]
    assert names(cases.Case("segment", "", settings={"size": (9, 9)}))["forward"] == [
        "similarity_forward",
        "upsampled_labels",
    ]
    # Of the appearance what needs all cells around, or all positions, before it can begin is a launch of its own.
    assert names(cases.Case("local_appearance", "", settings={"size": (8, 8)}))["forward"] == [
        "appearance_cells",
        "appearance_texture",
    ]
    assert names(cases.Case("appearance_statistics", "", C=5, settings={"smooth": 3}))["forward"] == [
        "appearance_sums",
        "appearance_products",
    ]
    assert names(cases.Case("information_of_moments", "", C=5))["forward"] == ["class_information", "sum_rows_kernel"]
    assert names(cases.Case("refined_labels", "", C=3, settings={"size": (99, 99)}))["forward"] == ["refined_labels"]
    assert names(cases.Case("refined_probs", "", C=3, settings={"size": (64, 96)}))["forward"] == ["refined_probs"]


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_kernel_gets_the_strides_of_the_features_and_no_copy(channels_last):
    case = cases.Case("assign", "", B=3, C=40, h=6, w=10, channels_last=channels_last)
    launches = cases.record(case)
    for started in (launches["forward"][0], launches["backward"][0]):
        f = started.arguments["features"]
        assert tuple(started.arguments[f"stride_{x}"] for x in "bcyx") == f.stride()
        assert started.constexprs["LAYOUT"] == ("channels" if channels_last else "positions")
    df = launches["backward"][0].arguments["df"]
    assert df.stride() == f.stride() and df.dtype == f.dtype


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_appearance_gets_the_strides_of_the_images_and_no_copy(channels_last):
    case = cases.Case("local_appearance", "", C=3, channels_last=channels_last, settings={"size": (8, 8)})
    cells, _ = cases.record(case)["forward"]
    assert tuple(cells.arguments[f"stride_{x}"] for x in "bcyx") == cells.arguments["images"].stride()
    assert (cells.constexprs["ROWS"], cells.constexprs["ALIGN"]) == ((False, 1) if channels_last else (True, 4))


def test_a_radius_and_the_size_of_a_map_compile_nothing_anew():
    def compiled(**more):
        case = cases.Case("appearance_statistics", "", C=5, **more)
        return [Specialisation.of(started) for started in cases.record(case)["forward"]]

    assert compiled(h=64, settings={"smooth": 3}) == compiled(settings={"smooth": 0})


def test_the_number_of_classes_and_the_size_of_an_image_compile_no_refinement_anew():
    def compiled(op, **more):
        (started,) = cases.record(cases.Case(op, "", C=3, **more))["forward"]
        return Specialisation.of(started)

    usual = {op: compiled(op, settings={"size": (128, 128)}) for op in ("refined_labels", "refined_probs")}
    for op, expected in usual.items():
        assert compiled(op, K=200, h=7, settings={"size": (28, 128)}) == expected
    assert compiled("refined_labels", settings={"size": (33, 39)}) != usual["refined_labels"]  # nothing of it divides
    assert compiled("refined_probs", settings={"size": (64, 64)}) != usual["refined_probs"]  # 4 pixels of a position


def test_every_part_of_the_default_recipe_has_a_kernel_on_a_gpu(monkeypatch):
    """What training and its labels ask for is found in float32 by "auto": no part falls back to PyTorch's kernels."""
    monkeypatch.setattr("infoseg_fast.ops.dispatch._unavailable", lambda name: None)
    trained = "mutual_information_loss", "local_appearance", "appearance_statistics", "class_moments"
    labelled = "assign", "segment", "segment_and_count", "refined_labels", "refined_probs"
    for op in (*trained, "information_of_moments", *labelled):
        assert dispatch.choose(op, "auto", "cuda", torch.float32) == "triton"
        assert op in kernels.KERNELS


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


def test_offsets_do_not_fit_32_bits_and_need_not():
    with FakeTensorMode(), launch.recorded() as launches:
        f = torch.empty(40, 256, 512, 512, dtype=torch.float16, device="cuda")  # 2.7e9 elements
        G = torch.empty(40, 15, 256, device="cuda")
        kernels.KERNELS["local_global_similarity"].forward(f, G, None, NO_GRADIENTS)
    signature = dict(Specialisation.of(launches[0]).signature)
    assert f.numel() > 2**31
    assert {signature[f"stride_{x}"] for x in "bcyx"} == {"i64"}
    assert launches[0].programs == 40 * math.ceil(512 * 512 / 128)  # on the axis that takes 2^31 - 1 programs


@pytest.mark.parametrize("dtype", DTYPES)
def test_types_of_arguments(dtype):
    launches = cases.record(cases.Case("assign", "", dtype=dtype))["forward"]
    signature = dict(Specialisation.of(launches[0]).signature)
    name = {"float32": "fp32", "float64": "fp64", "bfloat16": "bf16", "float16": "fp16"}[str(dtype)[6:]]
    sums = "fp64" if dtype == torch.float64 else "fp32"
    assert signature["features"] == signature["out"] == "*" + name
    assert signature["G"] == signature["g0"] == "*" + sums
    assert signature["temperature"] == "fp64"


@pytest.mark.parametrize(("set_to", "expected"), [("highest", "tf32x3"), ("high", "tf32"), ("medium", "tf32")])
def test_float32_products_are_as_precise_as_pytorch_is_told(set_to, expected):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(set_to)
    try:
        launches = cases.record(cases.Case("assign", ""))
        half = cases.record(cases.Case("assign", "", dtype=torch.bfloat16))
    finally:
        torch.set_float32_matmul_precision(before)
    for phase in ("forward", "backward"):
        assert launches[phase][0].constexprs["PRECISION"] == expected
        assert half[phase][0].constexprs["PRECISION"] == "ieee"  # one product of 16-bit numbers, summed in float32


def test_a_pointer_that_is_not_aligned_is_not_said_to_be():
    with FakeTensorMode(), launch.recorded() as launches:
        f = torch.empty(1 + 2 * 16 * 4 * 4, device="cuda").narrow(0, 1, 512).view(2, 16, 4, 4)
        kernels.KERNELS["local_global_similarity"].forward(f, torch.empty(2, 3, 16, device="cuda"), None, NO_GRADIENTS)
    found = Specialisation.of(launches[0])
    assert "features" not in found.aligned and {"G", "out"} <= set(found.aligned)


class Stub:
    """In the place of a compiled kernel: notes the current device, the grid and the arguments."""

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
    kernel = similarity.similarity_forward
    stub = Stub(kernel.function.fn, current)
    monkeypatch.setattr(similarity, "similarity_forward", launch.Kernel(stub, True, True, kernel.cost))
    return stub


def test_a_kernel_starts_on_the_device_of_its_tensors_which_need_not_be_the_current_one(stub):
    with FakeTensorMode():
        f, G = torch.empty(2, 64, 40, 40, device="cuda:1"), torch.empty(2, 3, 64, device="cuda:1")
        kernels.KERNELS["assign"].forward(f, G, None, 1.5, NO_GRADIENTS)
    ((device, grid, arguments),) = stub.started
    # Triton starts on the current stream of the current device, so the guard decides both.
    assert device == torch.device("cuda", 1) and stub.current == [torch.device("cuda", 0)]
    assert grid == (2 * math.ceil(1600 / 128),)
    assert arguments["temperature"] == 1.5 and arguments["num_warps"] == 4 and arguments["enable_fp_fusion"] is True
    assert set(arguments) >= set(similarity.similarity_forward.parameters)


def test_an_empty_grid_starts_nothing(stub):
    with FakeTensorMode():
        f, G = torch.empty(0, 64, 4, 4, device="cuda"), torch.empty(0, 3, 64, device="cuda")
        kernels.KERNELS["assign"].forward(f, G, None, 1.0, NO_GRADIENTS)
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


def test_labels_at_the_pixels_are_one_launch_and_one_a_pass_of_what_lies_on_the_device(monkeypatch):
    monkeypatch.setattr("infoseg_fast.ops.dispatch._unsupported", lambda op, name, *kind: None)
    monkeypatch.setattr("infoseg_fast.ops.dispatch.direct", lambda *tensors: True)
    with FakeTensorMode(), launch.recorded() as launches:
        probs, y, s, residual, log_scale = (
            torch.empty(shape, device="cuda") for shape in ((2, 4, 5, 6), (2, 3, 20, 24), (2, 3, 5, 6), (4, 3, 7), (4,))
        )
        labels = refined_labels(probs, Colours(y, s), Refinement(residual, log_scale, 0, 2), (20, 24))
    assert [started.kernel.name for started in launches] == ["refined_probs", "refined_probs", "refined_labels"]
    assert labels.shape == (2, 20, 24) and labels.dtype == torch.uint8 and labels is launches[-1].arguments["labels"]
    for started in launches:
        assert all(started.arguments[name] is x for name, x in {"colour": y, "around": s, "residual": residual}.items())


def test_why_no_kernel_can_run_is_told(monkeypatch):
    assert "CUDA device" in kernels.unavailable() or torch.cuda.is_available()
    assert "not on cpu" in kernels.unsupported("cpu", torch.float32)
    assert kernels.unsupported("cuda", torch.float32) is None
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
    assert kernels.KERNELS  # all of them have added their rows
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
            one_block = loss and "more" not in variant  # of the loss, which holds two images of up to 32 classes
            for K in (2, 16, 17, 32) if one_block else (2, 16, 17, 32, 33, 64, 65, 256):
                found = configs.rows(name, configs.Key(4, 128, K, variant))
                assert all(config.num_warps in (1, 4, 8) for config in found)
    assert all(len(row.reason) > 10 for row in configs.TABLE)


@pytest.fixture
def tuned(monkeypatch, tmp_path):
    """Autotuning with a clock of our own; the list of configurations timed."""
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


def test_autotuning_is_asked_for_times_once_and_keeps_the_fastest(tuned, tmp_path):
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
