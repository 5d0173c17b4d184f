"""The cost model of every launch, against the loads, stores and products that the interpreter
executes.
"""

import numpy as np
import pytest
import torch
from triton.runtime.interpreter import InterpreterBuilder

from infoseg_fast.bench import launches, roofline
from infoseg_fast.kernels.launch import Launch
from infoseg_fast.ops.record import Case


def loss(negatives, number, **more):
    estimator = "infonce" if negatives == "infonce" else "jsd"
    how = {"estimator": estimator, "num_negatives": number, "balance": float(number > 1)}
    how |= {} if estimator == "infonce" else {"negatives": negatives}
    sizes = {"B": 5, "C": 70, "K": 5, "h": 6, "w": 11}
    return Case(f"{negatives} {number}", op="mutual_information_loss", settings=how, **sizes | more)


def case(op, name, B, C, K, h, w, **more):
    return Case(name, op=op, B=B, C=C, K=K, h=h, w=w, **more)


THREE, HUNDRED = {"num_classes": 3}, {"num_classes": 100, "return_labels": True}
# Ragged tiles on every axis, every way through the kernels, and every layout.
CASES = [
    case("local_global_similarity", "several tiles", 3, 70, 5, 11, 13),
    case("assign", "channels last", 2, 70, 5, 11, 13, channels_last=True),
    case("assign", "chunks of classes", 2, 70, 40, 7, 11),
    case("assign", "half", 2, 70, 70, 7, 11, dtype=torch.float16),
    case("assign", "no bias", 2, 3, 3, 5, 5, bias=False),
    case("local_global_similarity", "chunks of classes", 1, 9, 40, 7, 11),
    case("class_moments", "moments", 3, 70, 5, 11, 13),
    case("class_moments", "no gradient", 2, 9, 5, 5, 7, bias=False, gradient=False),
    case("class_moments", "many statistics", 2, 70, 5, 7, 11, S=33),
    case("class_moments", "chunks of classes", 2, 70, 70, 7, 11, dtype=torch.float16),
    case("segment", "segment", 2, 20, 5, 11, 13, size=(11, 13)),
    case("segment", "upsampled", 2, 20, 5, 5, 7, size=(40, 30)),
    case("segment_and_count", "counted", 2, 9, 5, 5, 7, size=(10, 13), settings=THREE),
    case("segment_and_count", "and labels", 2, 9, 40, 5, 7, size=(40, 30), settings=HUNDRED),
    case("local_appearance", "two tiles", 2, 3, 0, 12, 11, size=(48, 44)),
    case("local_appearance", "channels last", 1, 4, 0, 1, 2, size=(7, 80), channels_last=True),
    case("appearance_statistics", "two tiles", 2, 3, 0, 15, 20, masked=True, settings={"smooth": 1}),
    case("appearance_statistics", "two blocks", 1, 9, 0, 3, 2, dtype=torch.float64, settings={"smooth": 2}),
    case("information_of_moments", "a matrix of 5 in 8", 1, 4, 4, 1, 1),
    case("information_of_moments", "no gradient", 1, 1, 2, 1, 1, gradient=False),
    case("refined_labels", "two tiles", 2, 3, 3, 6, 5, size=(24, 25)),
    case("refined_labels", "float64", 1, 5, 2, 2, 3, dtype=torch.float64, size=(7, 9)),
    loss("same_position", 1, masked=True),
    loss("same_position", 1, C=20, bias=False),
    loss("same_position", 1, B=2, C=300, K=2, h=4, w=9),  # its scores are kept
    loss("same_position", 2, masked=True),
    loss("reassigned", 1, B=2, C=300, K=2, h=4, w=9),
    loss("reassigned", 3, C=20, dtype=torch.bfloat16),
    loss("infonce", 4, masked=True),
    loss("infonce", 4, C=20, K=3, dtype=torch.bfloat16, bias=False),
]


class Counted:
    """What the interpreter executed."""

    def __init__(self, monkeypatch):
        self.loads = self.stores = self.operations = self.atomics = 0
        self.addresses = []
        wrapped = {
            "create_masked_load": self.load,
            "create_masked_store": self.store,
            "create_atomic_rmw": self.atomic,
            "create_dot": self.dot,
        }
        for name, count in wrapped.items():
            monkeypatch.setattr(InterpreterBuilder, name, self.counting(getattr(InterpreterBuilder, name), count))

    @staticmethod
    def counting(original, count):
        def method(builder, *arguments):
            count(*arguments)
            return original(builder, *arguments)

        return method

    def load(self, ptrs, mask, *_):
        size = ptrs.get_element_ty().primitive_bitwidth // 8
        self.loads += int(mask.data.sum()) * size
        self.addresses.append((np.broadcast_to(ptrs.data, mask.data.shape)[mask.data], size))

    def store(self, ptrs, value, mask, *_):
        self.stores += int(mask.data.sum()) * (ptrs.get_element_ty().primitive_bitwidth // 8)

    def atomic(self, op, ptr, val, mask, *_):
        self.atomics += int(mask.data.sum())

    def dot(self, a, b, d, input_precision, *_):
        (m, k), (_, n) = a.data.shape, b.data.shape
        self.operations += 2 * m * n * k * (3 if "TF32x3" in str(input_precision) else 1)

    @property
    def distinct_loads(self):
        by_size = {}
        for addresses, size in self.addresses:
            by_size.setdefault(size, []).append(addresses)
        return sum(size * len(np.unique(np.concatenate(all_of))) for size, all_of in by_size.items())


def run(started: Launch) -> None:
    for x in started.arguments.values():
        if isinstance(x, torch.Tensor):
            x.zero_()  # it is uninitialised
    started.kernel.function[started.grid](**started.arguments, **started.constexprs, **started.config.options())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}, {case.name}")
def test_every_launch_moves_and_computes_what_the_model_says(case, monkeypatch):
    for phase, recorded in launches.record(case, fake=False).items():
        for started in recorded:
            counted = Counted(monkeypatch)
            run(started)
            cost = started.kernel.cost(started)
            where = f"{phase} {started.kernel.name}"
            assert counted.loads == cost.loads, where
            assert counted.stores == cost.stores, where
            assert counted.distinct_loads == cost.distinct_loads, where
            assert counted.operations == cost.operations, where
            assert counted.atomics <= cost.atomics, where
            monkeypatch.undo()


def test_a_model_that_is_wrong_is_found(monkeypatch):
    (started,) = launches.record(CASES[0], fake=False)["forward"]
    counted = Counted(monkeypatch)
    run(started)
    started.arguments["g0"] = None  # now the model omits the bias, which was read
    assert started.kernel.cost(started).loads < counted.loads


def test_bounds_are_the_larger_of_bytes_and_operations():
    chip = roofline.CHIPS[0]
    assert roofline.bound_ms(chip, torch.float32, int(2.039e9), 0) == pytest.approx(1.0)
    assert roofline.bound_ms(chip, torch.float32, 0, int(156e9)) == pytest.approx(1.0)
    assert roofline.bound_ms(chip, torch.bfloat16, int(2.039e9), int(3 * 312e9)) == pytest.approx(3.0)
