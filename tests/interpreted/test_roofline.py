"""The cost model of every launch, against the loads, stores and products that the interpreter carries out."""

import numpy as np
import pytest
import torch
from triton.runtime.interpreter import InterpreterBuilder

from infoseg_fast.bench import launch_cases as cases
from infoseg_fast.bench import roofline
from infoseg_fast.kernels.launch import Launch

UP = {"size": (10, 13)}


def loss(negatives, number, **more):
    estimator = "infonce" if negatives == "infonce" else "jsd"
    how = {"estimator": estimator, "num_negatives": number, "balance": float(number > 1)}
    how |= {} if estimator == "infonce" else {"negatives": negatives}
    sizes = {"B": 5, "C": 70, "K": 5, "h": 6, "w": 11}
    return cases.Case("mutual_information_loss", f"{negatives} {number}", settings=how, **sizes | more)


# Ragged tiles on every axis, every way through the kernels, and every layout.
CASES = [
    cases.Case("local_global_similarity", "several tiles", B=3, C=70, K=5, h=11, w=13),
    cases.Case("assign", "channels last", B=2, C=70, K=5, h=11, w=13, channels_last=True),
    cases.Case("assign", "chunks of classes", B=2, C=70, K=40, h=7, w=11),
    cases.Case("assign", "half", B=2, C=70, K=70, h=7, w=11, dtype=torch.float16),
    cases.Case("assign", "no bias", B=2, C=3, K=3, h=5, w=5, bias=False),
    cases.Case("local_global_similarity", "chunks of classes", B=1, C=9, K=40, h=7, w=11),
    cases.Case("class_moments", "moments", B=3, C=70, K=5, h=11, w=13),
    cases.Case("class_moments", "not kept", B=2, C=9, K=5, h=5, w=7, bias=False, settings={"keep": False}),
    cases.Case("class_moments", "many statistics", B=2, C=70, K=5, h=7, w=11, settings={"statistics": 33}),
    cases.Case("class_moments", "chunks of classes", B=2, C=70, K=70, h=7, w=11, dtype=torch.float16),
    cases.Case("segment", "segment", B=2, C=20, K=5, h=11, w=13),
    cases.Case("segment", "upsampled", B=2, C=20, K=5, h=5, w=7, settings={"size": (40, 30)}),
    cases.Case("segment_and_count", "counted", B=2, C=9, K=5, h=5, w=7, settings=UP | {"num_classes": 3}),
    cases.Case(
        "segment_and_count", "and labels", B=2, C=9, K=40, h=5, w=7,
        settings={"size": (40, 30), "num_classes": 100, "labels_wanted": True},
    ),
    cases.Case("local_appearance", "two tiles", B=2, C=3, h=48, w=44, settings={"size": (12, 11)}),
    cases.Case("local_appearance", "channels last", B=1, C=4, h=7, w=80, channels_last=True, settings={"size": (1, 2)}),
    cases.Case("appearance_statistics", "two tiles", B=2, C=3, h=15, w=20, masked=True, settings={"smooth": 1}),
    cases.Case("appearance_statistics", "two blocks", B=1, C=9, h=3, w=2, dtype=torch.float64, settings={"smooth": 2}),
    cases.Case("information_of_moments", "a matrix of 5 in 8", K=4, C=4),
    cases.Case("information_of_moments", "no gradient", K=2, C=1, settings={"gradient_wanted": False}),
    cases.Case("refined_labels", "two tiles", B=2, C=3, K=3, h=6, w=5, settings={"size": (24, 25)}),
    cases.Case("refined_labels", "float64", B=1, C=5, K=2, h=2, w=3, dtype=torch.float64, settings={"size": (7, 9)}),
    cases.Case("refined_probs", "two tiles", B=2, C=3, K=3, h=8, w=5, settings={"size": (32, 20)}),
    cases.Case("refined_probs", "float64", B=1, C=5, K=2, h=2, w=3, dtype=torch.float64, settings={"size": (6, 15)}),
    loss("same_position", 1, masked=True),
    loss("same_position", 1, C=20, bias=False),
    loss("same_position", 1, B=2, C=300, K=2, h=4, w=9),  # its scores are kept
    loss("same_position", 2, masked=True),
    loss("reassigned", 1, B=2, C=300, K=2, h=4, w=9),
    loss("reassigned", 3, C=20, dtype=torch.bfloat16),
    loss("infonce", 4, masked=True),
    loss("infonce", 4, C=20, K=3, dtype=torch.bfloat16, bias=False),
]  # fmt: skip


class Counted:
    """What the interpreter did."""

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
            x.zero_()  # memory that nothing has written
    started.kernel.function[started.grid](**started.arguments, **started.constexprs, **started.config.options())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}, {case.name}")
def test_every_launch_moves_and_computes_what_the_model_says(case, monkeypatch):
    for phase, launches in cases.record(case, fake=False).items():
        for started in launches:
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
    (started,) = cases.record(CASES[0], fake=False)["forward"]
    counted = Counted(monkeypatch)
    run(started)
    started.arguments["g0"] = None  # now the model leaves out the bias, which was read
    assert started.kernel.cost(started).loads < counted.loads


def test_bounds_are_the_larger_of_bytes_and_operations():
    chip = roofline.CHIPS[0]
    assert roofline.bound_ms(chip, torch.float32, int(2.039e9), 0) == pytest.approx(1.0)
    assert roofline.bound_ms(chip, torch.float32, 0, int(156e9)) == pytest.approx(1.0)
    assert roofline.bound_ms(chip, torch.bfloat16, int(2.039e9), int(3 * 312e9)) == pytest.approx(3.0)
