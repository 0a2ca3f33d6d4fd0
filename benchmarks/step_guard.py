"""Question: how often does the base optimizer's real step hurt a reward of its batch, and what does guarding it cost?

    python benchmarks/step_guard.py              the toy: 5 conflicting regressions, 600 AdamW steps, 3 seeds; minutes
    python benchmarks/step_guard.py --cost       time of a step with and without guard at 1 M parameters; a minute
    python benchmarks/step_guard.py --tiny       the tiny text-to-image model, 10 AdamW steps, 3 seeds; 5 minutes
    python benchmarks/step_guard.py --table      print the tables of results/step_guard.jsonl only

A step is harmful if the cosine of the parameters' change with some active reward's descent direction on the same batch
is below minus the tolerance (1e-6 on the toy, which is fp64; 1e-3 on the tiny model, whose fp32 parameters round the
step). "Gradient" counts the same for the combined gradient, in the metric of the balance, shared terms included. All
forms of a round or seed run in turn, step by step, in one process.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from statistics import mean, stdev

import torch
from measure import RESULTS, facts, quantiles, seconds, store
from step_guard_toy import REGIMES, Toy
from torch import Tensor
from torch.nn import Parameter

from marble_opt import Marble

FILE = RESULTS / "step_guard.jsonl"
SEEDS = (0, 1, 2)
REWARDS = ("a", "b", "c", "d", "e")
FORMS: dict[str, dict] = {
    "sum": {"balancer": "observe"},
    "sum + guard": {"balancer": "observe", "guard": "step"},
    "min-norm": {},
    "min-norm + guard": {"guard": "step"},
    "metric adam": {"metric": "adam"},
    "metric adam + guard": {"metric": "adam", "guard": "step"},
}
WITHOUT_MOMENTUM = {f"{form}, β₁ = 0": FORMS[form] | {"betas": (0.0, 0.999)} for form in ("min-norm", "metric adam")}
SHAPES = [(512, 8)] * 192 + [(2048, 8)] * 16
TOY = {"steps": 600, "tolerance": 1e-6, "optimizer": "AdamW", "lr": 3e-3}
TINY = {
    "steps": 10,
    "tolerance": 1e-3,
    "optimizer": "AdamW",
    "settings": ["optimizer.lr=1e-3", "rollout.prompts=6", "rollout.images=3", "rollout.steps=6", "lora.rank=16"],
}
COST = {"parameters": sum(a * b for a, b in SHAPES), "tensors": len(SHAPES), "rewards": 5, "rounds": 20}

Rows = list[dict]


def toy(seed: int, regime: str) -> Iterator[tuple[str, str, float]]:
    """(form, metric, value) of one seed; the step's cosines are computed here from autograd, not by marble_opt."""
    for form, choice in (FORMS | WITHOUT_MOMENTUM).items():
        problem, options = Toy(seed, regime), dict(choice)
        parameters = list(problem.model.parameters())
        base = torch.optim.AdamW(parameters, lr=TOY["lr"], betas=options.pop("betas", (0.9, 0.999)))
        opt = Marble(base, REWARDS, **options)
        harm, guards = no_harm(), []
        for step in range(TOY["steps"]):
            losses = problem.losses(step)
            rows = torch.stack(
                [flat(torch.autograd.grad(loss, parameters, retain_graph=True)) for loss in losses.values()]
            )
            before = flat(parameters)
            total = sum(losses.values()) if options.get("balancer") else None
            opt.backward(losses, shared=total)
            opt.step()
            guards.append(opt.report.guard)
            harm["gradient"].append(opt.report.combined_cosines.min().item())
            harm["step"].append(worst_cosine(rows, before - flat(parameters)))
            opt.zero_grad()
        yield from summary(form, harm, TOY["tolerance"], guards)
        for name, value in zip(("mean", "worst"), problem.final(), strict=True):
            yield form, f"final loss/{name}", value


def tiny(seed: int) -> Iterator[tuple[str, str, float]]:
    """(form, metric, value) of one seed on the tiny model; cosines are those of the report."""
    from backbones.load import load_backbone
    from rewards.scorer import Scorer
    from trainer.config import load_config
    from trainer.optimizer import balancing, base_optimizer
    from trainer.trainer import Trainer

    torch.use_deterministic_algorithms(True)
    trainers, harm, guards, times = {}, defaultdict(no_harm), defaultdict(list), defaultdict(list)
    for form, options in FORMS.items():
        method = "sum" if "balancer" in options else "marble"
        config = load_config("tiny", [f"method={method}", f"seed={seed}", "optimizer.name=adamw", *TINY["settings"]])
        trainer = Trainer(config, load_backbone(config.model), Scorer(config.rewards))
        trainer.optimizer.unwatch()
        base = base_optimizer(list(trainer.adapters.parameters("default").values()), config)
        clip = config.optimizer.max_grad_norm
        everything = {**balancing(config), **options, "track_step": True, "max_grad_norm": clip, "reduction": "sum"}
        trainer.optimizer = Marble(base, list(config.rewards), model=trainer.backbone.transformer, **everything)
        trainers[form] = trainer
    for _ in range(TINY["steps"]):
        for form, trainer in trainers.items():
            times[form].append(seconds(trainer.train_epoch))
            report = trainer.optimizer.report
            active = report.active
            guards[form].append(report.guard)
            harm[form]["gradient"].append(report.combined_cosines[active].min().item())
            harm[form]["step"].append(report.step_cosines[active].min().item())
    for form in trainers:
        yield from summary(form, harm[form], TINY["tolerance"], guards[form])
        relative = [own / plain for own, plain in zip(times[form], times["min-norm"], strict=True)]
        yield form, "train step/time relative to min-norm", quantiles(relative)["value"]


def no_harm() -> dict[str, list[float]]:
    """Lowest cosines per step, empty."""
    return {"gradient": [], "step": []}


def summary(
    form: str, harm: dict[str, list[float]], tolerance: float, guards: list
) -> Iterator[tuple[str, str, float]]:
    """Shares of harmful gradients and steps, the worst cosine, and what the guard did."""
    for kind, cosines in harm.items():
        yield form, f"harmful share/{kind}", mean(float(cosine < -tolerance) for cosine in cosines)
        yield form, f"lowest cosine/{kind}", min(cosines)
    needed = [guard for guard in guards if guard is not None and guard.needed]
    if guards[-1] is not None:
        yield form, "guard/share corrected", len(needed) / len(guards)
    if needed:
        yield form, "guard/mean correction", mean(guard.correction.item() for guard in needed)
        yield form, "guard/largest residual", max(guard.residual.item() for guard in needed)


def flat(tensors: object) -> Tensor:
    """A detached copy as one vector."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def worst_cosine(rows: Tensor, step: Tensor) -> float:
    """min_k cos(g_k, θ_before − θ_after)."""
    return (rows @ step / (rows.norm(dim=1) * step.norm())).min().item()


def cost() -> Rows:
    """Time of ``step()`` alone (balance, base step, guard), each round's form relative to no guard in that round."""
    makers = {
        "none": {},
        "guard, idle": {"guard": "step"},
        "guard, correcting": {"guard": "step"},
        "metric adam": {"metric": "adam"},
        "metric adam + guard, correcting": {"metric": "adam", "guard": "step"},
    }
    instances = {form: timed(form, options) for form, options in makers.items()}
    times: dict[str, list[float]] = defaultdict(list)
    for turn in range(COST["rounds"] + 2):
        for form, run in instances.items():
            elapsed = run()
            if turn >= 2:
                times[form].append(elapsed)
    shared = facts("step_guard", COST)
    rows = []
    for form, own in times.items():
        relative = [value / plain for value, plain in zip(own, times["none"], strict=True)]
        for metric, values in (("step/seconds", own), ("step/time relative to none", relative)):
            rows.append({**shared, "task": "cost", "form": form, "metric": metric, **quantiles(values)})
    return rows


def timed(form: str, options: dict) -> Callable[[], float]:
    """Steps on fixed rows; "correcting": a shared term opposes all of them."""
    random = torch.Generator().manual_seed(0)
    parameters = [Parameter(torch.zeros(shape)) for shape in SHAPES]
    vectors = [[torch.randn(shape, generator=random) + 0.1 for shape in SHAPES] for _ in REWARDS]
    opt = Marble(torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0), REWARDS, **options)

    factor = -5.0 if "correcting" in form else 5.0

    def run() -> float:
        losses = {
            name: sum((p * v).sum() for p, v in zip(parameters, vector, strict=True))
            for name, vector in zip(REWARDS, vectors, strict=True)
        }
        opt.backward(losses, shared=factor * sum(losses.values()))
        elapsed = seconds(opt.step)
        opt.zero_grad()
        if "guard" in form and bool(opt.report.guard.needed) is not ("correcting" in form):
            raise RuntimeError(f"{form}: needed is {bool(opt.report.guard.needed)}")
        return elapsed

    return run


def measured(task: str, run: Callable[[int], Iterator[tuple[str, str, float]]], settings: dict) -> Rows:
    """One row per seed, form and metric, stored seed by seed."""
    rows, shared = [], facts("step_guard", settings)
    for seed in SEEDS:
        own = {**shared, "seed": seed, "task": task}
        found = [{**own, "form": form, "metric": metric, "value": value} for form, metric, value in run(seed)]
        store(found, FILE, key)
        rows += found
        print(f"{task}: seed {seed} done", flush=True)
    return rows


def key(row: dict) -> tuple:
    """What tells rows apart."""
    return row["task"], row["form"], row["metric"], row["seed"]


def table(rows: Rows, task: str) -> str:
    """Mean ± standard deviation over seeds, one line per form."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["task"] == task:
            found[row["form"]][row["metric"]].append(row["value"])
    metrics = list(dict.fromkeys(metric for columns in found.values() for metric in columns))
    lines = [f"| {task} | " + " | ".join(metrics) + " |", "|---|" + "---|" * len(metrics)]
    for form, columns in found.items():
        cells = []
        for metric in metrics:
            values = columns.get(metric, [])
            spread = f" ± {stdev(values):.2g}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.3g}{spread}" if values else "")
        lines.append(f"| {form} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure what was asked for, store the rows, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in ("cost", "tiny", "table"):
        parser.add_argument(f"--{option}", action="store_true")
    arguments = parser.parse_args()
    if arguments.cost:
        rows = cost()
    elif arguments.tiny:
        rows = measured("tiny", tiny, TINY)
    else:
        regimes = () if arguments.table else REGIMES
        rows = [row for name in regimes for row in measured(f"toy, {name}", partial(toy, regime=name), TOY)]
    store(rows, FILE, key)
    stored = [json.loads(line) for line in FILE.read_text().splitlines()]
    for task in dict.fromkeys(row["task"] for row in stored):
        print(table(stored, task))


if __name__ == "__main__":
    main()
