"""Print the times and errors of docs/cpu_kernels.md from the rows of one run of `infoseg bench
--csv ROWS.csv`.

    python benchmarks/kernel_tables.py ROWS.csv

The column "goal" has the ratio that the case was planned with.
"""

import argparse
from collections import defaultdict
from pathlib import Path

from infoseg_fast.bench.providers import MEASURED, RESULTS, chosen_cases
from infoseg_fast.bench.tables import read_csv
from infoseg_fast.errors import DataError


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path, help="written by infoseg bench --csv")
    args = parser.parse_args(argv)
    cases = defaultdict(dict)
    try:
        for row in read_csv(args.csv, MEASURED, "csv", "infoseg bench --csv"):
            cases[row["op"], row["case"]][row["provider"]] = row  # the last mode has the gradients
    except DataError as error:
        parser.error(str(error))
    goals = {(case.op, case.name): case.speedup for case in chosen_cases("cpu", ())}

    print("| op | case | op, ms | best PyTorch, ms | ratio | goal | times the floor, ms | extra MB, PyTorch's |")
    print("|---|---|---|---|---|---|---|---|")
    for key, rows in cases.items():
        op = rows["infoseg_fast"]
        others = [rows[p] for p in ("eager", "compiled") if p in rows]

        def best(column, others=others):
            return min(others, key=lambda row: float(row[column]))

        def ratio(column, op=op, best=best):
            return f"{float(best(column)[column]) / float(op[column]):.2f}"

        by_median = best("median_ms")
        cells = (
            *key,
            f"{op['median_ms']} ({op['p20_ms']})",
            f"{by_median['median_ms']} ({best('p20_ms')['p20_ms']}), {by_median['provider']}",
            f"{ratio('median_ms')} ({ratio('p20_ms')})",
            goals.get(key, ""),  # an older file may have other cases
            f"{float(op['median_ms']) / float(op['floor_ms']):.1f} of {op['floor_ms']}",
            f"{op['extra_mb']}, {by_median['extra_mb']}",
        )
        print("| " + " | ".join(map(str, cells)) + " |")

    print("\nErrors of the op, and of eager PyTorch in brackets.\n")
    print("| op | case | " + " | ".join(name.replace("_", " ") for name in RESULTS) + " |")
    print("|---" * (2 + len(RESULTS)) + "|")
    for key, rows in cases.items():
        op, eager = rows["infoseg_fast"], rows["eager"]
        if op["error_value"]:
            errors = [f"{op[f'error_{r}']} ({eager[f'error_{r}']})" for r in RESULTS]
            print("| " + " | ".join([*key, *errors]) + " |")


if __name__ == "__main__":
    main()
