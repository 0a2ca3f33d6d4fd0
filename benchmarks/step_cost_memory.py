"""Peak memory of a piece of work, from the allocator."""

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(work: Callable[[], object], device: str) -> int:
    """The most bytes that ``work`` held at once beyond what was allocated when it began.

    On a CPU the profiler's record of allocations is replayed; on a GPU the caching allocator keeps the peak.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    result = record.profiler.kineto_results
    changes = sorted((event.start_ns(), event.nbytes()) for event in result.events() if event.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak
