"""Question: which models and which adapters get K reward rows from one backward per loss term, and at which cost?

    python benchmarks/coverage.py                                 every case: minutes on two cores
    python benchmarks/coverage.py --only Flux Wan --modes linear  classes whose names hold one of these, in some modes
    python benchmarks/coverage.py --table                         print the table of the stored rows

Cases are the transformers and UNets of diffusers, small and of random weights, with LoRA on the attention projections,
LoRA on all linear layers and all parameters trained, and every tuner type of peft on a small net; four different
samples, five rewards, DiffusionNFT. A case takes three steps of ``Marble(..., model=model)``; each combined gradient
and Gram matrix is compared with one ordinary backward per reward on an unwatched copy. Rows go to
results/coverage.jsonl, the table to results/coverage.md.
"""

import argparse
import json
from pathlib import Path

from coverage_cases import CASES, WITHOUT
from coverage_cases.case import BATCH
from coverage_cases.pool import Task, run_all
from coverage_cases.rewards import REWARDS
from coverage_cases.table import markdown
from coverage_cases.training import MODES, RANK
from coverage_cases.trial import ROUNDS, STEPS
from measure import RESULTS, facts, store

FILE = RESULTS / "coverage.jsonl"
LIMIT = 120.0
SETTINGS = {"batch": BATCH, "rewards": len(REWARDS), "rank": RANK, "steps": STEPS, "rounds": ROUNDS}


def key(row: dict) -> tuple[str, ...]:
    """What tells rows apart."""
    return row["family"], row["class"], row["mode"]


def selected(only: list[str], modes: list[str]) -> list[Task]:
    """The (name, mode) to run; all without ``only``."""
    return [
        (name, mode)
        for name, case in CASES.items()
        for mode in case.modes
        if mode in modes and (not only or any(part.lower() in name.lower() for part in only))
    ]


def skipped_rows(common: dict) -> list[dict]:
    """One row for each class without a case."""
    return [
        common | {"family": family, "class": name, "mode": "", "outcome": "skipped", "reasons": [reason]}
        for name, (family, reason) in WITHOUT.items()
    ]


def ordered(rows: list[dict]) -> list[dict]:
    """Rows by family, then name, then mode."""
    families, modes = ["transformer", "unet", "peft"], list(MODES)
    place = {mode: index for index, mode in enumerate(modes)}
    return sorted(rows, key=lambda row: (families.index(row["family"]), row["class"], place.get(row["mode"], -1)))


def main() -> None:
    """Run the cases, store a row for each, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="parts of the names of classes or tuners")
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--jobs", type=int, default=2, help="processes at once, of one thread each")
    parser.add_argument("--output", type=Path, default=FILE, help="file of the rows; the table goes beside it")
    parser.add_argument("--table", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    output, tasks = arguments.output, selected(arguments.only, arguments.modes)
    rows: list[dict] = []
    if not arguments.table:
        common = facts("coverage", SETTINGS, ("torch", "diffusers", "peft"))
        rows = skipped_rows(common)
        for number, ((name, mode), result) in enumerate(run_all(tasks, arguments.jobs, LIMIT), start=1):
            rows.append(common | {"family": CASES[name].family, "class": name, "mode": mode} | result)
            print(f"{number}/{len(tasks)} {name}, {mode}: {result['outcome']}", flush=True)
        if set(tasks) == set(selected([], list(MODES))):
            # Rows of cases that are no more go.
            output.unlink(missing_ok=True)
    store(rows, output, key)
    stored = ordered([json.loads(line) for line in output.read_text("utf-8").splitlines()])
    output.write_text("".join(json.dumps(row) + "\n" for row in stored), encoding="utf-8")
    table = markdown(stored)
    output.with_suffix(".md").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
