"""Question: where do the time and the memory of an epoch on a large model go, and does memory leak?

    python benchmarks/epoch.py --kind sd3 --size tiny                seconds on a CPU, checks the benchmark itself
    python benchmarks/epoch.py --kind sd3 --size medium --device cuda --store
    python benchmarks/epoch.py --kind kontext --size full --device cuda --checkpointing --store
    python benchmarks/epoch.py --kind ltx2 --size full --device cuda --checkpointing --store
    python benchmarks/epoch.py --kind sd3 --model FOLDER --device cuda     a saved pipeline, for instance real weights

`--size` measures a pipeline with random weights, written once by `examples/make_pipeline.py`; times and memory do not
depend on the weights. Rewards are five statistics of the images, of videos' frames. One epoch is encoded, rolled out
without guidance, decoded and scored once; then come 20 optimizer steps of Marble with DiffusionNFT and a KL term, of
which the first 5 are left out of the quantiles and of the slope of memory. Rows are kept with --store only.
"""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from epoch_phases import PLANS, REWARDS, Epoch, Plan
from measure import RESULTS, ROOT, facts, quantiles, store, versions

from make_edits import make as make_edits
from make_pipeline import make
from prompts.pictures import SOURCE
from prompts.prompt import Prompt
from prompts.sources import SourceSettings, load_prompts

FILE = RESULTS / "epoch.jsonl"
WARM_UP = 5


def benchmark(
    model: str, kind: str, name: str, plan: Plan, device: str, precision: str, checkpointing: bool
) -> list[dict]:
    """The rows of one epoch; ``name`` stands for the model in them."""
    epoch = Epoch(model, prompts_of(kind, plan), plan, device, precision, checkpointing)
    epoch.run()
    settings = {
        "kind": kind,
        "model": name,
        "device": device,
        "precision": precision,
        "checkpointing": checkpointing,
        **asdict(plan),
    }
    shared = facts("epoch", settings) | {
        "versions": versions(("torch", "diffusers", "peft", "transformers")),
        "method": "marble",
        "rewards": len(REWARDS),
    }
    rows = []
    for phase, values in epoch.seconds.items():
        # Phases in a step are added up over its micro-steps.
        calls = len(values) // plan.steps if phase.startswith("train") else 1
        values = [sum(values[i : i + calls]) for i in range(0, len(values), calls)]
        kept = values[WARM_UP:] if phase.startswith("train") else values
        rows.append(shared | {"metric": "seconds", "phase": phase} | quantiles(kept))
    rows += [shared | {"metric": "peak_bytes", "phase": phase} | quantiles([v]) for phase, v in epoch.peak.items()]
    return [*rows, shared | {"metric": "bytes_per_step", "phase": "train"} | quantiles([slope(epoch.held[WARM_UP:])])]


def prompts_of(kind: str, plan: Plan) -> list[Prompt]:
    """Prompts that a pipeline of this kind serves; Kontext's have a picture, here all the same one."""
    if kind != "kontext":
        return load_prompts("general", SourceSettings("generated:general", count=plan.prompts), held_out=False)
    folder = make_edits(ROOT / "runs" / "epoch-edits", plan.prompts + 1, plan.resolution or 64)
    edits = load_prompts("edits", SourceSettings(str(folder)), held_out=False)
    picture = edits[0].metadata[SOURCE]
    return [replace(prompt, metadata={SOURCE: picture}) for prompt in edits]


def slope(values: list[int]) -> float:
    """Least-squares slope per step."""
    x = torch.arange(len(values), dtype=torch.float64)
    y = torch.tensor(values, dtype=torch.float64)
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y) / (x @ x))


def table(rows: list[dict]) -> str:
    """A line per phase: seconds with their quantiles, and the peak of memory."""
    peaks = {row["phase"]: row["value"] for row in rows if row["metric"] == "peak_bytes"}
    lines = [f"{'phase':<28}{'seconds':>10}{'20 %':>10}{'80 %':>10}{'peak MB':>10}"]
    for row in (row for row in rows if row["metric"] == "seconds"):
        peak = f"{peaks[row['phase']] / 1e6:.0f}" if row["phase"] in peaks else ""
        lines.append(f"{row['phase']:<28}{row['value']:>10.4f}{row['q20']:>10.4f}{row['q80']:>10.4f}{peak:>10}")
    return "\n".join([*lines, f"memory grows by {rows[-1]['value'] / 1e3:.1f} kB per step"])


def _key(row: dict) -> tuple:
    return json.dumps(row["settings"], sort_keys=True), row["hardware"]


def main() -> None:
    """Measure, print the table, keep the rows if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", help="folder or hub id of a pipeline")
    model.add_argument("--size", help="a pipeline with random weights")
    parser.add_argument("--kind", choices=list(PLANS), required=True, help="of pipeline")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["no", "bf16", "fp16"], help="default: bf16 on a GPU, no on a CPU")
    parser.add_argument("--resolution", type=int, help="pixels; default: 512, for tiny its own")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--store", action="store_true", help=f"add the rows to {FILE.relative_to(ROOT)}")
    arguments = parser.parse_args()
    source, kind, plans = arguments.model, arguments.kind, PLANS[arguments.kind]
    if arguments.size not in (None, *plans):
        parser.error(f"{kind} has the sizes {', '.join(plans)}")
    if arguments.size:
        source = str(ROOT / "runs" / f"{arguments.size}-{kind}")
        if not (Path(source) / "model_index.json").is_file():
            make(Path(source), kind, arguments.size)
    plan = plans[arguments.size or next(iter(plans))]
    if arguments.resolution is not None:
        plan = replace(plan, resolution=arguments.resolution)
    precision = arguments.precision or ("bf16" if arguments.device == "cuda" else "no")
    name = arguments.size or Path(source).name
    try:
        rows = benchmark(source, kind, name, plan, arguments.device, precision, arguments.checkpointing)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    print(table(rows))
    if arguments.store:
        store(rows, FILE, _key)
        print(FILE)


if __name__ == "__main__":
    main()
