"""Print the tables of docs/cpu_kernels.md from the rows of one run of `infoseg bench --csv
ROWS.csv`.

    python benchmarks/kernel_tables.py ROWS.csv
"""

import csv
import sys
from collections import defaultdict

from infoseg_fast.bench.providers import RESULTS, chosen_cases


def main() -> None:
    with open(sys.argv[1], newline="") as file:
        cases = defaultdict(dict)
        for row in csv.DictReader(file):
            cases[row["op"], row["case"]][row["provider"]] = row  # the last mode has the gradients
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
            goals[key],
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
