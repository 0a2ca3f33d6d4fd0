"""The rows of a run as Markdown."""

from collections import Counter, defaultdict

from .training import MODES

OUTCOMES = ("factored", "partly", "loop", "none", "skipped", "error")
EXPLANATIONS = {
    "factored": "one backward per loss term gave the rows of all parameters",
    "partly": "of some; the others took one backward per reward",
    "loop": "of none",
    "none": "there is nothing to train so: no such layer, or an adapter that breaks the model's own call",
    "skipped": "not run, with the reason",
    "error": "an exception or the time limit",
}
# Rows are computed in fp32.
SUSPICIOUS = 1e-3
TITLES = {"transformer": "Transformers", "unet": "UNets", "peft": "Tuners of peft"}


def markdown(rows: list[dict]) -> str:
    """Counts per family and mode, then one table per family."""
    parts = ["# Which models and adapters take the factored route", _introduction(rows), _counts(rows)]
    for family, title in TITLES.items():
        own = [row for row in rows if row["family"] == family]
        if own:
            parts += [f"## {title}", _family(own)]
    return "\n\n".join(parts) + "\n"


def _introduction(rows: list[dict]) -> str:
    measured = [row for row in rows if "worst_error" in row]
    wrong = [row for row in measured if not row["worst_error"] < SUSPICIOUS]
    listed = "; ".join(f"{row['class']}, {row['mode']}" for row in wrong)
    meanings = "\n".join(f"- **{name}**: {text}" for name, text in EXPLANATIONS.items())
    return (
        f"{meanings}\n\nPasses: backwards of the last of three steps, of M loss terms and K rewards; K more are of "
        "parameters that fell back. Error: worst parameter of the combined gradient, against one backward per reward "
        "of an unwatched copy, relative to the parameter's own gradient with a floor of 1 % of the usual size. Time: "
        '`backward()` relative to `route="loop"` in the same round, median [lowest, highest] of five; these models are '
        "so small that calls, not arithmetic, are what takes time.\n\n"
        f"Errors above {SUSPICIOUS:g}: {len(wrong)} of {len(measured)} cases{f' ({listed})' if listed else ''}."
    )


def _counts(rows: list[dict]) -> str:
    found: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for row in rows:
        found[row["family"], row["mode"]][row["outcome"]] += 1
    lines = [_line(["family", "trained", *OUTCOMES]), "|---" * (2 + len(OUTCOMES)) + "|"]
    for (family, mode), counts in found.items():
        lines.append(_line([family, MODES.get(mode, mode), *(str(counts[each] or "") for each in OUTCOMES)]))
    return "\n".join(lines)


def _family(rows: list[dict]) -> str:
    head = ["class", "mode", "trained", "outcome", "passes (M, K)", "error", "time / loop", "not covered because"]
    lines = [_line(head), "|---" * len(head) + "|"]
    for row in rows:
        reasons = "; ".join(row.get("reasons", [])).replace("|", "\\|").replace("\n", " ")
        cells = [row["class"], row["mode"], "", f"{row['outcome']}", "", "", "", reasons]
        if "passes" in row:
            cells[2] = f"{row['trained_tensors']} tensors, {row['trained_elements']}"
            cells[4] = f"{row['passes']} ({row['terms']}, {row['rewards']})"
            cells[5] = f"{row['worst_error']:.0e}"
            ratio, low, high = (row[f"backward_ratio{end}"] for end in ("", "_low", "_high"))
            cells[6] = f"{ratio:.2f} [{low:.2f}, {high:.2f}]"
        lines.append(_line(cells))
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
