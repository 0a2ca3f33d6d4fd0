"""The section on what survives of a torch optimizer's promises, from conformance.jsonl."""

from collections import defaultdict
from collections.abc import Sequence

from .gathered import Number
from .markdown import conditions, table
from .page import Page, absent
from .selection import listed

COMMAND = "python benchmarks/conformance.py"
OURS = "Marble"


def section(page: Page) -> str:
    """Text, table and reading."""
    head = "## Which promises of a torch optimizer survive balancing?\n\n"
    rows = page.measured("conformance")
    if not rows:
        return head + absent("the conformance checks", COMMAND)
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    words = (
        "Schedulers, hooks, closures, accumulation, saving and resuming with many base optimizers, gradient scaling, "
        "absent and broken losses: the checks of `tests/conformance`, each run once on every library, which is used as "
        "its documentation shows. TorchJD has no wrapper: the optimizer of its loop is the base optimizer itself, so "
        f"what concerns only the optimizer passes by construction. Measured on {conditions(rows)}."
    )
    lines = [[name, *_line([row for row in rows if row["variant"] == name])] for name in variants]
    return "\n\n".join(
        [head + words, table(["library", "failed checks", "passed", "failed"], lines, left=2), _reading(rows)]
    )


def _line(rows: Sequence[Number]) -> list[str]:
    failed = [row["metric"] for row in rows if not row["passed"]]
    return [_grouped(failed), str(len(rows) - len(failed)), str(len(failed))]


def _grouped(checks: Sequence[str]) -> str:
    """Those of one subject, which is their first word, are counted."""
    groups: dict[str, list[str]] = defaultdict(list)
    for check in checks:
        groups[check.split()[0].strip(",")].append(check)
    return "; ".join(f"{word} … ({len(own)})" if len(own) > 1 else own[0] for word, own in groups.items())


def _reading(rows: Sequence[Number]) -> str:
    """How many pass, and what ours fails that another passes."""
    failed: dict[str, set[str]] = {row["variant"]: set() for row in rows}
    counts = dict.fromkeys(failed, 0)
    for row in rows:
        counts[row["variant"]] += row["passed"]
        if not row["passed"]:
            failed[row["variant"]].add(row["metric"])
    checks = len({row["metric"] for row in rows})
    text = f"Reading: of {checks} checks {listed([f'{name} passes {count}' for name, count in counts.items()])}."
    passed = {row["metric"] for row in rows if row["passed"] and row["variant"] != OURS}
    if behind := sorted(failed.get(OURS, set()) & passed):
        return f"{text} {OURS} fails what another library passes: {'; '.join(behind)}."
    return f"{text} No check that {OURS} fails is passed by another library."
