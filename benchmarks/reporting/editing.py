"""The section on models that edit and models that make videos, from edit_and_video.jsonl."""

from collections.abc import Sequence

from comparison.methods import SUM
from comparison.rows import Row

from .blocks import score_table, span, tail
from .gathered import Number, gather
from .intervals import difference
from .markdown import conditions, text
from .page import Page, absent
from .selection import BASE, MARBLE, by_seed, distinct, listed, methods_of, metrics_of, pick, seeds_of
from .tiny import with_gains
from .verdicts import LEGEND, mean_of, reading, sentence

COMMAND = "python benchmarks/edit_and_video.py"
SLIDER = "slider, ω = "
_TITLES = {
    "edit": "Editing: Flux Kontext's architecture recolours one of two shapes",
    "video": "Video: LTX-2's architecture, a moving shape",
}


def section(page: Page) -> str:
    """Text, a table per task, reading and figures."""
    head = "## Do editing and video models gain too?\n\n"
    measured, rows = page.measured("edit_and_video"), editing_rows(page)
    tasks = [task for task in distinct(rows, "task") if set(methods_of(pick(rows, task=task))) - {BASE}]
    if not tasks:
        return head + absent("editing and video", COMMAND)
    words = (
        "Small pipelines of two more architectures, pretrained on worlds whose rewards are exact, go through the same "
        "trainer: edits are rewarded for *preservation* of the rest and for *adherence* to the instruction, which "
        "weighs a little more, videos for being *vivid* and for *steady* motion. Per seed there are the weighted sum, "
        f"Marble and a slider, whose ω is the share of the first reward; {span(seeds_of(rows))}, {_lengths(measured)}. "
        "The settings are those of the presets, chosen on another seed. Gains are over the pretrained model on "
        f"held-out prompts with common noise, mean ± 95 % t-interval over seeds. {LEGEND} Measured on "
        f"{conditions(measured)}."
    )
    figures = page.drawn("edit_and_video", "Both rewards of the editing and the video model, per method and seed")
    figures += [
        figure
        for task in tasks
        for figure in page.drawn(f"edit_and_video_{task}", f"Held-out samples of the slider, {task}, a row per ω")
    ]
    tables = [_table(pick(rows, task=task), task) for task in tasks]
    return "\n\n".join([head + words, *tables, reading([s for t in tasks for s in _sentences(rows, t)]), *figures])


def editing_rows(page: Page) -> list[Row]:
    """The runs with gains, a slider once per ω."""
    rows = gather(page.measured("edit_and_video"), _run, "heldout/")
    return [row for task in distinct(rows, "task") for row in with_gains(pick(rows, task=task))]


def compared(page: Page) -> list[Row]:
    """Without the slider, whose ω each ask for something else."""
    return [row for row in editing_rows(page) if not row["method"].startswith(SLIDER)]


def _run(row: Number) -> tuple[str, str]:
    return row["task"], f"{SLIDER}{row['omega'][0]:g}" if row["omega"] else row["method"]


def _lengths(measured: Sequence[Number]) -> str:
    """ "optimizer steps: edit 96 (slider 128)"."""
    found: dict[str, dict[bool, str]] = {}
    for row in measured:
        if row["method"] != BASE:
            steps = row["settings"]["epochs"] * row["settings"]["steps_per_epoch"]
            found.setdefault(row["task"], {})[row["method"] == "slider"] = str(steps)
    told = [
        f"{task} {own.get(False, '')}" + (f" (slider {own[True]})" if True in own else "")
        for task, own in found.items()
    ]
    return f"optimizer steps: {', '.join(told)}"


def _table(rows: Sequence[Row], task: str) -> str:
    metrics = metrics_of(rows, "gain/")
    start = {name: value for row in pick(rows, method=BASE) for name, value in row["values"].items()}
    known = [f"{start['heldout/' + tail(name)]:.3f}" for name in metrics]
    methods = [name for name in methods_of(rows) if name != BASE]
    methods = [name for name in methods if not name.startswith(SLIDER)] + _sweep(methods)
    lines = score_table(rows, methods, {m: tail(m) for m in metrics}, reference=["*base model, value*", "", *known])
    return f"**{_TITLES.get(task, task)}**\n\n{lines}"


def _sweep(methods: Sequence[str]) -> list[str]:
    """The slider's points, from ω = 1 down."""
    found = [name for name in methods if name.startswith(SLIDER)]
    return sorted(found, key=lambda name: -float(name.removeprefix(SLIDER)))


def _sentences(rows: Sequence[Row], task: str) -> list[str]:
    own = pick(rows, task=task)
    metrics, points = metrics_of(own, "gain/"), _sweep(methods_of(own))
    sentences = []
    for method, words in ((SUM, "with the weighted sum"), (MARBLE, "with Marble")):
        parts = [_moved(own, method, name) for name in metrics if mean_of(own, method, name).count > 1]
        sentences.append(f"{task}: {words} {listed(parts)}." if parts else "")
    sentences += [sentence(own, [SUM, MARBLE], name, f"{task}, {tail(name)}") for name in metrics]
    sentences += [_ends(own, task, name, ends) for name, ends in zip(metrics, (points, points[::-1]), strict=False)]
    return sentences


def _ends(rows: Sequence[Row], task: str, metric: str, points: Sequence[str]) -> str:
    """Whether a reward differs between its own end of the slider, the first of ``points``, and the other."""
    if len(points) < 2:
        return ""
    apart = difference(*(by_seed(pick(rows, method=points[place]), metric) for place in (0, -1)))
    words = {1: "is higher at its own end of the slider than at the other", -1: "is lower at its own end of the slider"}
    found = words.get(apart.sign, "is not told apart between the ends of the slider")
    return f"{task}: {tail(metric)} {found} ({text(apart, signed=True)})."


def _moved(rows: Sequence[Row], method: str, metric: str) -> str:
    """What a method does to a reward, and in how many seeds."""
    gain, values = mean_of(rows, method, metric), by_seed(pick(rows, method=method), metric).values()
    verb = {1: "rises", -1: "falls", 0: "is not told apart from the base model's"}[gain.sign]
    above = sum(value > 0 for value in values)
    return f"{tail(metric)} {verb} ({text(gain, signed=True)}, higher in {above} of {len(values)} seeds)"
