"""Rows from one backward per term beside one backward per reward and an older engine: row_engine.jsonl."""

from collections.abc import Sequence

from .gathered import Number, spread
from .markdown import conditions, table
from .page import absent

COMMAND = "python benchmarks/row_engine.py --against COMMIT"


def subsection(rows: Sequence[Number]) -> str:
    """Tables of ratios and peaks, with the conditions."""
    head = "### What do rows from one backward cost?\n\n"
    if not rows:
        return head + absent("the row engine", COMMAND)
    words = (
        "A step is forward, rows and balance with two terms; all forms of a part run in turn, and a ratio is of the "
        "same round: median [20 %, 80 %]. *FSDP2*: a tiny SD3-type transformer with LoRA on two gloo ranks. *Eager*: "
        "one process, a mid-size SD3-type transformer with LoRA, and a perceptron of which all is trained, against the "
        "engine of an older commit. *Peak*: the most memory that a step holds beyond what is there when it begins."
    )
    sharded = [row for row in rows if row["settings"]["part"] == "fsdp2" and row["unit"] == "1"]
    eager = [row for row in rows if row["settings"]["part"] == "eager"]
    return "\n\n".join([head + words, *_sharded(sharded), *_eager(eager)])


def _sharded(rows: Sequence[Number]) -> list[str]:
    if not rows:
        return []
    whats = list(dict.fromkeys(row["what"] for row in rows))
    kinds = sorted({row["settings"]["checkpointing"] for row in rows})
    cells = {(row["what"], row["settings"]["checkpointing"]): row for row in rows}
    lines = [[what, *(spread(cells[what, kind]) for kind in kinds)] for what in whats]
    names = ["with checkpoints" if kind else "plain" for kind in kinds]
    return [f"FSDP2; {conditions(rows)}:", table(["time, form and K", *names], lines)]


def _eager(rows: Sequence[Number]) -> list[str]:
    cells = {(row["settings"]["case"], row["rewards"], row["what"]): row for row in rows}
    keys = list(dict.fromkeys((case, rewards) for case, rewards, _ in cells))
    compared = [key for key in keys if (*key, "this / other") in cells]
    if not compared:
        return []
    other = rows[0]["settings"]["against"]
    lines = [
        [
            {"lora": "LoRA", "full": "all"}[case],
            str(rewards),
            spread(cells[case, rewards, "this / other"]),
            *(f"{cells[case, rewards, f'{name} version, B']['value'] / 1e6:.1f}" for name in ("this", "other")),
        ]
        for case, rewards in compared
    ]
    titles = ["trained", "K", f"time / that of {other}", "peak, MB", f"peak of {other}, MB"]
    return [f"Eager; {conditions(rows)}:", table(titles, lines)]
