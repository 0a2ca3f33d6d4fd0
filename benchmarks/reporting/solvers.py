"""The section on solvers and kernels, from kernels.jsonl."""

from collections.abc import Sequence

from . import host
from .markdown import conditions, number, table
from .page import Page, absent
from .plots import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, canvas, caption, tidy

OURS = "marble_opt"
COMMAND, GPU_COMMAND = "python benchmarks/kernels.py", "python benchmarks/gpu_check.py"
BATCH, ALONE, GAP = "seconds_per_problem_batch", "seconds_per_problem_alone", "relative_gap_worst"
COLOURS = dict(
    zip(
        (OURS, "quadprog", "qpth", "TorchJD MGDA", "cvxpy OSQP", "cvxpy Clarabel", "scipy SLSQP"),
        (GREEN, BLUE, ORANGE, RED, PINK, SKY, GREY),
        strict=True,
    )
)

Cells = dict[tuple[str, int, str], dict]


def section(page: Page) -> str:
    """Text, tables and figure."""
    head = "## How fast and how exact is the solver?\n\n"
    rows = page.measured("kernels")
    if not rows:
        return head + absent("solvers and kernels", COMMAND)
    hosts = [row for row in rows if row.get("benchmark") == host.BENCHMARK]
    rows = [row for row in rows if row.get("benchmark") != host.BENCHMARK]
    solvers = [row for row in rows if "elements" not in row["settings"]]
    parts = [head + _solvers(page, [row for row in solvers if "NVIDIA" not in row["hardware"]])]
    kernels = [row for row in rows if "elements" in row["settings"]]
    return "\n\n".join([*parts, _kernels(kernels), host.paragraph(hosts)])


def _solvers(page: Page, rows: list[dict]) -> str:
    if not rows:
        return absent("the solvers on a CPU", COMMAND)
    cells: Cells = {(row["method"], row["rewards"], row["metric"]): row for row in rows}
    names, sizes = list(dict.fromkeys(row["method"] for row in rows)), sorted({row["rewards"] for row in rows})
    words = (
        "Each step solves one small quadratic programme, the shortest point of the convex hull of K gradients. The "
        "problems are Gram matrices of conflicting gradients, the same for all solvers; µs per problem, median over "
        "rounds. The gap is αᵀGα − min (Gα)_k relative to the trace, zero at the optimum; the worst of all problems is "
        f"shown. A star marks times from the first part of the batch only: {_parts(rows)}."
    )
    shown = [size for size in sizes if size in (2, 5, 32)] or sizes
    header = [
        "solver",
        *(f"in a batch of 1000, K = {k}" for k in shown),
        *(f"alone, K = {k}" for k in shown),
        "worst gap",
    ]
    lines = []
    for name in names:
        times = [_time(cells.get((name, k, metric))) for metric in (BATCH, ALONE) for k in shown]
        gaps = [row["value"] for (own, _, metric), row in cells.items() if (own, metric) == (name, GAP)]
        lines.append([name, *times, number(max(gaps)) if gaps else ""])
    return "\n\n".join([words, table(header, lines), _reading(cells, names, sizes), _figure(page, rows, cells, sizes)])


def _parts(rows: list[dict]) -> str:
    part = {row["method"]: row["settings"]["problems"] for row in rows if row["settings"]["extrapolated"]}
    return ", ".join(f"{name} {count}" for name, count in part.items()) or "none"


def _time(row: dict | None) -> str:
    if row is None:
        return ""
    star = "*" if row["metric"] == BATCH and row["settings"]["extrapolated"] else ""
    return number(row["value"] * 1e6) + star


def _reading(cells: Cells, names: Sequence[str], sizes: Sequence[int]) -> str:
    """Who is fastest at each K, and how far ours is from it."""
    sentences = []
    for metric, words in ((BATCH, "in a batch"), (ALONE, "alone")):
        faster = []
        for size in sizes:
            times = {name: cells[name, size, metric]["value"] for name in names if (name, size, metric) in cells}
            best = min(times, key=lambda name: times[name])
            if best != OURS and OURS in times:
                faster.append(f"{best} at K = {size} ({times[OURS] / times[best]:.1f} times as fast as ours)")
        sentences.append(
            f"{words}, ours is the fastest at every K"
            if not faster
            else f"{words}, faster than ours: {', '.join(faster)}"
        )
    return "Reading: " + "; ".join(sentences) + "."


def _figure(page: Page, rows: list[dict], cells: Cells, sizes: Sequence[int]) -> str:
    figure, axes = canvas(1, 3, 12, 4.3)
    panels = ((BATCH, "µs per problem, in a batch of 1000", 1e6), (ALONE, "µs per problem, alone", 1e6))
    for ax, (metric, title, unit) in zip(axes[0], (*panels, (GAP, "worst relative gap", 1)), strict=True):
        for name in dict.fromkeys(row["method"] for row in rows):
            found = [(k, cells[name, k, metric]["value"] * unit) for k in sizes if (name, k, metric) in cells]
            # A gap of exactly zero is below what fp64 resolves.
            places, values = [k for k, _ in found], [max(value, 1e-18) for _, value in found]
            ax.plot(places, values, color=COLOURS.get(name, BLACK), marker="o", ms=4, label=name)
        ax.set_yscale("log")
        ax.set_xscale("log")
        ax.set_xticks(sizes, [str(k) for k in sizes])
        ax.minorticks_off()
        tidy(ax, title, "number of rewards K")
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=7, fontsize=8, frameon=False
    )
    caption(figure, f"{rows[0]['settings']['rounds']} rounds in turn; {conditions(rows)}")
    return page.save(figure, "solvers", "Time and accuracy of min-norm solvers against the number of rewards")


def _kernels(rows: list[dict]) -> str:
    if not rows:
        return (
            "The Triton kernels have no rows yet, as they need a GPU. On a machine that has one, "
            f"`{GPU_COMMAND}` makes them. Until then nothing is known of their speed."
        )
    lines = []
    for row in rows:
        settings = row["settings"]
        what = [str(settings[key]) for key in ("dtype", "layout") if key in settings]
        spread = f"{number(row['value'])} [{number(row['q20'])}, {number(row['q80'])}]"
        lines.append([row["method"], " ".join(what), str(settings.get("rewards", 1)), row["metric"], spread])
    words = f"The kernels on a GPU, median [20 %, 80 %]; {conditions(rows)}."
    return words + "\n\n" + table(["kernel", "data", "K", "metric", "value"], lines)
