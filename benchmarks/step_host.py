"""Question: what does the host spend on balance and step, while a GPU waits for its launches?

    python benchmarks/step_host.py                    on any machine with Triton, no GPU needed

The fused step of Marble for K rewards, with every launch left out, so that what is left is what the host does: looking
at the tensors, tables, the small operations between Gram and coefficients. Parameters are tiny and on the CPU. Beside
it, in turns, the step of torch's own AdamW(fused=True) on the same parameters. Rows go to results/kernels.jsonl under
--store.
"""

import argparse
import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from kernels_step import _Step
from measure import RESULTS, facts, quantiles, seconds, store, versions

SHAPE, PARAMETERS, PROCESSORS = (4, 4), 400, 132


@contextmanager
def without_launches() -> Iterator[None]:
    """Dispatch as on a GPU of 132 multiprocessors, and launch nothing."""
    from triton.runtime.jit import JITFunction

    from marble_kernels import gram_triton

    with ExitStack() as stack:
        for name in ("gram", "min_norm", "combine", "fused_adamw"):
            stack.enter_context(mock.patch(f"marble_kernels.{name}.use_triton", return_value=True))
        stack.enter_context(mock.patch.object(gram_triton, "processors", return_value=PROCESSORS))
        stack.enter_context(mock.patch.object(JITFunction, "run", return_value=None))
        yield


def host_rows(rounds: int, rewards: int = 5, parameters: int = PARAMETERS) -> list[dict]:
    """Rows with the host's seconds of one step, and Marble's as a multiple of AdamW's in the same round."""
    shapes = [SHAPE] * parameters
    steps = {
        "AdamW(fused=True)": _Step(shapes, rewards, "cpu", None),
        "balance + step": _Step(shapes, rewards, "cpu", True),
    }
    plain = steps["AdamW(fused=True)"]
    plain.optimizer = torch.optim.AdamW(plain.params, lr=1e-6, fused=True)
    times: dict[str, list[float]] = {name: [] for name in steps}
    with without_launches():
        for turn in range(rounds + 3):
            for name, step in steps.items():
                step.prepare()
                gc.collect()
                found = seconds(step.step)
                if turn > 2:
                    times[name].append(found)
    settings = {"rewards": rewards, "parameters": parameters, "rounds": rounds}
    shared = facts("step_host", settings) | {"versions": versions(("torch", "triton"))}
    rows = []
    for name, values in times.items():
        ratio = [own / other for own, other in zip(values, times["AdamW(fused=True)"], strict=True)]
        rows += [
            shared | {"method": name, "metric": "host_seconds"} | quantiles(values),
            shared | {"method": name, "metric": "times_adamw"} | quantiles(ratio),
        ]
    return rows


def main() -> None:
    """Measure, print, and store if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--rewards", type=int, default=5)
    parser.add_argument("--store", action="store_true", help="add the rows to results/kernels.jsonl")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = host_rows(arguments.rounds, arguments.rewards)
    if arguments.store:
        store(rows, RESULTS / "kernels.jsonl", lambda row: (row["benchmark"], row["hardware"], row["settings"]))
    for row in rows:
        unit = 1e3 if row["metric"] == "host_seconds" else 1
        value, low, high = (row[name] * unit for name in ("value", "q20", "q80"))
        print(f"{row['method']:<28} {row['metric']:<14} {value:8.3f} [{low:.3f}, {high:.3f}]")


if __name__ == "__main__":
    main()
