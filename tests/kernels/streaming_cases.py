"""All cases: checks of the streaming kernels that hold on every device, with ``impl="triton"`` throughout.

The interpreter's worker runs them on the CPU, the GPU tests on CUDA.
"""

from collections.abc import Callable

import gram_cases
import step_cases

CASES: dict[str, Callable[[str], None]] = {
    name: case
    for module in (gram_cases, step_cases)
    for name, case in vars(module).items()
    if name.startswith(("gram_", "combine_", "adam")) and getattr(case, "__module__", None) == module.__name__
}
