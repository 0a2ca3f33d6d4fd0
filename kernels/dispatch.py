"""Which implementation runs: the Triton kernel or its torch twin.

Triton is imported by the ``*_triton`` modules only, and those only once :func:`use_triton` has said yes, so that
everything here works where Triton is not installed.
"""

import os
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

IMPLEMENTATIONS = ("auto", "torch", "triton")
OLDEST = (3, 3)  # the first Triton that compiles tuples, which hold what a thread adds up; torch 2.7 brings it


@cache
def interpreting() -> bool:
    """Whether Triton runs in its interpreter, on CPU tensors (``TRITON_INTERPRET=1``, read once)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@cache
def installed() -> bool:
    """Whether Triton can be imported."""
    try:
        return find_spec("triton") is not None
    except ImportError:
        return False


@cache
def version() -> tuple[int, int]:
    """Major and minor version of Triton."""
    import triton

    major, minor = triton.__version__.split(".")[:2]
    return int(major), int(minor)


def obstacle(tensors: Iterable[Tensor]) -> str | None:
    """Why the kernels cannot run on these tensors, or ``None`` if they can."""
    if not installed():
        return "Triton is not installed (`pip install triton`)"
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        return f"the tensors are on several devices: {sorted(map(str, devices))}"
    kind = next(iter(devices)).type if devices else "cpu"
    if kind != "cuda" and not (kind == "cpu" and interpreting()):
        return f"the tensors are on a {kind} device and the kernels need CUDA (or TRITON_INTERPRET=1 on a CPU)"
    if kind == "cpu":
        return None
    capability = torch.cuda.get_device_capability(next(iter(devices)))
    if capability < (8, 0):
        return f"the kernels need compute capability 8.0 or newer, this device has {capability[0]}.{capability[1]}"
    if version() < OLDEST:
        found, needed = (".".join(map(str, each)) for each in (version(), OLDEST))
        return f"Triton {found} is installed and the kernels need {needed} (torch 2.7 or newer brings it)"
    return None


def use_triton(impl: str, tensors: Iterable[Tensor], limit: str | None = None) -> bool:
    """Whether to launch the kernel: the one predicate of all dispatch.

    Args:
        impl: ``"auto"`` launches where it can, ``"torch"`` never, ``"triton"`` insists.
        tensors: the operands.
        limit: a reason of the caller's own why the kernel does not cover this call, such as its K or dtype.

    Raises:
        ValueError: an unknown ``impl``.
        RuntimeError: ``"triton"`` where it cannot run, with the reason.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {IMPLEMENTATIONS}, got {impl!r}")
    if impl == "torch":
        return False
    reason = limit or obstacle(tensors)
    if reason is not None and impl == "triton":
        raise RuntimeError(f"impl='triton' cannot run: {reason}; use impl='auto' or 'torch'")
    return reason is None
