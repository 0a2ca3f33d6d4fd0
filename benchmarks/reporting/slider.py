"""The section on models with a slider between rewards, from slider.jsonl."""

from collections.abc import Sequence
from statistics import mean

from comparison.rows import Row

from .blocks import score_table, span
from .gathered import Number, gather
from .markdown import conditions
from .page import Page, absent
from .selection import BASE, MARBLE, distinct, label, metrics_of, pick, seeds_of
from .verdicts import mean_of, reading, sentence

COMMAND = "python benchmarks/slider.py"
LINEAR, BALANCED, FIXED = "slider", "balanced slider", "fixed weights"
_METHODS = (FIXED, "short soup", "soup", LINEAR, BALANCED)
COMPOSITION = "judge/composition"
_OF_FIVE = "front/{}/hypervolume_of_five"
_PER_STEP = ("/spacing", "/monotone")
_SHOWN = {
    "front/trained/hypervolume": "hypervolume",
    _OF_FIVE.format("trained"): "of five points",
    "front/trained/spacing": "spacing",
    "front/trained/monotone": "monotone",
    "front/trained/span": "span",
    "front/judges/hypervolume": "judges: hypervolume",
    _OF_FIVE.format("judges"): "judges: of five points",
    COMPOSITION: "composition",
}


def section(page: Page) -> str:
    """Text, table, reading and figure."""
    head = "## Does one model with a slider reach the front of several models?\n\n"
    measured, rows = page.measured("slider"), slider_rows(page)
    methods = [name for name in _METHODS if metrics_of(pick(rows, method=name), "front/")]
    if not methods:
        return head + absent("the sliders", COMMAND)
    (first, second), reference = _front(measured, "trained")
    judges, _ = _front(measured, "judges")
    words = (
        "A slider (ParetoSlider, arXiv 2604.20816) is one LoRA conditioned on the preference ω between rewards, here "
        f"{first} against {second} on the small text-to-image model: trained on the sum of the z-scored rewards with "
        "the weights ω, or *balanced* by Marble under these priors. Rivals are runs with *fixed weights* and the same "
        "normalisation, one per point, and rewarded soups (arXiv 2306.04488) between two runs of one reward each "
        "(*short*: between the outermost of the runs with fixed weights). Epochs of training in all: "
        f"{_epochs(measured, methods)}; {span(seeds_of(rows))}. The pair of rewards, the learning rates and the length "
        "were chosen on another seed by the slider alone; the others took them over."
    )
    more = (
        f"*Hypervolume*: the area between a front on held-out prompts and the point {reference}, fixed before the "
        "runs; *of five points*: all fronts at the resolution of the fixed weights. *Spacing*: standard deviation "
        "over mean of the steps between equal steps of ω, 0 if even; *monotone*: the share of these that raise "
        f"{first} and do not raise {second} (of the fixed weights, over fewer and larger steps); *span*: the distance "
        f"between the ends. *Judges*, which no run was trained on, are {' and '.join(judges)}; so is "
        "composition, here the mean over ω. Mean ± 95 % t-interval over seeds; ▲ and ▼: above and below the fixed "
        "weights of the same seeds (95 % interval of the paired difference excludes 0). Measured on "
        f"{conditions(measured)}."
    )
    lines = score_table(rows, methods, _SHOWN, reference=_base(rows), other=FIXED, unsigned=("front/", "judge/"))
    figure = page.drawn("slider", "Fronts of sliders, fixed weights and soups, and each reward over ω")
    return "\n\n".join([head + words, more, lines, _reading(rows, methods), *figure])


def slider_rows(page: Page) -> list[Row]:
    """A row per method and seed: what was measured of its fronts, and its mean composition over ω."""
    measured = page.measured("slider")
    points = [row for row in measured if row["metric"] == "heldout/composition"]
    kept = [row for row in measured if row["omega"] is None]
    for method, seed in dict.fromkeys((row["method"], row["seed"]) for row in points):
        found = [row for row in points if (row["method"], row["seed"]) == (method, seed)]
        kept.append(found[0] | {"metric": COMPOSITION, "value": mean(row["value"] for row in found)})
    return gather(kept, lambda row: ("slider", row["method"]))


def compared(page: Page) -> list[Row]:
    """The same rows, with the balanced slider as Marble, which it is among them.

    Without what was measured over the steps between points where these are fewer.
    """
    rows = [row | {"method": MARBLE if row["method"] == BALANCED else row["method"]} for row in slider_rows(page)]
    for row in rows:
        if row["method"] == FIXED:
            row["values"] = {name: value for name, value in row["values"].items() if not name.endswith(_PER_STEP)}
    return rows


def _front(measured: Sequence[Number], front: str) -> tuple[list[str], str]:
    """The two values of a front, and the point that its hypervolume is measured from."""
    settings = next(row["settings"] for row in measured if row["metric"].startswith(f"front/{front}/"))
    return settings["front"], f"({', '.join(map(str, settings['reference']))})"


def _epochs(measured: Sequence[Number], methods: Sequence[str]) -> str:
    found = {row["method"]: row["settings"]["epochs"] for row in measured}
    return ", ".join(f"{label(name)} {found[name]}" for name in methods)


def _base(rows: Sequence[Row]) -> list[str]:
    value = mean_of(rows, BASE, COMPOSITION).mean
    return ["*base model, value*", *[""] * len(_SHOWN), f"{value:.3f}"] if BASE in distinct(rows, "method") else []


def _reading(rows: Sequence[Row], methods: Sequence[str]) -> str:
    sliders = [name for name in (LINEAR, BALANCED) if name in methods]
    sentences = []
    for front, whose in (("trained", "Hypervolume"), ("judges", "The judges' hypervolume")):
        words = f"{whose} of five points"
        metric = _OF_FIVE.format(front)
        sentences.append(sentence(rows, methods, metric, words, FIXED))
        sentences.append(sentence(rows, [*sliders, "soup"], metric, f"{words}, sliders and soup", "soup"))
        sentences.append(sentence(rows, sliders, metric, f"{words}, balanced or not", LINEAR))
    sentences.append(sentence(rows, [*sliders, "soup"], "front/trained/spacing", "Spacing (0 is even)", "soup"))
    sentences.append(sentence(rows, methods, COMPOSITION, "Composition, on which no run was trained", BASE))
    return reading(sentences)
