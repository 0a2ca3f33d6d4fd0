"""The last section: the commands that make rows, figures and this report."""

from .page import Page

_COMMANDS = """```
pip install '.[examples,solvers,bench]'
python -m benchmarks --quick           # every question, short: minutes; rows and report under runs/comparison
python -m benchmarks --full            # every question at full length: hours; what has a row is not run again
python -m benchmarks --full dials      # one question: tiny, tiny_judges, dials, ablations, classic, digits
python benchmarks/crd.py               # Centered Reward Distillation; --plot only draws
python benchmarks/slider.py            # sliders against fixed weights and soups; --plot only draws
python benchmarks/edit_and_video.py    # editing and video models; --plot only draws
python benchmarks/step_guard.py        # harmful steps on the toy; --tiny: on the tiny model; --cost: time of a step
python benchmarks/step_cost.py         # the cost of a step
python benchmarks/step_cost_parts.py   # its parts
python benchmarks/distributed.py       # how ranks share the rows
python benchmarks/kernels.py           # the solvers
python benchmarks/step_host.py --store # the host's part of a fused step
python benchmarks/conformance.py       # an optimizer's promises
python benchmarks/gpu_check.py         # all that needs a GPU
python -m benchmarks --report          # this page, from the committed rows only
```"""


def section(page: Page) -> str:
    """Commands, and where the rows are."""
    where = "[results](results)" if page.path.parent != page.folder else "this folder"
    return (
        f"## How to repeat\n\n{_COMMANDS}\n\n"
        f"The rows behind every number are in {where}, one JSON object per run with its settings, hardware, versions, "
        "commit and date; a commit with a + had uncommitted changes. This page and its figures are drawn from the rows "
        "alone. Each run uses one thread, so numbers other than times do not depend on `--jobs`."
    )
