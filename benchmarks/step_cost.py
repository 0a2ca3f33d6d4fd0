"""Question: what does balancing cost against a weighted sum, in time and memory, as K grows?

    python benchmarks/step_cost.py                    mid-size SD3-type transformer on a CPU, K = 5 and 20
    python benchmarks/step_cost.py --model tiny       the tiny model, K = 1, 2, 5, 10, 20
    python benchmarks/step_cost.py --model sd35 --device cuda    SD3.5 Medium's architecture, random weights, bf16
    python benchmarks/step_cost.py --plot             draw results/step_cost.png from results/step_cost.jsonl only

Every form trains the same LoRA on the same batches with DiffusionNFT's loss. Forms are measured in turn, round by
round, in one process; a row is the median over rounds with the 20 % and 80 % quantiles. An iteration of the recipe is
25 sampler steps and 24 micro-steps (old, reference and current forward, and the backward passes); its time is put
together from the measured time of a sampler step and of a micro-step. "Speed" is that of the weighted sum in the
same round divided by the form's.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from datetime import date
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

import marble_opt

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))
from step_cost_forms import MIXED, MODELS, SUM, Form, Setting, forms  # noqa: E402

from trainer.rows import commit, hardware  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "step_cost.jsonl"
SAMPLER_STEPS, MICRO_STEPS = 25, 24
PLOTTED = (
    "TorchJD MGDA",
    "K-loop",
    "exact, paper's anchor",
    "exact, shared anchor",
    "exact, shared every 8",
    "probe 1/8",
    "amortised, refresh every 10",
)


def measure(form: Form, device: str) -> float:
    """Seconds per micro-step, the optimizer's step included in proportion."""
    _wait(device)
    start = time.perf_counter()
    form.run()
    _wait(device)
    return (time.perf_counter() - start) / form.micro_steps


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def benchmark(name: str, device: str, rounds: int, checkpointing: bool) -> list[dict]:
    """All rows of one model."""
    setting = Setting(name, device, checkpointing)
    facts = {
        "benchmark": "step_cost",
        "seed": 0,
        "settings": {"model": name, "checkpointing": checkpointing, "rounds": rounds, "batch": setting.batch},
        "hardware": hardware(),
        "versions": {
            "marble_opt": marble_opt.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "commit": commit(),
        "date": date.today().isoformat(),
    }
    t = torch.full((setting.batch,), 0.5, device=device)
    rows = []
    for rewards in MODELS[name]["rewards"]:
        makers = forms(setting, rewards)
        times: dict[str, list[float]] = {form: [] for form in makers}
        sampler: list[float] = []
        peaks: dict[str, int] = {}
        for turn in range(rounds + 1):
            start = time.perf_counter()
            with torch.no_grad():
                setting.velocity(setting.x_0, t)
            _wait(device)
            sampler.append(time.perf_counter() - start)
            for form, maker in makers.items():
                instance = maker()
                if device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                if form == MIXED:
                    measure(instance, device)  # the refresh that it lives on
                seconds = measure(instance, device)
                instance.close()
                if turn:
                    times[form].append(seconds)
                if device == "cuda":
                    peaks[form] = torch.cuda.max_memory_allocated()
            print(f"{name} K={rewards}: round {turn} of {rounds}", flush=True)
        rows += _rows(times, sampler[1:], peaks, rewards, facts)
    return rows


def _rows(times: dict, sampler: list[float], peaks: dict, rewards: int, facts: dict) -> list[dict]:
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
            low, middle, high = _quantiles(found)
            row = {"method": form, "rewards": rewards, "metric": metric, "value": middle, "q20": low, "q80": high}
            rows.append(facts | row)
    return rows


def _quantiles(values: list[float]) -> tuple[float, float, float]:
    ordered = sorted(values)
    pick = lambda share: ordered[round(share * (len(ordered) - 1))]  # noqa: E731
    return pick(0.2), statistics.median(ordered), pick(0.8)


def table(rows: list[dict]) -> str:
    """Speeds against the weighted sum, a line per form and a column per K."""
    shown = [row for row in rows if row["metric"] == "speed"]
    columns = sorted({row["rewards"] for row in shown})
    lines = [f"{'speed, rollouts counted':<32}" + "".join(f"{f'K = {k}':>20}" for k in columns)]
    for form in dict.fromkeys(row["method"] for row in shown):
        cells = {row["rewards"]: row for row in shown if row["method"] == form}
        found = (cells[k] for k in columns)
        lines.append(
            f"{form:<32}" + "".join(f"{c['value']:>8.2f} [{c['q20']:.2f}, {c['q80']:.2f}]".rjust(20) for c in found)
        )
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
        ax.set_xlabel("number of rewards K")
        ax.set_ylabel("time of an iteration / weighted sum")
        ax.set_title(f"{model} model, {device}", fontsize=10)
        ax.legend(fontsize=7)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    """Measure, append rows, print the table; or plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="mid")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--plot", action="store_true", help="only draw from the committed rows")
    arguments = parser.parse_args()
    if not arguments.plot:
        rows = benchmark(arguments.model, arguments.device, arguments.rounds, arguments.checkpointing)
        RESULTS.parent.mkdir(exist_ok=True)
        with open(RESULTS, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        print(table(rows))
    plot([json.loads(line) for line in RESULTS.read_text().splitlines()], RESULTS.with_suffix(".png"))
    print(RESULTS.with_suffix(".png"))


if __name__ == "__main__":
    main()
