"""The map: on which kind of task balancing wins, from dials.jsonl."""

from collections.abc import Mapping, Sequence

from comparison.methods import SUM
from comparison.rows import Row

from .blocks import score_table
from .dials_figure import draw
from .intervals import Interval
from .markdown import decimals, table, text
from .page import Page, absent
from .rates import choices
from .selection import MARBLE, distinct, label, methods_of, metrics_of, pick, reported, seeds_of, short
from .spreads import BASE, check, completed, dials, own
from .tasks import words
from .verdicts import LEGEND, against, mean_of, reading

COMMAND = "python -m benchmarks --full dials"
GDPO = "gdpo"
PAIRS = ((GDPO, SUM), (MARBLE, SUM), (MARBLE, GDPO))
# Unit gradients without a problem solved: what is left to min-norm itself.
EQUAL = (MARBLE, "equal")
# One backward of the sum of losses, each a mean over its own samples: what is left to gradients, counting apart.
COUNTING = (MARBLE, "losses")
_HEADS = {SUM: "sum", "losses": "own losses"}
SCORES = {"composite": "composite", "worst": "worst reward"}
WINS, ABOVE, ENOUGH, LOSES, OPEN = "Marble wins", "Marble above the sum", "GDPO is enough", "Marble loses", "open"
COUNTED = "counting is enough"
MEANING = {
    WINS: "above the weighted sum, GDPO and the sum of the rewards' own losses",
    COUNTED: "above the weighted sum and GDPO, but not above the sum of the rewards' own losses, each a mean over the "
    "samples that it applies to, which costs one backward",
    LOSES: "below the weighted sum or GDPO",
    ENOUGH: "GDPO is above the sum, and Marble not above both",
    ABOVE: "Marble is above the sum, and GDPO is not",
    OPEN: "neither is above the sum",
}


def section(page: Page) -> str:
    """Text, the default task, the map, reading and figures."""
    head = "## On which kind of task does balancing win?\n\n"
    everything = page.rows("dials")
    plain = reported(everything)
    if not plain:
        return head + absent("the map", COMMAND)
    rows = completed(plain)
    tasks = {task: pick(rows, task=task) for task in distinct(rows, "task")}
    turned = {task: dials(part) for task, part in tasks.items()}
    found = {task: verdicts(part) for task, part in tasks.items()}
    intro = (
        "A small conditional flow model is post-trained by DiffusionNFT with synthetic rewards whose optima are known, "
        "so that what makes a task hard can be turned like a dial: the share of prompts that carry one specialist "
        "reward (specialists), the commonest over the rarest specialist (rarity), the largest over the smallest scale "
        "of the raw rewards (spread), noise on one reward (noise, in its own std), the number of rewards, how far "
        "their optima disagree (conflict, 0 to 1), the number of steps, a KL term. *Composite* is the mean gain over "
        "the rewards on held-out prompts, in units of the pretrained model's standard deviation; *worst* is the lowest "
        "of them; *judge* is the mean gain of measures that nobody trained on; *diversity* and *drift* are the "
        f"samples' spread and their distance from the pretrained model's. {choices(everything)} {check(plain)}"
    )
    default = [part for task, part in tasks.items() if not turned[task]]
    parts = [head + intro]
    if default:
        parts += [f"**The default task** ({words(tuple(BASE.items()))}). {LEGEND}", _scores(default[0])]
    parts += [_map(tasks, turned, found), _reading(found), _rivals(tasks), *draw(page, tasks, turned, BASE)]
    return "\n\n".join(parts)


def verdicts(rows: Sequence[Row]) -> dict[str, str]:
    """Score → what the paired differences between the sums, GDPO and Marble say, see ``MEANING``."""
    found = {}
    for metric in SCORES:
        if not all(against(rows, *pair, metric).count > 1 for pair in PAIRS):
            found[metric] = ""
            continue
        gdpo, ours, ours_gdpo = (against(rows, *pair, metric).sign for pair in PAIRS)
        if ours < 0 or ours_gdpo < 0:
            found[metric] = LOSES
        elif ours > 0 and ours_gdpo > 0:
            counting = against(rows, *COUNTING, metric)
            found[metric] = COUNTED if counting.count > 1 and counting.sign <= 0 else WINS
        elif gdpo > 0:
            found[metric] = ENOUGH
        else:
            found[metric] = ABOVE if ours > 0 else OPEN
    return found


def _scores(rows: Sequence[Row]) -> str:
    names = ("composite", "worst", "judge", "diversity", "drift")
    columns = {name: name for name in names if metrics_of(rows, name)}
    columns |= {name: name.replace("/", ", ") for name in metrics_of(rows, "conflict/")}
    return score_table(rows, methods_of(rows), columns, times=rows)


def _map(tasks: Mapping[str, list[Row]], turned: Mapping[str, Mapping], found: Mapping[str, Mapping[str, str]]) -> str:
    names = sorted(tasks, key=lambda task: (len(turned[task]), [list(BASE).index(name) for name in turned[task]]))
    legend = (
        "**The map.** One line per task; dials that are not named are at their default. Paired differences, bold where "
        "the 95 % interval excludes zero. " + "; ".join(f"*{name}*: {meaning}" for name, meaning in MEANING.items())
    )
    return "\n\n".join([f"{legend}.", *(_map_of(tasks, names, metric, found) for metric in SCORES)])


def _map_of(
    tasks: Mapping[str, list[Row]], names: Sequence[str], metric: str, found: Mapping[str, Mapping[str, str]]
) -> str:
    values = [[mean_of(tasks[task], SUM, metric), *_differences(tasks[task], metric)] for task in names]
    places = [decimals(value.half for value in column) for column in zip(*values, strict=True)]
    lines = []
    for task, (plain, *others) in zip(names, values, strict=True):
        cells = [_bold(value, place) for value, place in zip(others, places[1:], strict=True)]
        lines.append([task, str(len(seeds_of(tasks[task]))), text(plain, places[0]), *cells, found[task][metric]])
    heads = [f"{short(one)} − {_HEADS.get(other, short(other))}" for one, other in (*PAIRS, EQUAL, COUNTING)]
    return table([SCORES[metric], "n", "sum", *heads, "verdict"], lines)


def _differences(rows: Sequence[Row], metric: str) -> list[Interval]:
    return [against(rows, *pair, metric) for pair in (*PAIRS, EQUAL, COUNTING)]


def _bold(value: Interval, places: int) -> str:
    cell = text(value, places, signed=True)
    return f"**{cell}**" if value.sign else cell


def _rivals(tasks: Mapping[str, list[Row]]) -> str:
    """A line per rival: in how many tasks Marble is above it, below it, and not told apart."""
    rows = [row for part in tasks.values() for row in part]
    metrics = [*SCORES, *(name for name in ("judge", "conflict/gradient", "conflict/step") if metrics_of(rows, name))]
    lines = []
    for rival in (name for name in methods_of(rows) if name.split()[0] != MARBLE):
        # Two borrowed runs were compared already, in the task that they are borrowed from.
        known = [part if rival == SUM else own(part) for part in tasks.values()]
        cells = []
        for metric in metrics:
            signs = [value.sign for part in known if (value := against(part, MARBLE, rival, metric)).count > 1]
            cells.append(" / ".join(str(signs.count(sign)) for sign in (1, -1, 0)))
        lines.append([label(rival), *cells])
    words = "**Marble against each rival**, tasks in which Marble is above / below / not told apart:"
    return f"{words}\n\n{table(['rival', *metrics], lines)}"


def _reading(found: Mapping[str, Mapping[str, str]]) -> str:
    sentences = []
    for metric, name in SCORES.items():
        parts = []
        for verdict in MEANING:
            where = [task for task, said in found.items() if said[metric] == verdict]
            shown = f" ({'; '.join(where)})" if 0 < len(where) <= 8 else ""
            parts.append(f"*{verdict}* in {len(where)}{shown}")
        sentences.append(
            f"{name.capitalize()}, {sum(bool(said[metric]) for said in found.values())} tasks: {', '.join(parts)}."
        )
    return reading(sentences)
