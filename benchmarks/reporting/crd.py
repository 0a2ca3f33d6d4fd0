"""The section on Centered Reward Distillation, from crd.jsonl."""

from collections.abc import Sequence

from comparison.methods import SUM
from comparison.rows import Row

from .blocks import span, tail
from .gathered import Number, gather
from .markdown import columns, conditions, table, text
from .page import Page, absent
from .selection import BASE, MARBLE, distinct, label, methods_of, metrics_of, pick, seeds_of
from .tiny import CONFLICTS, with_gains
from .verdicts import mark, mean_of, reading, sentence

COMMAND = "python benchmarks/crd.py"
PAPER = "paper's loss"
FIVE = "five"
_PARTS = {
    "constant anchor": "anchor of constant strength",
    "unguided anchor": "anchor to the plain pretrained model",
    "coupled": "sampler follows as the old model does",
    "copies": "sampler and old model are copies of the trained one",
}


def section(page: Page) -> str:
    """Text, table, reading and figure."""
    head = "## What does Centered Reward Distillation learn, alone and with five rewards?\n\n"
    measured, rows = page.measured("crd"), crd_rows(page)
    trained = [row for row in rows if row["method"] != BASE]
    rewards = metrics_of(trained, "gain/")
    if not rewards:
        return head + absent("Centered Reward Distillation", COMMAND)
    words = (
        "Centered Reward Distillation (CRD, arXiv 2603.14128) is another algorithm of the same trainer. On the "
        "text-to-image model of the first section it gets one reward, as in its paper, then with one part of its loss "
        f"changed at a time, and {len(rewards)} rewards, summed or balanced, with its guided anchor or an unguided one "
        f"(the plain pretrained model). {_length(measured)}; {span(seeds_of(rows))}. Gains are over the pretrained "
        "model on held-out prompts, mean ± 95 % t-interval over seeds, trained rewards in bold; the base model's "
        "values come with their standard error over images. ▲ and ▼: above and below the first line of the group on "
        "the same seeds (95 % interval of the paired difference excludes 0). "
        f"Measured on {conditions(measured)}."
    )
    figure = page.drawn("crd", "Change of every reward under CRD, per variant")
    return "\n\n".join([head + words, _table(rows, rewards), _reading(trained, rewards), *figure])


def crd_rows(page: Page) -> list[Row]:
    """The runs with gains; a task is what is trained on, a method what is done with it."""
    measured = [row for row in page.measured("crd") if row["variant"] == BASE or "/stderr" not in row["metric"]]
    renamed = [row | {"metric": row["metric"].replace("conflict_share/", "conflict/")} for row in measured]
    return with_gains(gather(renamed, _run))


def _run(row: Number) -> tuple[str, str]:
    variant = row["variant"]
    task, _, part = variant.partition(":")
    if variant == BASE:
        return BASE, BASE
    if task != FIVE:
        return f"{task} alone", _PARTS.get(part, part) or PAPER
    method, _, changed = part.partition(", ")
    return f"{FIVE} rewards" + (f", {changed}" if changed else ""), method


def _length(measured: Sequence[Number]) -> str:
    """What all runs have in common, from the settings of one."""
    row = next(row for row in measured if row["variant"] != BASE)
    found = dict(item.split("=", 1) for item in row["settings"]["overrides"])
    batch = f"{found['rollout.prompts']} prompts × {found['rollout.images']} images"
    return (
        f"Every run has {found['epochs']} epochs of {batch}, {row['step']} steps of {found['optimizer.name']} and the "
        f"same learning rate, {found['optimizer.lr']}"
    )


def _first(rows: Sequence[Row]) -> str:
    """What the runs of a task are compared with."""
    return SUM if pick(rows, method=SUM) else PAPER


def _table(rows: Sequence[Row], rewards: Sequence[str]) -> str:
    (base,) = (row["values"] for row in pick(rows, method=BASE))
    known = [(base[f"heldout/{tail(name)}"], base[f"heldout/{tail(name)}/stderr"]) for name in rewards]
    lines = [["*base model, value*", "", "", *(f"{value:.3f} ± {error:.3f}" for value, error in known), "", ""]]
    metrics = [*rewards, *CONFLICTS]
    runs = [(task, name) for task in distinct(rows, "task") for name in methods_of(pick(rows, task=task))]
    runs = [(task, name) for task, name in runs if name != BASE]
    found = [[mean_of(pick(rows, task=task), name, metric) for metric in metrics] for task, name in runs]
    texts = columns(found, [metric in rewards for metric in metrics])
    for (task, name), cells in zip(runs, texts, strict=True):
        own = pick(rows, task=task)
        marked = [
            (f"**{cell}**" if _is_trained(task, metric) else cell) + mark(own, name, metric, _first(own))
            for cell, metric in zip(cells, metrics, strict=True)
        ]
        lines.append([task, label(name), str(len(pick(own, method=name))), *marked])
    return table(["trained on", "run", "n", *map(tail, rewards), *CONFLICTS.values()], lines, left=2)


def _is_trained(task: str, metric: str) -> bool:
    return metric.startswith("gain/") and (task.startswith(FIVE) or task == f"{tail(metric)} alone")


def _reading(rows: Sequence[Row], rewards: Sequence[str]) -> str:
    sentences = []
    for task in distinct(rows, "task"):
        own = pick(rows, task=task)
        if _first(own) == PAPER:
            metric = next(name for name in rewards if _is_trained(task, name))
            words = f"Trained on {task}"
            sentences.append(_moves(own, words, metric))
            sentences.append(sentence(own, methods_of(own), metric, f"{words}, its gain by parts of the loss", PAPER))
            continue
        sentences.append(_counts(own, task, rewards) if pick(own, method=MARBLE) else "")
        sentences.append(
            sentence(own, methods_of(own), "conflict/step", f"{task.capitalize()}, steps taken against a reward")
        )
    return reading(sentences)


def _moves(rows: Sequence[Row], words: str, metric: str) -> str:
    gain = mean_of(rows, PAPER, metric)
    moved = {1: "rises", -1: "falls", 0: "does not move beyond the spread of its seeds"}[gain.sign]
    return f"{words}, {tail(metric)} {moved} ({text(gain, signed=True)})." if gain.count > 1 else ""


def _counts(rows: Sequence[Row], task: str, rewards: Sequence[str]) -> str:
    marks = [mark(rows, MARBLE, name) for name in rewards]
    return (
        f"{task.capitalize()}: of {len(rewards)} gains Marble's is above the weighted sum's in {marks.count(' ▲')}, "
        f"below it in {marks.count(' ▼')}, and not told apart in {marks.count('')}."
    )
