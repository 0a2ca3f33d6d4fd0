"""Many random calls on Marble: `make soak`, or `python tests/fuzz/soak.py --calls 200000`.

Plans are numbered by their seed. A run goes on where the last one stopped (`--state`), stops at the first failure,
cuts it down to the calls that are needed, and prints them with the command that plays them again.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from fuzz_machine import run
from fuzz_plan import LENGTH, Plan, draw

REPORT_EVERY = 20_000


def main() -> int:
    """Play plans until there were enough calls; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=200_000, help="how many calls to make in all")
    parser.add_argument("--seed", type=int, help="play this seed only")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--keep", help="with --seed: numbers of the calls to play, separated by commas")
    parser.add_argument("--state", type=Path, help="a file to resume from")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.seed is not None:
        return _one(arguments.seed, arguments.keep)
    seed, calls = arguments.first, 0
    if arguments.state is not None and arguments.state.exists():
        stored = json.loads(arguments.state.read_text())
        seed, calls = stored["seed"], stored["calls"]
    start, steps = time.monotonic(), 0
    while calls < arguments.calls:
        plan = draw(seed)
        if run(plan) is not None:
            print(f"seed {seed} failed after {calls} calls")
            return _one(seed, None)
        seed, calls, steps = seed + 1, calls + LENGTH, steps + 1
        if arguments.state is not None:
            arguments.state.write_text(json.dumps({"seed": seed, "calls": calls}))
        if calls % REPORT_EVERY < LENGTH:
            print(f"{calls} calls, next seed {seed}, {time.monotonic() - start:.0f} s", flush=True)
    print(f"{calls} calls, seeds {arguments.first} to {seed - 1}, {time.monotonic() - start:.0f} s, no failure")
    return 0


def shrink(plan: Plan, message: str) -> list[int]:
    """Numbers of the calls that are needed for the same kind of failure."""
    kind = message.split(" is ")[0][:60]
    keep = list(range(len(plan.calls)))

    def fails(numbers: list[int]) -> bool:
        found = run(replace(plan, calls=tuple(plan.calls[number] for number in numbers)))
        return found is not None and found[1].startswith(kind)

    for number in reversed(range(len(plan.calls))):
        without = [other for other in keep if other != number]
        if fails(without):
            keep = without
    return keep


def _one(seed: int, chosen: str | None) -> int:
    plan = draw(seed)
    keep = list(range(len(plan.calls))) if chosen is None else [int(number) for number in chosen.split(",")]
    plan = replace(plan, calls=tuple(plan.calls[number] for number in keep))
    found = run(plan)
    if found is None:
        print(f"seed {seed}: {len(keep)} calls, no failure")
        return 0
    needed = shrink(plan, found[1])
    print(found[1])
    print(f"settings {plan.settings}")
    for number in needed:
        print(f"  {keep[number]}: {plan.calls[number]}")
    print(f"replay: python tests/fuzz/soak.py --seed {seed} --keep {','.join(str(keep[number]) for number in needed)}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
