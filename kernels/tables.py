"""Device tables that let one launch walk over many tensors.

A segment is a run of elements that lies at several addresses, one per row. A launch reads, all int64:

    addresses [N, C]   where column c of segment n begins; 0: absent, read as zero
    sizes [N]          elements of segment n
    offsets [N]        first element of segment n in a flat output
    chunks [n]         segment << 32 | index: a unit of work is `chunk` elements of one segment, from index * chunk
    tasks [t, 3]       first, end and stride of the chunks that one program adds up; a task stays within a group
    ranges [G + 1]     tasks ranges[g] .. ranges[g + 1] - 1 belong to group g

Segments of other dtypes or alignment go into another launch. Tables are kept by their contents' addresses and sizes:
a repeated call uploads nothing, which makes it fit for CUDA graphs, and never touches freed memory, because the key
holds everything that the tables were made from.
"""

import contextlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .memo import Memo

LANES = 128  # threads of a program (4 warps); each holds one 16-byte vector per row at a time
VECTOR_BYTES = 16
CACHED = 64  # plans kept; those that a graph was captured with stay for good


class Segment(NamedTuple):
    """One segment. ``dtypes``: of the rows, then whatever else the launch distinguishes; ``parameter``: the caller's;
    ``numbers``: addresses of single numbers, further columns whose alignment does not matter."""

    addresses: tuple[int, ...]
    size: int
    dtypes: tuple[torch.dtype, ...]
    offset: int = 0
    group: int = 0
    parameter: int = 0
    numbers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Launch:
    """Tables of one launch, and what is known of all its segments at compile time."""

    dtypes: tuple[torch.dtype, ...]
    parameters: list[int]
    vector: int
    unroll: int
    work: int
    programs: int
    addresses: Tensor
    sizes: Tensor
    offsets: Tensor
    chunks: Tensor
    tasks: Tensor
    ranges: Tensor


@dataclass(frozen=True)
class Plan:
    """The launches of one call; ``uploaded``: stream of the upload and the event behind it."""

    launches: list[Launch]
    uploaded: "tuple[torch.cuda.Stream, torch.cuda.Event] | None"

    def wait(self) -> None:
        """Let another stream than the uploading one wait for the tables, on the device."""
        if self.uploaded is None:
            return
        stream = torch.cuda.current_stream(self.uploaded[0].device)
        if stream != self.uploaded[0]:
            stream.wait_event(self.uploaded[1])
            for launch in self.launches:
                launch.addresses.record_stream(stream)


_plans: Memo[Plan] = Memo(CACHED)
_captured: dict[Hashable, Plan] = {}


def launches(
    key: Hashable,
    segments: Callable[[], Sequence[Segment]],
    device: torch.device,
    unroll: int,
    programs: int,
    groups: int = 1,
) -> list[Launch]:
    """The launches that cover the segments, from the cache if ``key`` is known.

    Args:
        key: all addresses, sizes, dtypes and options that the segments are made from.
        segments: makes the segments when the key is new.
        device: where the tables go.
        unroll: vectors of 16 bytes per row that a thread reads in one chunk.
        programs: how many tasks to aim for.
        groups: G.

    Raises:
        RuntimeError: new tables while a CUDA graph is captured: run the same call once before.
    """
    key = (key, device, unroll, programs, groups)
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    plan = _captured.get(key) or _plans.get(key)
    if plan is None and capturing:
        raise RuntimeError(
            "the address tables of these tensors are not on the device yet, and a graph capture cannot upload them: "
            "run the same call on the same tensors once before the capture"
        )
    plan = plan or _plans(key, lambda: _plan(segments(), device, unroll, programs, groups))
    if capturing:
        # The graph reads these tables at every replay, so they stay. It began with a synchronised device: no wait.
        _captured[key] = plan
    else:
        plan.wait()
    return plan.launches


def processors(device: torch.device) -> int:
    """Streaming multiprocessors of the device; 2 for the interpreter, so that loops and several tasks are exercised."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def on(device: torch.device) -> Any:
    """Context in which Triton launches on this device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def signature(tensors: Sequence[Tensor | None]) -> Hashable:
    """All that tables and checks of these tensors depend on (an address tells its device). Called on every step."""
    present = [tensor for tensor in tensors if tensor is not None]
    return (
        tuple([tensor is None for tensor in tensors]),
        tuple([tensor.data_ptr() for tensor in present]),
        tuple([tensor.shape for tensor in present]),
        tuple([tensor.stride() for tensor in present]),
        tuple([tensor.dtype for tensor in present]),
    )


def _parts(segments: Sequence[Segment]) -> list[tuple[bool, list[Segment]]]:
    parts: dict[tuple[bool, tuple[torch.dtype, ...]], list[Segment]] = {}
    for segment in segments:
        if segment.size:
            whole = segment.size % (VECTOR_BYTES // segment.dtypes[0].itemsize) == 0
            aligned = whole and not any(address % VECTOR_BYTES for address in segment.addresses)
            parts.setdefault((aligned, segment.dtypes), []).append(segment)
    return [(aligned, found) for (aligned, _), found in parts.items()]


def _plan(segments: Sequence[Segment], device: torch.device, unroll: int, programs: int, groups: int) -> Plan:
    found = [_launch(part, device, unroll, programs, groups) for part in _parts(segments)]
    if device.type != "cuda":
        return Plan(found, None)
    stream = torch.cuda.current_stream(device)
    return Plan(found, (stream, stream.record_event()))


def _launch(part: tuple[bool, list[Segment]], device: torch.device, unroll: int, programs: int, groups: int) -> Launch:
    aligned, found = part
    # Chunks of a group lie next to each other, so that a task can stay within one.
    found = sorted(found, key=lambda segment: segment.group)
    width = VECTOR_BYTES // found[0].dtypes[0].itemsize
    chunk = LANES * width * unroll
    counts = torch.tensor([-(-segment.size // chunk) for segment in found])
    owner = torch.repeat_interleave(torch.arange(len(found)), counts)
    within = torch.arange(len(owner)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    per_group = torch.zeros(groups, dtype=torch.int64)
    per_group.index_add_(0, torch.tensor([segment.group for segment in found]), counts)
    tasks, ranges = _tasks(per_group.tolist(), programs)
    tables = _upload(
        [
            torch.tensor([segment.addresses + segment.numbers for segment in found]),
            torch.tensor([segment.size for segment in found]),
            torch.tensor([segment.offset for segment in found]),
            owner << 32 | within,
            torch.tensor(tasks),
            torch.tensor(ranges),
        ],
        device,
    )
    vector, turns = (width, unroll) if aligned else (1, unroll * width)
    parameters = [segment.parameter for segment in found]
    return Launch(found[0].dtypes, parameters, vector, turns, len(owner), len(tasks), *tables)


def _tasks(per_group: list[int], programs: int) -> tuple[list[tuple[int, int, int]], list[int]]:
    """Tasks in proportion to the chunks of each group. Neighbouring tasks take neighbouring chunks at the same time."""
    total = max(sum(per_group), 1)
    counts = [min(chunks, max(1, round(chunks * programs / total))) for chunks in per_group]
    starts = [0, *accumulate(per_group)]
    tasks = [
        (starts[group] + task, starts[group + 1], count) for group, count in enumerate(counts) for task in range(count)
    ]
    return tasks, [0, *accumulate(counts)]


def _upload(parts: list[Tensor], device: torch.device) -> list[Tensor]:
    """One copy for all tables, each beginning on 16 bytes: Triton compiles anew for a pointer of other alignment."""
    ends = list(accumulate(part.numel() + part.numel() % 2 for part in parts))
    host = torch.zeros(ends[-1], dtype=torch.int64, pin_memory=device.type == "cuda")
    for part, end in zip(parts, ends, strict=True):
        start = end - part.numel() - part.numel() % 2
        host[start : start + part.numel()] = part.flatten()
    # torch keeps the pinned buffer until its copy is done.
    resident = host.to(device, non_blocking=True)
    return [
        resident[end - part.numel() - part.numel() % 2 :][: part.numel()] for part, end in zip(parts, ends, strict=True)
    ]
