"""Question: what does balancing cost against a weighted sum, in time and memory, as K grows?

    python benchmarks/step_cost.py                    mid-size SD3-type transformer on a CPU, K = 1, 2, 5, 10, 20
    python benchmarks/step_cost.py --model tiny       the tiny model
    python benchmarks/step_cost.py --model sd35 --device cuda    SD3.5 Medium's architecture, random weights, bf16
    python benchmarks/step_cost.py --plot             draw results/step_cost.png from results/step_cost.jsonl only

Every form trains the same LoRA on the same batches with DiffusionNFT's loss. Forms are measured in turn, round by
round, in one process; a row is the median over rounds with the 20 % and 80 % quantiles. An iteration of the recipe is
25 sampler steps and 24 micro-steps (old, reference and current forward, and the backward passes); its time is put
together from the measured time of a sampler step and of a micro-step, of which 8 make an optimizer step (1 or 2 in the
slow forms). "Speed" is that of the weighted sum in the same round divided by the form's. Peak memory is what a step
allocates beyond the model, the optimizer and the batch.
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from measure import RESULTS, facts, quantiles, seconds, store
from step_cost_forms import MIXED, MODELS, SUM, Setting, forms
from step_cost_memory import peak_bytes
from step_cost_rivals import rivals

FILE = RESULTS / "step_cost.jsonl"
SAMPLER_STEPS, MICRO_STEPS = 25, 24
PLOTTED = (
    "TorchJD autogram MGDA",
    "TorchJD autojac MGDA",
    "K-loop",
    "exact, paper's anchor",
    "exact, shared anchor",
    "exact, shared every 8",
    "probe 1/8",
    "amortised, refresh every 10",
)


def benchmark(name: str, device: str, rounds: int, checkpointing: bool, counts: list[int] | None) -> list[dict]:
    """All rows of one model; ``counts``: the values of K."""
    setting = Setting(name, device, checkpointing)
    shared = facts(
        "step_cost",
        {"model": name, "checkpointing": checkpointing, "rounds": rounds, "batch": setting.batch},
    )
    t = torch.full((setting.batch,), 0.5, device=device)
    rows = []
    for rewards in MODELS[name]["rewards"] if counts is None else counts:
        makers = forms(setting, rewards) | rivals(setting, rewards)
        times: dict[str, list[float]] = {form: [] for form in makers}
        sampler: list[float] = []
        peaks: dict[str, int] = {}
        for turn in range(rounds + 1):
            with torch.no_grad():
                sampler.append(seconds(lambda: setting.velocity(setting.x_0, t), device))
            for form, maker in makers.items():
                instance = maker()
                if form == MIXED:
                    # The refresh that it lives on.
                    instance.run(1)
                if turn:
                    times[form].append(seconds(instance.run, device) / instance.micro_steps)
                else:
                    peaks[form] = peak_bytes(instance.run, device)
                instance.close()
            print(f"{name} K={rewards}: round {turn} of {rounds}", flush=True)
        rows += _rows(times, sampler[1:], peaks, rewards, shared)
    return rows


def _rows(times: dict, sampler: list[float], peaks: dict, rewards: int, shared: dict) -> list[dict]:
    # Nine of ten steps of the amortised form are mixed ones.
    pairs = zip(times["exact, shared anchor"], times[MIXED], strict=True)
    times = {**times, "amortised, refresh every 10": [0.1 * exact + 0.9 * mixed for exact, mixed in pairs]}
    iterations = {
        form: [SAMPLER_STEPS * s + MICRO_STEPS * v for s, v in zip(sampler, values, strict=True)]
        for form, values in times.items()
    }
    rows = []
    for form in times:
        metrics = {
            "seconds_per_micro_step": times[form],
            "seconds_per_iteration": iterations[form],
            "step_speed": [plain / own for plain, own in zip(times[SUM], times[form], strict=True)],
            "speed": [plain / own for plain, own in zip(iterations[SUM], iterations[form], strict=True)],
        }
        if form in peaks:
            metrics["peak_bytes"] = [peaks[form]]
        for metric, found in metrics.items():
            rows.append(shared | {"method": form, "rewards": rewards, "metric": metric} | quantiles(found))
    return rows


def table(rows: list[dict]) -> str:
    """Speeds against the weighted sum and peak memory, a line per form and a column per K."""
    lines = []
    for metric, title, form_of in (
        ("speed", "speed, rollouts counted", lambda c: f"{c['value']:.2f} [{c['q20']:.2f}, {c['q80']:.2f}]"),
        ("peak_bytes", "peak memory of a step, MB", lambda c: f"{c['value'] / 1e6:.0f}"),
    ):
        shown = [row for row in rows if row["metric"] == metric]
        columns = sorted({row["rewards"] for row in shown})
        lines.append(f"{title:<32}" + "".join(f"{f'K = {k}':>20}" for k in columns))
        for form in dict.fromkeys(row["method"] for row in shown):
            cells = {row["rewards"]: row for row in shown if row["method"] == form}
            lines.append(f"{form:<32}" + "".join(f"{form_of(cells[k]):>20}" for k in columns))
    return "\n".join(lines)


def plot(rows: list[dict], path: Path) -> None:
    """Time of an iteration relative to the weighted sum against K, a panel per model and hardware."""
    rows = [row for row in rows if row["metric"] == "speed"]
    panels = list(dict.fromkeys((row["settings"]["model"], row["hardware"]) for row in rows))
    figure, axes = plt.subplots(1, len(panels), figsize=(6.5 * len(panels), 4.5), layout="constrained", squeeze=False)
    for ax, (model, device) in zip(axes.flat, panels, strict=True):
        own = [row for row in rows if (row["settings"]["model"], row["hardware"]) == (model, device)]
        for form in PLOTTED:
            found = {row["rewards"]: row for row in own if row["method"] == form}
            counts = sorted(found)
            cost = [1 / found[k]["value"] for k in counts]
            spread = [[abs(1 / found[k][q] - c) for k, c in zip(counts, cost, strict=True)] for q in ("q80", "q20")]
            ax.errorbar(counts, cost, spread, marker="o", ms=4, capsize=3, label=form)
        ax.set_yscale("log")
        ax.set_yticks([0.8, 1, 1.5, 2, 3, 4, 5], ["0.8", "1", "1.5", "2", "3", "4", "5"])
        ax.minorticks_off()
        ax.set_xticks(sorted({row["rewards"] for row in own}))
        ax.axhline(1, color="0.7", lw=0.8, zorder=0)
        ax.set_xlabel("number of rewards K")
        ax.set_ylabel("time of an iteration / weighted sum")
        ax.set_title(f"{model} model, {device}", fontsize=10)
        ax.legend(fontsize=7)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _key(row: dict) -> tuple:
    return row["settings"]["model"], row["settings"]["checkpointing"], row["hardware"], row["rewards"]


def main() -> None:
    """Measure, append rows, print the table; or plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="mid")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rewards", type=int, nargs="+", help="values of K; default: 1 2 5 10 20")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--plot", action="store_true", help="only draw from the committed rows")
    arguments = parser.parse_args()
    if not arguments.plot:
        rows = benchmark(
            arguments.model, arguments.device, arguments.rounds, arguments.checkpointing, arguments.rewards
        )
        store(rows, FILE, _key)
        print(table(rows))
    plot([json.loads(line) for line in FILE.read_text().splitlines()], FILE.with_suffix(".png"))
    print(FILE.with_suffix(".png"))


if __name__ == "__main__":
    main()
