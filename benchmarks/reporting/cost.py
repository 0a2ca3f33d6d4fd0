"""The cost section: time and memory of a step against K and against the refresh interval, from step_cost.jsonl."""

from collections.abc import Sequence

from .markdown import conditions, table
from .page import Page, absent
from .parts import subsections
from .plots import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, canvas, caption, tidy

COMMAND = "python benchmarks/step_cost.py"
MODEL = "mid"
SUM, MIXED, EXACT = "weighted sum", "mixed step", "exact, shared anchor"
# Row name → what the report calls it, colour, line.
FORMS = {
    SUM: ("weighted sum", BLACK, ":"),
    "probe 1/8": ("Marble, solved every step from 1/8 of the micro-batches", GREEN, "-"),
    "amortised, refresh every 10": ("Marble, solved every 10 steps", SKY, "-"),
    EXACT: ("Marble, exact every step, anchor shared", BLUE, "-"),
    "exact, paper's anchor": ("Marble, exact every step, the paper's anchor", PINK, "-"),
    "exact, shared every 8": ("Marble, exact every step, KL on every 8th micro-batch", GREEN, "--"),
    "weighted sum, KL every 8": ("weighted sum, KL on every 8th micro-batch", BLACK, "--"),
    "K-loop": ("one backward per reward", RED, "-"),
    "TorchJD autogram MGDA": ("TorchJD autogram, MGDA", ORANGE, "--"),
    "TorchJD autojac MGDA": ("TorchJD autojac, MGDA", GREY, "--"),
}
INTERVALS = (1, 2, 5, 10, 20, 50)

Rows = list[dict]
Cells = dict[tuple[str, int, str], dict]


def section(page: Page) -> str:
    """Text, table and figure."""
    head = "## What does a step cost?\n\n"
    rows = [row for row in page.measured("step_cost") if row["settings"]["model"] == MODEL]
    if not rows:
        return "\n\n".join([head + absent("the cost of a step", COMMAND), *subsections(page)])
    cells: Cells = {(row["method"], row["rewards"], row["metric"]): row for row in rows}
    counts = sorted({row["rewards"] for row in rows})
    words = (
        "Balancing needs one gradient per reward. One backward pass per reward makes training K times dearer; the "
        "factored backward gets all K from one pass per term of the loss. The time is that of a whole iteration of "
        "DiffusionNFT with a KL term (25 sampler steps, 24 timesteps) on an SD3-type transformer of 42 M parameters "
        "with LoRA of rank 8, relative to the weighted sum in the same rounds: median [20 %, 80 %] over rounds. "
        "Memory is what a step allocates beyond model, optimizer and batch. Forms that also take the KL term on every "
        "8th micro-batch only are to be compared with the weighted sum that does the same."
    )
    parts = [head + words, _table(cells, counts), _reading(cells, counts), _figure(page, rows, cells, counts)]
    parts += subsections(page)
    return "\n\n".join(parts)


def relative(cells: Cells, form: str, count: int) -> tuple[float, float, float] | None:
    """Time of an iteration over that of the weighted sum: median, 20 % and 80 % quantile."""
    row = cells.get((form, count, "speed"))
    return None if row is None else (1 / row["value"], 1 / row["q80"], 1 / row["q20"])


def refreshed(cells: Cells, count: int, interval: int) -> float:
    """Relative time if weights are solved every ``interval`` steps: the mean of one exact and N − 1 mixed steps."""
    exact, mixed = (1 / cells[form, count, "speed"]["value"] for form in (EXACT, MIXED))
    return exact / interval + mixed * (1 - 1 / interval)


def _table(cells: Cells, counts: Sequence[int]) -> str:
    shown = [count for count in counts if count in (2, 5, 20)] or counts
    header = ["form", *(f"time, K = {k}" for k in shown), *(f"MB, K = {k}" for k in shown)]
    lines = []
    for form, (words, _, _) in FORMS.items():
        times = [relative(cells, form, count) for count in shown]
        texts = ["" if t is None else f"{t[0]:.2f} [{t[1]:.2f}, {t[2]:.2f}]" for t in times]
        peaks = [_megabytes(cells, form, count) for count in shown]
        if any(texts):
            lines.append([words, *texts, *("" if peak is None else f"{peak:.0f}" for peak in peaks)])
    return table(header, lines)


def _megabytes(cells: Cells, form: str, count: int) -> float | None:
    # An amortised step is dearest when it refreshes.
    row = cells.get((EXACT if form.startswith("amortised") else form, count, "peak_bytes"))
    return None if row is None else row["value"] / 1e6


def _reading(cells: Cells, counts: Sequence[int]) -> str:
    """Of the table's numbers: those of two rewards, where they were measured, and of the most."""
    most, least = counts[-1], next((count for count in counts if count > 1), counts[0])
    sentences = []
    for form in ("probe 1/8", EXACT, "K-loop"):
        times = [relative(cells, form, count) for count in (least, most)]
        if None not in times:
            few, many = (t[0] for t in times)
            sentences.append(
                f"{FORMS[form][0]}: {few:.2f} times the weighted sum at K = {least}, {many:.2f} at K = {most}"
            )
    memory = [(FORMS[form][0], _megabytes(cells, form, most)) for form in FORMS if form != SUM]
    known = [(peak, words) for words, peak in memory if peak is not None]
    plain = _megabytes(cells, SUM, most)
    text = "Reading: " + "; ".join(sentences) + "."
    if known and plain:
        text += (
            f" At K = {most} a step of the weighted sum takes {plain:.0f} MB; the other forms take from "
            f"{min(known)[0]:.0f} ({min(known)[1]}) to {max(known)[0]:.0f} MB ({max(known)[1]})."
        )
    return text + " Nothing here was measured on a GPU." * all("NVIDIA" not in r["hardware"] for r in cells.values())


def _figure(page: Page, rows: Rows, cells: Cells, counts: Sequence[int]) -> str:
    figure, axes = canvas(1, 3, 12, 5.4)
    time, memory, refresh = axes[0]
    for form, (words, colour, line) in FORMS.items():
        found = [(k, relative(cells, form, k)) for k in counts if relative(cells, form, k)]
        if found and form != SUM:
            places, values = [k for k, _ in found], [t[0] for _, t in found]
            spread = [[t[0] - t[1] for _, t in found], [t[2] - t[0] for _, t in found]]
            time.errorbar(places, values, spread, color=colour, ls=line, marker="o", ms=3.5, capsize=2, label=words)
        peaks = [(k, _megabytes(cells, form, k)) for k in counts if _megabytes(cells, form, k) is not None]
        if peaks:
            memory.plot(*zip(*peaks, strict=True), color=colour, ls=line, marker="o", ms=3.5, label=words)
    time.set_yscale("log")
    time.set_yticks([0.8, 1, 1.5, 2, 3, 4, 5], ["0.8", "1", "1.5", "2", "3", "4", "5"])
    time.minorticks_off()
    time.axhline(1, color=BLACK, ls=":", lw=1)
    memory.set_ylim(0)
    for ax in (time, memory):
        ax.set_xticks(counts)
    tidy(time, "time of an iteration / weighted sum", "number of rewards K")
    tidy(memory, "memory of a step, MB", "number of rewards K")
    for count, colour in zip((counts[len(counts) // 2], counts[-1]), (BLUE, RED), strict=True):
        values = [refreshed(cells, count, interval) for interval in INTERVALS]
        refresh.plot(INTERVALS, values, color=colour, marker="o", ms=3.5, label=f"K = {count}")
    refresh.axhline(1, color=BLACK, ls=":", lw=1)
    refresh.set_xscale("log")
    refresh.set_xticks(INTERVALS, [str(interval) for interval in INTERVALS])
    refresh.minorticks_off()
    refresh.legend(fontsize=8.5, frameon=False)
    tidy(refresh, "time / weighted sum, solved every N steps", "refresh interval N (from exact and mixed steps)")
    figure.legend(*memory.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    rounds = sorted({row["settings"]["rounds"] for row in rows})
    facts = f"{MODEL} model (42 M parameters, LoRA), batch {rows[0]['settings']['batch']}, rounds {rounds}"
    caption(figure, f"{facts}, median with 20 % and 80 % quantiles; {conditions(rows)}")
    return page.save(figure, "cost", "Time and memory of a step against the number of rewards and the refresh interval")
