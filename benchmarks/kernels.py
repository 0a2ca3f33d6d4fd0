"""Question: how fast are the kernels and solvers, against torch, other solvers, and the memory's bandwidth?

    python benchmarks/kernels.py                      on a CPU: the min-norm solvers
    python benchmarks/kernels.py --device cuda        the kernels' share of the copy bandwidth and whole steps as well

Rows go to results/kernels.jsonl; those of the same hardware are replaced.
"""

import argparse
import warnings

import torch

# Everything else is imported where it is used: transformers looks for a package of this file's name, finds this file
# first on a script's path, and must be able to import it and see that it is too old to be of use.
__version__ = "0"


def benchmark(device: str, rounds: int, sizes: list[int]) -> list[dict]:
    """All rows of this machine."""
    from kernel_bandwidth import all_rows
    from kernels_solvers import PACKAGES, solver_rows
    from kernels_step import step_rows
    from measure import facts, versions

    shared = facts("kernels", {"rounds": rounds}) | {"versions": versions(PACKAGES)}
    rows = []
    for size in sizes:
        rows += [shared | row for row in solver_rows(size, rounds)]
        print(f"solvers, K = {size}: done", flush=True)
    if device == "cuda":
        rows += [shared | row for row in (*all_rows(device), *step_rows(device, rounds=50))]
    return rows


def kernel_table(rows: list[dict]) -> str:
    """A line per kernel, data type, K and metric."""
    lines = []
    for row in rows:
        settings = row["settings"]
        if "elements" in settings:
            what = " ".join(str(settings[key]) for key in ("dtype", "layout") if key in settings)
            label = f"{row['method']} {what}, K = {settings.get('rewards', 1)}, {row['metric']}"
            lines.append(f"{label:<76} {row['value']:10.4g} [{row['q20']:.4g}, {row['q80']:.4g}]")
    return "\n".join(lines)


def main() -> None:
    """Measure, store rows, print tables."""
    from kernels_solvers import SIZES, table
    from measure import RESULTS, store

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = benchmark(arguments.device, arguments.rounds, arguments.sizes)
    store(
        rows,
        RESULTS / "kernels.jsonl",
        lambda row: (row["benchmark"], row["hardware"], row.get("rewards"), row["method"]),
    )
    print(table(rows))
    print(kernel_table(rows))


if __name__ == "__main__":
    main()
