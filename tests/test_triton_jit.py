"""Launches through Triton's own JIT, with a driver that launches nothing, and the plans that repeat
them.
"""

import importlib
import itertools
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from infoseg_fast.bench import cuda_values
from infoseg_fast.bench.launches import record
from infoseg_fast.bench.mock_driver import mocked
from infoseg_fast.bench.providers import arguments
from infoseg_fast.bench.specialisation import Specialisation
from infoseg_fast.kernels import plans
from infoseg_fast.ops.record import Case

CPU = torch.device("cpu")
SMALL = {"B": 3, "C": 8, "D": 5, "K": 3, "h": 4, "w": 8, "size": (16, 32)}
CASES = [case for op in cuda_values.triton_ops() for case in cuda_values.variants(op, SMALL)]
TYPES = {"u1": "i1"}  # bool tensors: ahead of time they are compiled as i1, which is the same code


@pytest.fixture
def driver():
    with mocked(compiles=False) as started:
        yield started


def ran(case, started, tensors=None):
    """The launches of a call of the op, with its gradients."""
    started.clear()
    given, keywords = arguments(case, CPU)
    cuda_values.triton(case, given if tensors is None else tensors, keywords)
    return list(started)


def loss_forward(*arguments):
    """The launch of `ran` that reads the features."""
    return next(launch for launch in ran(*arguments) if launch.name == "loss_forward")


def compiled(launch):
    """What the JIT would compile, in the words of `Specialisation`."""
    source = launch.source
    names = source.fn.arg_names
    kinds = {name: TYPES.get(kind.strip("*"), kind.strip("*")) for name, kind in source.signature.items()}
    pointers = {name for name, kind in source.signature.items() if kind.startswith("*")}
    constants = {names[i]: value for (i, *_), value in source.constants.items()}
    aligned = {names[i] for (i, *_), found in source.attrs.items() if ["tt.divisibility", 16] in found}
    return launch.name, kinds, pointers, constants, aligned


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op} {case.settings} {case.masked}")
def test_the_jit_compiles_what_is_compiled_ahead_of_time(case, driver):
    found = list(map(compiled, ran(case, driver)))
    expected = []
    for launch in itertools.chain(*record(case).values()):
        ahead = Specialisation.of(launch)
        kinds = {name: kind.strip("*") for name, kind in ahead.signature}
        pointers = {name for name, kind in ahead.signature if kind.startswith("*")}
        expected.append((ahead.name, kinds, pointers, dict(ahead.constexprs), set(ahead.aligned)))
    assert found == expected and found


def values(launch):
    """Grid and arguments; of a pointer, whether there is one."""
    signature = launch.source.signature.values()
    pairs = zip(launch.values, signature, strict=True)
    return launch.name, launch.grid, [x is not None if kind.startswith("*") else x for x, kind in pairs]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op} {case.settings} {case.masked}")
def test_a_plan_repeats_the_launches(case, driver, monkeypatch):
    monkeypatch.setattr(plans, "recording", lambda: True)  # every call runs as it is
    expected = list(map(values, ran(case, driver)))
    monkeypatch.undo()
    first, second = ran(case, driver), ran(case, driver)
    assert list(map(values, first)) == list(map(values, second)) == expected
    addresses = [x for launch in second for x in launch.values if isinstance(x, int) and x > 1 << 32]
    assert addresses and not any(isinstance(x, torch.Tensor) for launch in second for x in launch.values)


def test_kinds_of_arguments_that_compile_otherwise_have_plans_of_their_own(driver):
    case = next(case for case in CASES if case.op == "mutual_information_loss")
    (f, *rest), _ = arguments(case, CPU)
    storage = torch.zeros(f.numel() + 2)
    shifted = storage[1:-1].view(f.shape)  # at an address that 16 does not divide
    kinds = {"aligned": f, "shifted": shifted, "channels last": f.to(memory_format=torch.channels_last)}
    launches = {name: [loss_forward(case, driver, [x, *rest]) for _ in range(2)] for name, x in kinds.items()}
    for name, (first, second) in launches.items():
        assert compiled(first) == compiled(second) and isinstance(second.values[0], int), name
        assert ("features" in compiled(first)[4]) == (name != "shifted")
    assert compiled(launches["channels last"][0])[3]["LAYOUT"] == "channels"
    again = loss_forward(case, driver, [f, *rest])
    assert compiled(again) == compiled(launches["aligned"][0])


def test_the_matmul_precision_and_the_settings_are_part_of_a_plan(driver):
    case = Case("", op="mutual_information_loss", **SMALL)
    for precision, expected in (("highest", "tf32x3"), ("high", "tf32"), ("highest", "tf32x3")):
        with cuda_values.matmul_precision(precision):
            for _ in range(2):
                assert {compiled(x)[3].get("PRECISION") for x in ran(case, driver)} == {expected, None}
    for tau in (1.0, 2.0, 1.0):
        launch = loss_forward(Case("", op="mutual_information_loss", settings={"temperature": tau}, **SMALL), driver)
        assert launch.values[launch.source.fn.arg_names.index("tau")] == tau


def test_a_plan_cannot_repeat_what_is_no_allocation():
    @plans.planned
    def wrong(x):
        return (x.new_empty(3).zero_(),)

    @plans.planned
    def part(x):
        return (x.new_empty(3)[1:],)

    with pytest.raises(AssertionError, match="aten.zero_"):
        wrong(torch.zeros(2))
    with pytest.raises(AssertionError, match="whole tensors"):
        part(torch.zeros(2))


def test_plans_are_bounded(monkeypatch):
    monkeypatch.setattr(plans, "MAX_PLANS", 2)
    found = []

    @plans.planned
    def made(x, n):
        found.append(n)
        return (x.new_empty(n),)

    for n in (1, 2, 1, 3, 1):
        (out,) = made(torch.zeros(1), n)
        assert out.shape == (n,)
    assert found == [1, 2, 3, 1]


# Launches, and allocations by torch.empty, empty_like and empty_strided, of forward and backward pass.
BUDGET = {
    "an autograd.Function that does nothing": (0, 0),
    "one with four gradients": (0, 4),
    "one with the projection by PyTorch": (0, 1),
    "loss, 1 negative": (6, 7),
    "loss, infonce, all negatives": (7, 7),
    "appearance term": (13, 7),
}


def test_launches_and_allocations_of_a_step(driver, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    host_time = importlib.import_module("host_time")
    for name, call in host_time.calls().items():
        call()
        driver.clear()
        allocations = host_time.allocations(call)
        assert len(driver) <= BUDGET[name][0] and allocations <= BUDGET[name][1], name


@pytest.mark.long
def test_the_jit_compiles_and_a_plan_launches_what_it_compiled():
    with mocked() as started:
        for op in ("mutual_information_loss", "local_appearance"):
            first, second = (ran(cuda_values.variants(op, SMALL)[0], started) for _ in range(2))
            assert [launch.metadata.hash for launch in first] == [launch.metadata.hash for launch in second]
            assert all(0 <= launch.metadata.shared <= 227 * 1024 for launch in first) and first
