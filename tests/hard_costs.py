"""Cost matrices that are hard for some solver, the same for every backend, and a certificate of
optimality.
"""

import numpy as np


def _product(rng, n, m):
    """i * j: every search reaches nearly every row."""
    return np.outer(np.arange(1.0, n + 1), np.arange(1.0, m + 1))


def _some_forbidden(rng, n, m):
    cost = rng.random((n, m))
    cost[rng.random((n, m)) < 0.4] = np.inf
    return cost


def _mostly_forbidden(rng, n, m):
    cost = np.floor(rng.random((n, m)) * 3)
    cost[rng.random((n, m)) < 0.7] = np.inf
    return cost


def _counts(rng, n, m):
    """Confusion counts near a diagonal, to be maximised: here negated."""
    return -np.where(np.eye(n, m) > 0, rng.integers(0, 10**6, (n, m)), rng.integers(0, 50, (n, m)) ** 3)


def _two_scales(rng, n, m):
    return rng.choice([1e-9, 1.0, 1e9], (n, m)) * rng.standard_normal((n, m))


KINDS = {
    "uniform": lambda rng, n, m: rng.random((n, m)),
    "float32": lambda rng, n, m: (rng.random((n, m)) * 100).astype(np.float32),
    "product": _product,
    "small integers": lambda rng, n, m: rng.integers(0, 10, (n, m)),
    "zero or one": lambda rng, n, m: np.floor(rng.random((n, m)) * 1.5),
    "constant": lambda rng, n, m: np.full((n, m), 0.1),
    "cauchy": lambda rng, n, m: rng.standard_cauchy((n, m)),
    "two scales": _two_scales,
    "counts": _counts,
    "large integers": lambda rng, n, m: rng.integers(-(2**45), 2**45, (n, m)),
    "distances": lambda rng, n, m: np.abs(rng.random((n, 1)) - rng.random((1, m))),
    "some forbidden": _some_forbidden,
    "mostly forbidden": _mostly_forbidden,
}


def hard_costs(seed: int, number: int, most: int):
    """`number` triples (kind, cost, maximize) with up to `most` rows and columns, wide, tall and
    square, in C and Fortran order."""
    rng = np.random.default_rng(seed)
    names = list(KINDS)
    for index in range(number):
        n, m = (int(x) for x in rng.integers(1, most + 1, 2))
        if rng.random() < 0.5:
            m = n
        kind, maximize = names[index % len(names)], bool(rng.integers(2))
        cost = KINDS[kind](rng, n, m)
        if maximize and kind.endswith("forbidden"):
            cost = -cost
        yield kind, np.asfortranarray(cost) if rng.random() < 0.3 else cost, maximize


def total(cost: np.ndarray, rows: np.ndarray, cols: np.ndarray):
    """Sum of the chosen entries, in Python's own numbers: exact for integers."""
    chosen = cost[rows, cols].tolist()
    return sum(chosen) if cost.dtype.kind in "biu" else float(np.sum(np.array(chosen, dtype=np.float64)))


def assert_optimal(cost: np.ndarray, rows: np.ndarray, cols: np.ndarray, maximize: bool = False) -> None:
    """Prove that no other assignment is cheaper, without solving: no exchange along a cycle or to
    free columns gains.

    Row i taking over row k's column gains or loses D[i, k]; an assignment is optimal exactly when
    no closed chain of such moves (through one further node for the free columns) has a negative
    sum. Floyd and Warshall's algorithm finds one.
    """
    cost = np.asarray(cost, dtype=np.float64)
    cost = -cost if maximize else cost
    if cost.shape[0] > cost.shape[1]:
        order = np.argsort(cols)
        cost, rows, cols = cost.T, cols[order], rows[order]
    n, m = cost.shape
    assert rows.tolist() == list(range(n)) and len(set(cols.tolist())) == n
    own = cost[np.arange(n), cols]
    assert np.isfinite(own).all(), "a forbidden entry was chosen"
    moves = np.full((n + 1, n + 1), np.inf)
    moves[:n, :n] = cost[:, cols] - own[:, None]
    free = np.setdiff1d(np.arange(m), cols)
    if len(free):
        moves[:n, n] = cost[:, free].min(axis=1) - own
        moves[n, :n] = 0
    finite = np.abs(cost[np.isfinite(cost)])
    slack = 1e-12 * max(1.0, finite.max(initial=0.0)) * (n + 1)
    for k in range(n + 1):
        moves = np.minimum(moves, moves[:, k, None] + moves[k])
    assert np.diagonal(moves).min() >= -slack
