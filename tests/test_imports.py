"""`import marble_opt` needs torch and numpy only."""

import subprocess
import sys
from pathlib import Path

OPTIONAL = (
    "triton",
    "diffusers",
    "peft",
    "safetensors",
    "transformers",
    "accelerate",
    "cvxpy",
    "osqp",
    "qpth",
    "scipy",
    "matplotlib",
    "tensorboard",
    "torchjd",
    "quadprog",
)
HOOK = f"""
import sys

class Refuse:
    asked = set()

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OPTIONAL!r}:
            self.asked.add(name.partition(".")[0])
            raise ImportError(f"refused {{name}}")

sys.meta_path.insert(0, Refuse())
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    checkout = Path(__file__).parents[1]
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=checkout, timeout=400)


def test_it_runs_without_any_optional_package() -> None:
    """A step, a preference, a kernel's twin and the kernels' benchmark, in one process; preferences do not even try
    diffusers and peft."""
    done = python(
        HOOK + "import torch, marble_opt\n"
        "p = torch.nn.Parameter(torch.ones(3))\n"
        "opt = marble_opt.Marble(torch.optim.SGD([p], lr=1.0), rewards=['a', 'b'])\n"
        "opt.backward({'a': p.sum(), 'b': p[0] * 2}, shared=p[1] * 0)\n"
        "opt.step()\n"
        "print(opt.report.scalars()['balance/conflict'])\n"
        "import marble_opt.preferences as preferences\n"
        "conditioning = preferences.PreferenceConditioning(['a'], 2)\n"
        "with conditioning.preference(torch.ones(1)): pass\n"
        "print(sorted({'diffusers', 'peft', 'safetensors'} & Refuse.asked))\n"
        "import marble_kernels.gram as g, marble_kernels.combine, marble_kernels.fused_adamw\n"
        "print(g.gram(torch.ones(2, 3)).tolist())\n"
        "sys.path.insert(0, 'benchmarks')\n"
        "import measure, kernel_bandwidth, kernels_solvers, kernels_step, step_host\n"
        "print(sorted(measure.facts('a test', {})['versions']))"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["0.0", "[]", "[[3.0, 3.0], [3.0, 3.0]]", "['marble_opt', 'python', 'torch']"]


def test_the_hook_refuses() -> None:
    # Without this the test above could pass because the hook does nothing.
    done = python(HOOK + "import scipy.sparse")
    assert "refused scipy" in done.stderr


def test_public_names_exist() -> None:
    import marble_opt

    assert all(hasattr(marble_opt, name) for name in marble_opt.__all__)
    assert sorted(marble_opt.__all__) == marble_opt.__all__
    assert {"Marble", "SeparableLoss", "gram_matrix", "group_advantages", "losses", "solve_min_norm"} <= set(
        marble_opt.__all__
    )
