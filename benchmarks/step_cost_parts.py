"""Question: what bounds the forms of step_cost.py: where does the time of a micro-step go?

    python benchmarks/step_cost_parts.py              mid-size model on a CPU, K = 5 and 20
    python benchmarks/step_cost_parts.py --model sd35 --device cuda

The parts are measured in turn, round by round, in one process.
"""

import argparse
from collections.abc import Callable

import torch
from measure import RESULTS, facts, quantiles, seconds, store
from step_cost_forms import MODELS, Form, Setting

from marble_opt.per_sample.engine import RowEngine

FILE = RESULTS / "step_cost_parts.jsonl"


def parts(setting: Setting, rewards: int) -> dict[str, Callable[[], float]]:
    """Functions that return the seconds of one part."""
    form, t = Form(setting, rewards, None), torch.full((setting.batch,), 0.5, device=setting.device)

    def forward(gradients: bool) -> float:
        with torch.set_grad_enabled(gradients):
            return seconds(lambda: setting.velocity(setting.x_0, t), setting.device)

    def watched(work: Callable[[RowEngine], float]) -> float:
        with RowEngine(setting.model, rewards, verify_every=None) as engine:
            factored(engine)
            return work(engine)

    def ordinary() -> float:
        loss, _ = form.loss(False)
        return seconds(lambda: torch.autograd.grad(loss.terms.sum(), setting.parameters), setting.device)

    def factored(engine: RowEngine) -> float:
        loss, _ = form.loss(False)
        return seconds(lambda: engine.gradients(loss, setting.parameters), setting.device)

    return {
        "forward without gradients": lambda: forward(False),
        "forward without gradients, model watched": lambda: watched(lambda _: forward(False)),
        "forward": lambda: forward(True),
        "forward, model watched": lambda: watched(lambda _: forward(True)),
        "ordinary backward": ordinary,
        "factored pass": lambda: watched(factored),
        "base optimizer's step": lambda: _step(Form(setting, rewards, None)),
        "balance and step": lambda: _step(Form(setting, rewards, {})),
    }


def _step(form: Form) -> float:
    loss, kl = form.loss(True)
    if form.marble is None:
        (loss.losses().sum() + kl).backward()
    else:
        form.marble.backward(loss, shared=kl)
    optimizer = form.marble or form.base
    found = seconds(optimizer.step, form.setting.device)
    optimizer.zero_grad()
    form.close()
    return found


def main() -> None:
    """Measure, store rows, print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="mid")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rewards", type=int, nargs="+", default=[5, 20])
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    setting = Setting(arguments.model, arguments.device, checkpointing=False)
    settings = {"model": arguments.model, "rounds": arguments.rounds, "batch": setting.batch}
    shared = facts("step_cost_parts", settings)
    rows = []
    for rewards in arguments.rewards:
        makers = parts(setting, rewards)
        times: dict[str, list[float]] = {name: [] for name in makers}
        for turn in range(arguments.rounds + 1):
            for name, work in makers.items():
                found = work()
                if turn:
                    times[name].append(found)
        rows += [
            shared | {"method": name, "rewards": rewards, "metric": "seconds"} | quantiles(found)
            for name, found in times.items()
        ]
    store(rows, FILE, lambda row: (row["settings"]["model"], row["hardware"], row["rewards"]))
    for row in rows:
        spread = f"[{1e3 * row['q20']:.1f}, {1e3 * row['q80']:.1f}]"
        print(f"K = {row['rewards']:<3} {row['method']:<42} {1e3 * row['value']:8.1f} ms {spread}")


if __name__ == "__main__":
    main()
