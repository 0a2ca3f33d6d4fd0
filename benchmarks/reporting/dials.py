"""The map: on which kind of task balancing wins, from dials.jsonl."""

from collections.abc import Mapping, Sequence

from comparison.methods import SUM
from comparison.rows import Row

from .blocks import score_table, span
from .dials_figure import draw
from .intervals import Interval
from .markdown import decimals, table, text
from .page import Page, absent
from .selection import MARBLE, label, listed, methods_of, metrics_of, seeds_of
from .tasks import Condition, default, split, turned, words
from .verdicts import LEGEND, against, mean_of

COMMAND = "python -m benchmarks --full dials"
GDPO = "gdpo"
PAIRS = ((GDPO, SUM), (MARBLE, SUM), (MARBLE, GDPO))
SCORES = {"composite": "composite", "worst": "worst reward"}
WINS, ENOUGH, LOSES, OPEN = "Marble wins", "GDPO is enough", "Marble loses", "not told apart"


def section(page: Page) -> str:
    """Text, the default task, the map, reading and figures."""
    head = "## On which kind of task does balancing win?\n\n"
    rows = page.rows("dials")
    if not rows:
        return head + absent("the map", COMMAND)
    parts = split(rows)
    rest = default(parts)
    intro = (
        "A small conditional flow model is post-trained with synthetic rewards whose optima are known, so that what "
        "makes a task hard can be turned like a dial: the share of prompts that carry one specialist reward "
        "(specialists), the ratio of the largest to the smallest scale of the raw rewards (spread), noise on one reward, "
        "the number of rewards, how far their optima disagree (conflict), and the number of steps. *Composite* is the "
        "mean gain over the rewards on held-out prompts, in units of the pretrained model's standard deviation; *worst* "
        f"is the lowest of them; judges measure the same aspects by another formula. Seeds {span(seeds_of(rows))}. "
        "Each method's learning rate was chosen on the default task with other seeds."
    )
    own = parts.get(rest, [])
    columns = {name: name for name in ("composite", "worst", "judge", "diversity", "drift") if metrics_of(own, name)}
    columns |= {name: name.replace("/", ", ") for name in metrics_of(own, "conflict/")}
    found = {condition: verdicts(part) for condition, part in parts.items()}
    return "\n\n".join(
        [
            head + intro,
            f"**The default task** ({words(rest)}). {LEGEND}",
            score_table(own, methods_of(own), columns, times=True),
            _map(parts, rest, found),
            _reading(found, rest),
            *draw(page, rows, parts, rest),
        ]
    )


def verdicts(rows: Sequence[Row]) -> dict[str, str]:
    """Score → what the paired differences between the weighted sum, GDPO and Marble say."""
    found = {}
    for metric in SCORES:
        gdpo, ours, ours_gdpo = (against(rows, own, other, metric).sign for own, other in PAIRS)
        if ours > 0 and ours_gdpo > 0:
            found[metric] = WINS
        elif ours < 0 or ours_gdpo < 0:
            found[metric] = LOSES
        elif gdpo > 0 or ours > 0:
            # Marble is not below GDPO, nor above it: whatever was won over the sum, GDPO is not told apart from it.
            found[metric] = ENOUGH
        else:
            found[metric] = OPEN
    return found


def _map(parts: Mapping[Condition, list[Row]], rest: Condition, found: Mapping[Condition, Mapping[str, str]]) -> str:
    conditions = sorted(parts, key=lambda condition: [str(name) for name, _ in turned(condition, rest)])
    lines = [[words(turned(condition, rest))] for condition in conditions]
    for metric in SCORES:
        values = [
            [mean_of(parts[condition], SUM, metric)] + _differences(parts[condition], metric)
            for condition in conditions
        ]
        places = [decimals(value.half for value in column) for column in zip(*values, strict=True)]
        for line, cells, condition in zip(lines, values, conditions, strict=True):
            line += [text(cells[0], places[0])]
            line += [_bold(value, place) for value, place in zip(cells[1:], places[1:], strict=True)]
            line += [found[condition][metric]]
    heads = [f"{label(own)} − {'sum' if other == SUM else label(other)}" for own, other in PAIRS]
    header = ["turned", *(cell for name in SCORES.values() for cell in (f"{name}: sum", *heads, "verdict"))]
    legend = (
        "**The map.** One line per setting of the dials; what is not named is at its default. Paired differences, bold "
        f"where the 95 % interval excludes zero. *{WINS}*: above both the weighted sum and GDPO; *{LOSES}*: below one of "
        f"them; *{ENOUGH}*: something beats the weighted sum, and Marble is not told apart from GDPO."
    )
    return f"{legend}\n\n{table(header, lines)}"


def _differences(rows: Sequence[Row], metric: str) -> list[Interval]:
    return [against(rows, own, other, metric) for own, other in PAIRS]


def _bold(value: Interval, places: int) -> str:
    cell = text(value, places, signed=True)
    return f"**{cell}**" if value.sign else cell


def _reading(found: Mapping[Condition, Mapping[str, str]], rest: Condition) -> str:
    sentences = []
    for metric, name in SCORES.items():
        parts = []
        for verdict in (WINS, ENOUGH, LOSES, OPEN):
            where = [words(turned(condition, rest)) for condition, own in found.items() if own[metric] == verdict]
            shown = f" ({listed([f'*{place}*' for place in where])})" if 0 < len(where) <= 6 else ""
            parts.append(f"{verdict} in {len(where)}{shown}")
        sentences.append(f"{name.capitalize()}, {len(found)} settings: {'; '.join(parts)}.")
    return "Reading. " + " ".join(sentences)
