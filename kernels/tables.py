"""Device tables that let one launch walk over many tensors.

A segment is a run of elements that lies at several addresses, one per row. A launch reads, all int64:

    addresses [N, C]   where column c of segment n begins; 0: absent, read as zero
    sizes [N]          elements of segment n
    offsets [N]        first element of segment n in a flat output
    chunks [n]         segment << 32 | index: a unit of work is `chunk` elements of one segment, from index * chunk
    tasks [t, 3]       first, end and stride of the chunks that one program adds up; a task stays within a group
    ranges [G + 1]     tasks ranges[g] .. ranges[g + 1] - 1 belong to group g

Segments of other dtypes or alignment go into another launch.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

LANES = 128  # threads of a program (4 warps); each holds one 16-byte vector per row at a time
VECTOR_BYTES = 16


class Segment(NamedTuple):
    """One segment. ``dtypes``: of the rows, then whatever else the launch distinguishes; ``parameter``: the caller's
    number for it, and its row in the table of addresses."""

    size: int
    dtypes: tuple[torch.dtype, ...]
    offset: int = 0
    group: int = 0
    parameter: int = 0


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
class Upload:
    """Tables on the device, the stream that brings them there and the event behind the copy (on a CPU: ``None``)."""

    tables: list[Tensor]
    stream: "torch.cuda.Stream | None"
    event: "torch.cuda.Event | None"

    def wait(self) -> None:
        """Let another stream than the uploading one wait for the tables, on the device."""
        if self.stream is None or self.event is None:
            return
        stream = torch.cuda.current_stream(self.stream.device)
        if stream != self.stream:
            stream.wait_event(self.event)
            for table in self.tables[:1]:
                table.record_stream(stream)  # all of them are parts of one buffer


def make_launches(
    segments: Sequence[Segment], odd: Collection[int], device: torch.device, unroll: int, programs: int, groups: int
) -> list[tuple[Launch, Upload]]:
    """The launches that cover the segments, their addresses still missing; ``odd`` allow no vectors, by parameter."""
    return [_launch(part, device, unroll, programs, groups) for part in _parts(segments, set(odd))]


def upload(parts: list[Tensor], device: torch.device) -> Upload:
    """One copy for all tables, each beginning on 16 bytes: Triton compiles anew for a pointer of other alignment."""
    ends = list(accumulate(part.numel() + part.numel() % 2 for part in parts))
    starts = [end - part.numel() - part.numel() % 2 for part, end in zip(parts, ends, strict=True)]
    host = torch.zeros(ends[-1] if ends else 0, dtype=torch.int64, pin_memory=device.type == "cuda")
    for part, start in zip(parts, starts, strict=True):
        host[start : start + part.numel()] = part.flatten()
    # torch keeps the pinned buffer until its copy is done.
    resident = host.to(device, non_blocking=True)
    tables = [resident[start:][: part.numel()] for part, start in zip(parts, starts, strict=True)]
    if device.type != "cuda":
        return Upload(tables, None, None)
    stream = torch.cuda.current_stream(device)
    return Upload(tables, stream, stream.record_event())


def _parts(segments: Sequence[Segment], odd: Collection[int]) -> list[tuple[bool, list[Segment]]]:
    parts: dict[tuple[bool, tuple[torch.dtype, ...]], list[Segment]] = {}
    for segment in segments:
        if segment.size:
            whole = segment.size % (VECTOR_BYTES // segment.dtypes[0].itemsize) == 0
            parts.setdefault((whole and segment.parameter not in odd, segment.dtypes), []).append(segment)
    return [(aligned, found) for (aligned, _), found in parts.items()]


def _launch(
    part: tuple[bool, list[Segment]], device: torch.device, unroll: int, programs: int, groups: int
) -> tuple[Launch, Upload]:
    """A launch without its addresses."""
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
    tables = upload(
        [
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
    nowhere = torch.empty(0, dtype=torch.int64)
    launch = Launch(found[0].dtypes, parameters, vector, turns, len(owner), len(tasks), nowhere, *tables.tables)
    return launch, tables


def _tasks(per_group: list[int], programs: int) -> tuple[list[tuple[int, int, int]], list[int]]:
    """Tasks in proportion to the chunks of each group. Neighbouring tasks take neighbouring chunks at the same time."""
    total = max(sum(per_group), 1)
    counts = [min(chunks, max(1, round(chunks * programs / total))) for chunks in per_group]
    starts = [0, *accumulate(per_group)]
    tasks = [
        (starts[group] + task, starts[group + 1], count) for group, count in enumerate(counts) for task in range(count)
    ]
    return tasks, [0, *accumulate(counts)]
