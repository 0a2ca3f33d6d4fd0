"""Question: what do rows from one backward per term cost, beside one backward per reward and beside another version?

    python benchmarks/row_engine.py                            FSDP2 on two ranks, eager against the loop, memory
    python benchmarks/row_engine.py --against 03d6544          and against the engine of another commit, in turn

A step is forward, rows and balance of DiffusionNFT with the paper's anchor (two terms), without the base optimizer.
FSDP2: two gloo processes of one thread each, a tiny SD3-type transformer with LoRA, every block sharded. Eager: one
process of one thread, a mid-size SD3-type transformer with LoRA, and a perceptron of which all is trained. All forms of
a part are run in turn, round by round; ratios are of the same round. Comparisons with ordinary gradients are left out:
they are one backward in fifty refreshes. ``peak``: the most memory that a step holds beyond what is there when it
begins, and what the rows take by themselves. Another version runs in a process of its own, from a worktree.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from measure import RESULTS, ROOT, facts, quantiles, store
from row_engine_ranks import measure_ranks

FILE = RESULTS / "row_engine.jsonl"
HERE = Path(__file__).parent


class Worker:
    """A process that makes steps on demand."""

    def __init__(self, case: str, rewards: int, root: Path) -> None:
        path = os.pathsep.join(map(str, (root, root / "benchmarks", HERE, root / "examples")))
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(HERE / "row_engine_worker.py"), case, str(rewards)],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def ask(self, command: str) -> float:
        """Seconds of a "step" or bytes of a "peak"."""
        assert self._process.stdin is not None
        print(command, file=self._process.stdin, flush=True)
        return float(self._answer())

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker ended with {self._process.wait()}")
        return line


@contextmanager
def worktree(commit: str) -> Iterator[Path]:
    """Another version of this repository."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "other"
        subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "--detach", str(path), commit], check=True)
        try:
            yield path
        finally:
            subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(path)], check=True)


def eager_rows(case: str, rewards: int, rounds: int, against: str | None) -> list[dict]:
    """Seconds and peak bytes of a step in one process, and the ratio to the other version's."""
    with worktree(against) if against else nullcontext(None) as other:
        workers = {"this": Worker(case, rewards, ROOT)} | ({"other": Worker(case, rewards, other)} if other else {})
        times: dict[str, list[float]] = {name: [] for name in workers}
        for turn in range(rounds):
            # Who goes first has the warmer or the colder caches.
            for name in sorted(workers, reverse=bool(turn % 2)):
                times[name].append(workers[name].ask("step"))
        peaks = {name: worker.ask("peak") for name, worker in workers.items()}
        for worker in workers.values():
            worker.close()
    shared = facts("row_engine", {"part": "eager", "case": case, "rounds": rounds, "against": against})
    rows = [
        {**shared, "rewards": rewards, "what": f"{name} version, {unit}", "unit": unit, **values}
        for name in workers
        for unit, values in (("s", quantiles(times[name])), ("B", quantiles([peaks[name]])))
    ]
    if other:
        found = [own / theirs for own, theirs in zip(times["this"], times["other"], strict=True)]
        rows.append({**shared, "rewards": rewards, "what": "this / other", "unit": "1", **quantiles(found)})
    return rows


def sharded_rows(rounds: int, checkpointing: bool) -> list[dict]:
    """Ratios of steps under FSDP2."""
    times = measure_ranks((2, 5, 20), rounds, checkpointing)
    shared = facts("row_engine", {"part": "fsdp2", "checkpointing": checkpointing, "rounds": rounds})
    rows = [{**shared, "what": name, "unit": "s", **quantiles(found)} for name, found in times.items()]
    for above, below in (("factored 2", "loop 2"), ("factored 5", "loop 5"), ("factored 20", "factored 2")):
        found = [own / other for own, other in zip(times[above], times[below], strict=True)]
        rows.append({**shared, "what": f"{above} / {below}", "unit": "1", **quantiles(found)})
    return rows


def main() -> None:
    """Measure, store rows, print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", help="a commit of this repository")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--parts", nargs="+", choices=["fsdp2", "eager"], default=["fsdp2", "eager"])
    arguments = parser.parse_args()
    rows = []
    if "fsdp2" in arguments.parts:
        rows += [row for each in (False, True) for row in sharded_rows(arguments.rounds, each)]
    if "eager" in arguments.parts:
        cases = [(case, rewards) for case in ("lora", "full") for rewards in (5, 20)]
        rows += [row for case, k in cases for row in eager_rows(case, k, arguments.rounds, arguments.against)]
    store(rows, FILE, lambda row: (str(row["settings"]), row.get("rewards"), row["what"], row["hardware"]))
    for row in rows:
        settings = {key: value for key, value in row["settings"].items() if key not in ("rounds", "against")}
        spread = f"{row['value']:.4g} [{row['q20']:.4g}, {row['q80']:.4g}]"
        print(f"{settings} K={row.get('rewards')} {row['what']}: {spread}")


if __name__ == "__main__":
    main()
