"""Everything that needs a GPU, in one command: the GPU tests, the kernels' benchmark, the step at SD3.5 Medium's size.

    python benchmarks/gpu_check.py                    half an hour on one H200, estimated
    python benchmarks/gpu_check.py --quick            tests and kernels only
    python benchmarks/gpu_check.py --only epoch recipe --seconds 500
                                                      parts with one of these words; none starts after 500 s

Each part runs in a process of its own and its output is kept in results/gpu_check/; the exit status is 0 if all parts
ran and passed. Rows go to results/kernels.jsonl, results/step_cost.jsonl and results/epoch.jsonl, and a table of all
parts is printed last. The epoch writes a pipeline with random weights to runs/medium-sd3 first (8 GB), which the
recipe, the trainer end to end for one epoch, uses too; those of Flux Kontext and LTX-2 take 27 and 42 GB more.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch

HERE = Path(__file__).parent
LOGS = HERE / "results" / "gpu_check"

ON_GPU = ("--device", "cuda", "--store")
CHECKPOINTED = (*ON_GPU, "--checkpointing")
PARTS = {
    "GPU tests": ["-m", "pytest", "tests/kernels", "-q", "-k", "gpu", "-rs"],
    "all other tests of the kernels": ["-m", "pytest", "tests/kernels", "-q", "-k", "not gpu"],
    "two GPUs over nccl": ["-m", "pytest", "tests/test_sharded.py", "-q", "-k", "nccl", "-rs"],
    "kernels": ["benchmarks/kernels.py", "--device", "cuda"],
    "the host's share of a step": ["benchmarks/step_host.py", "--store"],
    "step cost, SD3.5 Medium": ["benchmarks/step_cost.py", "--model", "sd35", "--device", "cuda", "--rounds", "3"],
    "step cost, checkpointing": [
        *("benchmarks/step_cost.py", "--model", "sd35", "--device", "cuda", "--rounds", "3"),
        *("--checkpointing", "--rewards", "5"),
    ],
    "parts of a micro-step": ["benchmarks/step_cost_parts.py", "--model", "sd35", "--device", "cuda"],
    "an epoch, SD3.5 Medium": ["benchmarks/epoch.py", "--kind", "sd3", "--size", "medium", *ON_GPU],
    "an epoch, Flux Kontext": ["benchmarks/epoch.py", "--kind", "kontext", "--size", "full", *CHECKPOINTED],
    "an epoch, LTX-2": ["benchmarks/epoch.py", "--kind", "ltx2", "--size", "full", *CHECKPOINTED],
    "small reward models": ["examples/make_rewards.py", "runs/tiny-rewards"],
    "the recipe, SD3.5 Medium": ["examples/train.py", "--config", "random_sd35_1gpu", "--output", "runs/random-sd35"],
}
QUICK = ("GPU tests", "all other tests of the kernels", "kernels")


def run(name: str, command: list[str]) -> tuple[int, float, str]:
    """Run one part; exit status, seconds, and the tail of its output."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *command], cwd=HERE.parent, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    LOGS.mkdir(parents=True, exist_ok=True)
    (LOGS / f"{name.replace(' ', '_').replace(',', '')}.txt").write_text(output, encoding="utf-8")
    print(f"== {name}\n{output}", flush=True)
    return done.returncode, time.perf_counter() - start, (output.strip().splitlines() or [""])[-1]


def chosen(words: list[str] | None, quick: bool) -> list[str]:
    """Names of the parts to run; ``SystemExit`` for a word that no part has."""
    names = list(QUICK if quick else PARTS)
    unknown = [word for word in words or () if not any(word in name for name in names)]
    if unknown:
        sys.exit(f"no part is called {', '.join(unknown)}; there are: {', '.join(names)}")
    return [name for name in names if words is None or any(word in name for word in words)]


def main() -> None:
    """Run all parts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tests and kernels only")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="parts whose name holds one of these words")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no part after this time")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device is available to torch: these checks need one (install a CUDA build of torch)")
    names = chosen(arguments.only, arguments.quick)
    start, results = time.perf_counter(), {}
    for name in names:
        if time.perf_counter() - start < arguments.seconds:
            results[name] = run(name, PARTS[name])
    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for name, (status, seconds, last) in results.items():
        print(f"{name:<32} {'passed' if status == 0 else f'FAILED ({status})':<12} {seconds:7.1f} s   {last[:100]}")
    for name in names[len(results) :]:
        print(f"{name:<32} NOT RUN, after {arguments.seconds:.0f} s")
    failed = any(status != 0 for status, _, _ in results.values())
    sys.exit(failed or len(results) < len(names))


if __name__ == "__main__":
    main()
