"""The first section: the methods on the tiny text-to-image model, from tiny.jsonl."""

from collections.abc import Sequence

from comparison.rows import Row

from .blocks import families_legend, panel, score_table, span, tail
from .intervals import Interval
from .markdown import conditions
from .page import Page, absent
from .plots import canvas, caption, colour, names_on_y, tidy, whiskers
from .selection import BASE, MARBLE, SPECIALIST, methods_of, metrics_of, pick, seeds_of, short
from .verdicts import LEGEND, mark, mean_of, reading, sentence

COMMAND = "python -m benchmarks --full tiny"
JUDGES_COMMAND = "python -m benchmarks --full tiny_judges"
CONFLICTS = {"conflict/gradient": "conflict, combined gradient", "conflict/step": "conflict, step taken"}
TIMED = "tiny, time"
SUMMARIES = ("composite", "worst")
_ACROSS = 4
# The judges ink and scene are near their maximum from the start.
_DRAWN = ("letters", "facts", "likeness", "chroma")


def section(page: Page) -> str:
    """Text, tables, reading and figure."""
    head = "## Does balancing beat summing, on a text-to-image model with several rewards?\n\n"
    everything = tiny_rows(page)
    rows = pick(everything, task="tiny")
    methods = [name for name in methods_of(rows) if name != BASE]
    if not methods:
        return head + absent("the tiny text-to-image model", COMMAND)
    rewards, judges = metrics_of(rows, "gain/"), metrics_of(rows, "judge/")
    quality = [*rewards, *(name for name in SUMMARIES if metrics_of(rows, name))]
    secondary = {name: f"judge: {tail(name)}" for name in judges}
    secondary |= {name: words for name, words in CONFLICTS.items() if metrics_of(rows, name)}
    judge_text = (
        "Judges score the same held-out images and were never trained on (gain over the base). "
        if judges
        else f"What judges that nobody trained on say has no rows: `{JUDGES_COMMAND}` makes them. "
    )
    words = (
        "A small text-to-image transformer (SD3's architecture, 24 × 24 pixels, LoRA) is post-trained by DiffusionNFT "
        f"with {len(rewards)} rewards. Every method sees the same prompts, takes the same number of optimizer steps "
        f"and starts from the same model; {span(seeds_of(rows))}. Gains are over the pretrained model on "
        "held-out prompts, mean ± 95 % t-interval over seeds. *Composite* is the mean over the rewards of the gain in "
        "units of the base model's standard deviation over images, *worst* the lowest of them. A *specialist* spends "
        f"the whole budget on one reward: a reference, not a rival. {LEGEND}"
    )
    more = judge_text + (
        "A conflict is an optimizer step whose combined gradient, or whose real change of the parameters, opposes at "
        "least one active reward of its batch: the share of such steps (of those that solve anew, where that is every "
        "tenth). Time is that of training (without rollouts) "
        "per step, relative to the weighted sum's."
    )
    return "\n\n".join(
        [
            head + words,
            score_table(rows, methods, {name: tail(name) for name in quality}, reference=_base(rows, quality)),
            more,
            score_table(rows, methods, secondary, times=pick(everything, task=TIMED) or rows),
            _reading(rows, methods, [*rewards, *judges]),
            *([f"Not run: {', '.join(left_out)}."] if (left_out := page.left_out("tiny")) else []),
            _figure(page, rows, methods, [*quality, *(name for name in judges if tail(name) in _DRAWN)]),
        ]
    )


def tiny_rows(page: Page) -> list[Row]:
    """The runs' rows, with what the judges say of their images, and with gains."""
    judged = {(row["method"], row["seed"]): row["values"] for row in page.rows("tiny_judges")}
    joined = [
        row
        | {"values": row["values"] | (judged.get((row["method"], row["seed"]), {}) if row["task"] == "tiny" else {})}
        for row in page.rows("tiny")
    ]
    return with_gains(joined)


def with_gains(rows: Sequence[Row]) -> list[Row]:
    """Rows that hold gain/<reward> too: held-out minus the base model's, where the run did not say so itself."""
    start = {name: value for row in pick(rows, method=BASE) for name, value in row["values"].items()}
    completed = []
    for row in rows:
        gains = {
            name.replace("heldout/", "gain/"): value - start[name]
            for name, value in row["values"].items()
            if name.startswith("heldout/") and name in start and row["method"] != BASE
        }
        completed.append(row | {"values": gains | row["values"]})
    return completed


def _base(rows: Sequence[Row], metrics: Sequence[str]) -> list[str]:
    """The line of the base model's held-out values, if the rows have them."""
    start = {name: value for row in pick(rows, method=BASE) for name, value in row["values"].items()}
    values = [start.get(metric.replace("gain/", "heldout/")) for metric in metrics]
    return ["*base model, value*", "", *("" if v is None else f"{v:.3f}" for v in values)] if start else []


def _reading(rows: Sequence[Row], methods: Sequence[str], metrics: Sequence[str]) -> str:
    rivals = [name for name in methods if not name.startswith(SPECIALIST)]
    topics = {"composite": "Composite", "worst": "Worst reward", "conflict/step": "Conflicts of the step taken"}
    sentences = [sentence(rows, rivals, name, words) for name, words in topics.items() if metrics_of(rows, name)]
    better = [name for name in metrics if mark(rows, MARBLE, name) == " ▲"]
    worse = [name for name in metrics if mark(rows, MARBLE, name) == " ▼"]
    sentences.append(
        f"Of {len(metrics)} rewards and judges, plain Marble is above the weighted sum in {_counted(better)}, below it "
        f"in {_counted(worse)}, and not told apart in {len(metrics) - len(better) - len(worse)}."
    )
    return reading(sentences)


def _counted(metrics: Sequence[str]) -> str:
    return f"{len(metrics)} ({', '.join(map(tail, metrics))})" if metrics else "0"


def _figure(page: Page, rows: Sequence[Row], methods: Sequence[str], metrics: Sequence[str]) -> str:
    count = len(metrics) + 1
    down = -(-count // _ACROSS)
    figure, axes = canvas(down, _ACROSS, 12, 0.6 + down * (0.9 + 0.19 * len(methods)), sharey=True)
    panels = list(axes.flat)
    for ax, metric in zip(panels, metrics, strict=False):
        ax.axvline(0, color="0.6", lw=0.8)
        judge = "judge: " if metric.startswith("judge/") else ""
        panel(ax, rows, methods, metric, f"{judge}{tail(metric)}, gain")
    last = panels[len(metrics)]
    for metric, marker in zip(CONFLICTS, ("s", "o"), strict=True):
        found = {name: _percent(mean_of(rows, name, metric)) for name in methods}
        whiskers(last, found, {name: colour(name) for name in methods}, marker)
    last.set_xlim(left=-1)
    tidy(last, "steps against a reward, %\n(□ gradient, ○ step taken)")
    for ax in panels[count:]:
        ax.axis("off")
    for line in axes:
        names_on_y(line[0], [short(method) for method in methods])
    families_legend(figure, panels[0], methods)
    shown = [row for row in rows if row["method"] != BASE]
    facts = f"tiny text-to-image model, {span(seeds_of(rows))}, {_steps(shown)} optimizer steps"
    caption(figure, f"{facts}; mean ± 95 % interval over seeds; grey: the weighted sum's; {conditions(shown)}")
    return page.save(figure, "tiny", "Gain of every reward and share of conflicting steps, per method")


def _steps(rows: Sequence[Row]) -> str:
    """Epochs times steps per epoch."""
    steps = {
        s["epochs"] * s.get("optimizer.steps_per_epoch", 1) for s in (r["settings"] for r in rows) if "epochs" in s
    }
    return "/".join(map(str, sorted(steps)))


def _percent(value: Interval) -> Interval:
    return Interval(100 * value.mean, 100 * value.half, value.count, value.failed)
