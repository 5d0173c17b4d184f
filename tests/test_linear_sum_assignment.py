"""`linear_sum_assignment` on every CPU backend: scipy's answers, errors, proofs of optimality."""

import itertools
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import torch
from conftest import needs_extension, torch_threads
from hard_costs import assert_optimal, hard_costs, total
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import infoseg_fast as isf
from infoseg_fast import extension
from infoseg_fast.ops import dispatch
from infoseg_fast.ops import linear_sum_assignment as assignment


def solve_both(cost, maximize):
    """The answers of scipy and of the package, or the ValueErrors' texts."""
    answers = []
    for solver in (scipy.optimize.linear_sum_assignment, isf.linear_sum_assignment):
        try:
            answers.append(solver(cost, maximize))
        except ValueError as error:
            answers.append(str(error))
    return answers


def test_hard_matrices_cost_what_scipy_finds(instruction_set):
    for kind, cost, maximize in [*hard_costs(0, 1500, 20), *hard_costs(1, 150, 140)]:
        expected, found = solve_both(cost, maximize)
        if isinstance(expected, str):
            assert isinstance(found, str) and expected in found, (kind, cost.shape)
            continue
        assert not isinstance(found, str), (kind, cost.shape, found)
        rows, cols = found
        assert rows.dtype == cols.dtype == np.int64 and (np.diff(rows) > 0).all()
        assert len(set(cols.tolist())) == len(rows) == min(cost.shape)
        if cost.dtype.kind == "i":
            assert total(cost, *found) == total(cost, *expected), kind
        else:
            scale = np.abs(cost[expected]).astype(np.float64).sum()
            assert abs(total(cost, *found) - total(cost, *expected)) <= 1e-9 * scale, kind


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpp", marks=needs_extension)])
def test_answers_are_proven_optimal(backend):
    for _, cost, maximize in hard_costs(2, 200, 18):
        try:
            rows, cols = isf.linear_sum_assignment(cost, maximize, backend=backend)
        except ValueError:
            continue
        assert_optimal(cost, rows, cols, maximize)


FLOATS = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9),
    elements=st.floats(-1e6, 1e6, width=32),
)
INTEGERS = hnp.arrays(
    np.int64,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9),
    elements=st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3),
)


@settings(deadline=None, max_examples=60)
@given(FLOATS | INTEGERS, st.randoms(use_true_random=False), st.booleans())
def test_permuting_and_transposing_change_no_total(cost, random, maximize):
    # Integers over the whole of int64: also the solver in 128 bits.
    best = total(cost, *isf.linear_sum_assignment(cost, maximize))
    slack = 0 if cost.dtype.kind == "i" else 1e-9 * np.abs(cost).sum()
    rows, cols = list(range(cost.shape[0])), list(range(cost.shape[1]))
    random.shuffle(rows)
    random.shuffle(cols)
    for other in (cost.T, cost[rows][:, cols], cost[::-1, ::-1]):
        assert abs(total(other, *isf.linear_sum_assignment(other, maximize)) - best) <= slack


@settings(deadline=None, max_examples=60)
@given(FLOATS, st.booleans())
def test_answers_to_any_floats_are_proven_optimal(cost, maximize):
    assert_optimal(cost, *isf.linear_sum_assignment(cost, maximize), maximize)


@settings(deadline=None, max_examples=60)
@given(INTEGERS, st.lists(st.integers(-(2**20), 2**20), min_size=9, max_size=9))
def test_constants_added_to_rows_add_to_the_total(cost, constants):
    cost = cost >> 22  # room for the constants
    if cost.shape[0] > cost.shape[1]:
        cost = cost.T
    moved = cost + np.array(constants[: len(cost)])[:, None]
    best = total(cost, *isf.linear_sum_assignment(cost))
    assert total(moved, *isf.linear_sum_assignment(moved)) == best + sum(constants[: len(cost)])


def test_integers_are_exact_where_floats_are_not(instruction_set):
    # Neighbouring integers beyond 2^53 are one float64: scipy cannot distinguish the two
    # assignments.
    for big in (2**53, 2**60, 2**62):
        cost = np.array([[big + 1, big], [big, big]])
        rows, cols = isf.linear_sum_assignment(cost, maximize=True)
        assert total(cost, rows, cols) == 2 * big + 1
    extremes = np.array([[2**63 - 1, -(2**63), 0], [-(2**63), 2**63 - 1, 5], [1, 2, -(2**63)]])
    rows, cols = isf.linear_sum_assignment(extremes)
    assert total(extremes, rows, cols) == min(
        extremes[0, a] .item() + extremes[1, b].item() + extremes[2, 3 - a - b].item()
        for a in range(3) for b in range(3) if a != b
    )  # fmt: skip


LARGEST = np.finfo(np.float64).max


def test_sums_of_the_largest_floats_do_not_overflow(instruction_set):
    rng = np.random.default_rng(0)
    kinds = (
        lambda shape: rng.uniform(-1, 1, shape) * LARGEST,
        lambda shape: rng.choice([LARGEST, -LARGEST, 0, 1, LARGEST / 2], shape),
        lambda shape: np.where(rng.random(shape) < 0.3, np.inf, rng.choice([LARGEST, 1e308, -1e308, 3], shape)),
    )
    for trial in range(600):
        cost = kinds[trial % 3](rng.integers(2, 5, 2))
        turned = cost if cost.shape[0] <= cost.shape[1] else cost.T
        chosen = (
            turned[range(len(turned)), list(p)] for p in itertools.permutations(range(turned.shape[1]), len(turned))
        )
        totals = [sum(map(Fraction, one.tolist())) for one in chosen if np.isfinite(one).all()]
        for maximize in (False, True):
            given = -cost if maximize else cost
            if not totals:
                with pytest.raises(ValueError, match="infeasible"):
                    isf.linear_sum_assignment(given, maximize)
                continue
            rows, cols = isf.linear_sum_assignment(given, maximize)
            found = sum(map(Fraction, cost[rows, cols].tolist()))
            assert abs(found - min(totals)) <= 1e-12 * Fraction(LARGEST)
    for width in (150, 170):  # these are read in place if they are not as large
        cost, best = rng.uniform(0.5, 1, (150, width)) * LARGEST, rng.permutation(width)[:150]
        cost[range(150), best] = -LARGEST
        assert (isf.linear_sum_assignment(cost)[1] == best).all()


def test_large_matrices_are_read_in_place_and_as_copies_alike(instruction_set):
    rng = np.random.default_rng(0)
    wide = rng.random((150, 203))
    integers = rng.integers(0, 1000, (140, 140))
    for cost in (wide, integers, wide.astype(np.float32)):
        expected = total(cost, *scipy.optimize.linear_sum_assignment(cost))
        padded = np.full((cost.shape[0], cost.shape[1] + 3), -1, cost.dtype)
        padded[:, :-3] = cost
        for same in (cost, np.asfortranarray(cost), padded[:, :-3], cost[::-1], cost.T.copy().T):
            rows, cols = isf.linear_sum_assignment(same)
            assert abs(total(same, rows, cols) - expected) <= 1e-9 * abs(expected)


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", ">f8", ">i4"]
)
def test_every_real_dtype_is_taken(dtype):
    cost = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 100, (6, 8)).astype(dtype)
    rows, cols = isf.linear_sum_assignment(cost, maximize=True)
    expected = scipy.optimize.linear_sum_assignment(cost.astype(np.float64), maximize=True)
    wide = cost.astype(np.float64)
    assert total(wide, rows, cols) == total(wide, *expected)


def test_what_numpy_makes_an_array_of_is_taken():
    assert [x.tolist() for x in isf.linear_sum_assignment([[4, 1, 3], [2, 0, 5], [3, 2, 2]])] == [[0, 1, 2], [1, 0, 2]]
    big = np.array([[2**64 - 1, 2**64 - 2], [2**64 - 2, 2**64 - 2]], dtype=np.uint64)
    assert isf.linear_sum_assignment(big, maximize=True)[1].tolist() == [0, 1]


ONE = np.array([[4, 1, 3], [2, 0, 5], [3, 2, 2]])
REFUSED = {
    **{dtype: ONE.astype(dtype) for dtype in ("F", "D", "O", "U", "S", "M8[s]", "m8[s]")},
    "longdouble": np.ones((2, 2), np.longdouble),  # float64 where the platform has no longer float
    "no entry": np.zeros((0, 0), object),
    "batch": np.zeros((2, 3, 3), object),
    "vector": np.zeros(3, complex),
    "list of complex": [[1j, 2], [3, 4]],
    "list of words": [["a", "b"], ["c", "d"]],
    "set": {1, 2},
}


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpp", marks=needs_extension)])
@pytest.mark.parametrize("which", REFUSED)
def test_what_scipy_does_not_cast_is_refused_in_its_words(which, backend):
    try:
        scipy.optimize.linear_sum_assignment(REFUSED[which])
    except (TypeError, ValueError) as error:
        with pytest.raises(type(error), match=f"^{re.escape(str(error))}$"):
            isf.linear_sum_assignment(REFUSED[which], backend=backend)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpp", marks=needs_extension)])
def test_lists_of_what_float_takes_are_taken_as_in_scipy(backend):
    for cost in ([["1", "2"], ["2", "4"]], [[Fraction(1, 3), 2], [2, 9]], [[2**70, 1], [2, 3]], [[True, False]]):
        expected = scipy.optimize.linear_sum_assignment(cost)
        for found, right in zip(isf.linear_sum_assignment(cost, backend=backend), expected, strict=True):
            assert (found == right).all()


def test_views_into_records_are_taken():
    records = np.zeros(4, dtype=[("byte", "i1"), ("cost", "f8", (3, 5))])  # strides that are no multiple of 8
    records["cost"] = np.random.default_rng(0).random((4, 3, 5))
    expected = isf.linear_sum_assignment(records["cost"].copy())
    for found, right in zip(isf.linear_sum_assignment(records["cost"]), expected, strict=True):
        assert (found == right).all()
    assert (isf.linear_sum_assignment(records["cost"][2])[1] == expected[1][2]).all()


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (2, 0, 3), (0, 3, 3)])
def test_empty_matrices_have_empty_answers(shape):
    rows, cols = isf.linear_sum_assignment(np.zeros(shape))
    assert rows.shape == cols.shape == (*shape[:-2], min(shape[-2:]))
    assert rows.dtype == cols.dtype == np.int64


@pytest.mark.parametrize("shape", [(), (3,), (1, 2, 3, 4)])
@pytest.mark.parametrize("make", [np.ones, torch.ones])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_other_dimensions_raise(shape, make, backend):
    with pytest.raises(ValueError, match=rf"expected a matrix \(2-D array\), got a {len(shape)} array"):
        isf.linear_sum_assignment(make(shape), backend=backend)


@needs_extension
def test_an_invalid_entry_is_named(instruction_set):
    for shape in ((5, 7), (7, 5), (140, 150), (150, 140)):
        for value, maximize in ((np.nan, False), (np.nan, True), (-np.inf, False), (np.inf, True)):
            cost = np.ones(shape)
            cost[3, 2] = cost[4, 1] = value
            with pytest.raises(ValueError, match=rf"row 3 holds {value} in column 2") as error:
                isf.linear_sum_assignment(cost, maximize)
            assert "invalid numeric entries" in str(error.value)
            batch = np.stack([np.ones(shape), cost, cost]).astype(np.float32)
            with pytest.raises(ValueError, match=rf"row 3 of cost\[1\] holds {value}"):
                isf.linear_sum_assignment(batch, maximize)


@needs_extension
def test_an_infeasible_matrix_names_a_row_or_column(instruction_set):
    cost = np.ones((4, 6))
    cost[2] = np.inf
    with pytest.raises(ValueError, match="infeasible: row 2 has"):
        isf.linear_sum_assignment(cost)
    with pytest.raises(ValueError, match="infeasible: column 2 has"):
        isf.linear_sum_assignment(-cost.T, maximize=True)
    two_rows_one_column = np.full((3, 3), np.inf)
    two_rows_one_column[:2, 0] = two_rows_one_column[2, :] = 1
    with pytest.raises(ValueError, match="infeasible: row [01] has"):
        isf.linear_sum_assignment(two_rows_one_column)
    with pytest.raises(ValueError, match=r"infeasible: row 2 of cost\[7\]"):
        isf.linear_sum_assignment(np.stack([np.ones((4, 6))] * 7 + [cost]))


def test_forbidden_entries_are_avoided_at_any_price():
    cost = np.array([[1.0, np.inf, np.inf], [1.0, 1e6, np.inf], [1.0, 1.0, 1e9]])
    assert isf.linear_sum_assignment(cost)[1].tolist() == [0, 1, 2]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_batch_is_its_matrices(threads, instruction_set):
    for shape in ((200, 6, 9), (100, 9, 6), (7, 130, 150)):
        costs = np.random.default_rng(0).random(shape)
        for batch in (costs, costs[::-2], costs.transpose(0, 2, 1)):
            with torch_threads(threads):
                rows, cols = isf.linear_sum_assignment(batch)
            for b, cost in enumerate(batch):
                one = isf.linear_sum_assignment(cost)
                assert (rows[b] == one[0]).all() and (cols[b] == one[1]).all()


@needs_extension
def test_the_first_failure_of_a_batch_is_reported_for_any_number_of_threads():
    costs = np.ones((500, 3, 3))
    costs[123, 1, 1] = costs[124, 0, 0] = costs[499, 2, 2] = np.nan
    module = extension.compiled()
    for threads in (1, 2, 8):
        with pytest.raises(ValueError, match=r"row 1 of cost\[123\]"):
            module.linear_sum_assignment(costs, threads=threads)


@pytest.mark.parametrize(
    "dtype",
    [torch.float8_e4m3fn, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.bool],
)
def test_tensors_give_tensors(dtype):
    cost = torch.randint(0, 2 if dtype == torch.bool else 50, (3, 5, 4)).to(dtype)
    rows, cols = isf.linear_sum_assignment(cost, maximize=True)
    expected = isf.linear_sum_assignment(cost.double().numpy(), maximize=True)
    assert rows.dtype == cols.dtype == torch.int64 and rows.shape == (3, 4)
    wide = cost.double()
    for b in range(3):
        assert wide[b][rows[b], cols[b]].sum() == wide[b].numpy()[expected[0][b], expected[1][b]].sum()
    if dtype.is_floating_point:
        leaf = cost.clone().requires_grad_()
        assert torch.equal(isf.linear_sum_assignment(leaf, maximize=True)[1], cols)


def test_transforms_and_recorded_calls_give_the_same():
    costs = torch.rand(3, 5, 4)
    right = torch.stack(isf.linear_sum_assignment(costs, maximize=True))
    matched = lambda cost: torch.stack(isf.linear_sum_assignment(cost, maximize=True))  # noqa: E731
    assert (torch.vmap(matched, in_dims=1, out_dims=1)(costs.movedim(0, 1)) == right).all()
    assert (torch.vmap(matched)(costs.expand(2, -1, -1, -1)) == right).all()
    torch.library.opcheck(torch.ops.infoseg_fast.linear_sum_assignment, (costs, True, "auto", False))


def test_backends_by_name(monkeypatch):
    with pytest.raises(ValueError, match="backend must be"):
        isf.linear_sum_assignment(np.ones((2, 2)), backend="triton")
    with pytest.raises(isf.BackendUnavailableError, match="CUDA"):
        isf.linear_sum_assignment(np.ones((2, 2)), backend="cuda")
    with pytest.raises(isf.BackendUnavailableError, match="CUDA"):
        isf.linear_sum_assignment(torch.ones(2, 2), backend="cuda")
    # Without the extension, "auto" goes on with scipy and "cpp" raises.
    monkeypatch.setattr(assignment, "_solve", None)
    monkeypatch.setattr(extension, "compiled", lambda: None)
    monkeypatch.setattr(extension, "unavailable", lambda: "not built")
    dispatch.log_once.cache_clear()
    assert isf.linear_sum_assignment(np.eye(2))[1].tolist() == [1, 0]
    with pytest.raises(isf.BackendUnavailableError, match="not built"):
        isf.linear_sum_assignment(np.eye(2), backend="cpp")


def test_the_tests_of_scipy_pass_with_ours_in_the_place_of_scipys():
    script = (
        "import pytest, scipy.optimize, sys, infoseg_fast\n"
        "scipy.optimize.linear_sum_assignment = infoseg_fast.linear_sum_assignment\n"
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-c', '/dev/null', sys.argv[1]]))"
    )
    tests = Path(scipy.optimize.__file__).parent / "tests" / "test_linear_assignment.py"
    if not tests.exists():
        pytest.skip("this scipy has no tests")
    done = subprocess.run([sys.executable, "-c", script, str(tests)], capture_output=True, text=True)
    assert done.returncode == 0 and re.search(r"^\d\d passed", done.stdout, re.MULTILINE), done.stdout
