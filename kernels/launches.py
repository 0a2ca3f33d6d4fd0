"""Plans of launches, kept from call to call.

All but the addresses follows from the tensors' shapes and dtypes, and is kept by these: where tensors have moved, as
gradients may from step to step, the addresses alone are made anew, by a few operations whatever their number, and
uploaded. Where they have not, nothing is uploaded, which makes a repeated call fit for CUDA graphs. Freed memory is
never touched, because the keys hold everything that the tables were made from.
"""

import contextlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .memo import Memo
from .signature import Key, Signature
from .tables import VECTOR_BYTES, Launch, Segment, Upload, make_launches, upload

# Plans without addresses, and addresses that plans are kept for (some 40 MB): a step has a plan per parameter group,
# and where gradients move, new ones each time. Those that a graph was captured with stay for good.
LAYOUTS, ADDRESSES = 1024, 2**20


@dataclass(frozen=True)
class Plan:
    """The launches of one call, and the uploads that they read."""

    launches: list[Launch]
    uploads: tuple[Upload, ...]

    def weight(self) -> int:
        """Addresses, and a few more for what every plan takes."""
        return 64 + sum(launch.addresses.numel() for launch in self.launches)


_layouts: Memo[Plan] = Memo(LAYOUTS)
_plans: Memo[Plan] = Memo(ADDRESSES, Plan.weight)
_captured: dict[Hashable, Plan] = {}


def launches(
    signatures: Sequence[Signature],
    segments: Callable[[], Sequence[Segment]],
    table: Callable[[], Tensor],
    device: torch.device,
    unroll: int,
    programs: int = 1,
    groups: int = 1,
    options: Hashable = None,
    single: int = 0,
) -> list[Launch]:
    """The launches that cover the segments, from the cache if the same tensors have been seen.

    Args:
        signatures: of all tensors that segments and table are made from.
        segments: makes the segments when the tensors' kinds are new.
        table: makes the addresses, int64 [N, C] on the CPU, when the tensors or their places are new.
        device: where the tables go.
        unroll: vectors of 16 bytes per row that a thread reads in one chunk.
        programs: how many tasks to aim for.
        groups: G.
        options: whatever else the segments are made from.
        single: so many of the last columns hold the addresses of single numbers, whose alignment does not matter.

    Raises:
        RuntimeError: new tables while a CUDA graph is captured: run the same call once before.
    """
    kinds = (options, tuple([each.kinds for each in signatures]), device, unroll, programs, groups)
    key = Key((kinds, tuple([each.addresses for each in signatures])))
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    plan = _captured.get(key) or _plans.get(key)
    if plan is None and capturing:
        raise RuntimeError(
            "the address tables of these tensors are not on the device yet, and a graph capture cannot upload them: "
            "run the same call on the same tensors once before the capture"
        )
    if plan is None:
        addresses = table()
        odd = _misaligned(addresses, single)
        layout = _layouts((kinds, odd), lambda: _layout(segments(), odd, device, unroll, programs, groups))
        plan = _plans(key, lambda: _addressed(layout, addresses, device))
    if capturing:
        # The graph reads these tables at every replay, so they stay. It began with a synchronised device: no wait.
        _captured[key] = plan
    else:
        for each in plan.uploads:
            each.wait()
    return plan.launches


def processors(device: torch.device) -> int:
    """Streaming multiprocessors of the device; 2 for the interpreter, so that loops and several tasks are exercised."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def on(device: torch.device) -> Any:
    """Context in which Triton launches on this device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def column(found: Signature) -> Tensor:
    """The addresses of tensors as one column [N, 1] of a table."""
    return torch.tensor(found.addresses.value, dtype=torch.int64).unsqueeze(1)


def _misaligned(addresses: Tensor, single: int) -> tuple[int, ...]:
    """The rows of the table that do not allow vectors."""
    odd = (addresses[:, : addresses.shape[1] - single] % VECTOR_BYTES != 0).any(1)
    return tuple(odd.nonzero().flatten().tolist()) if odd.any() else ()


def _layout(
    segments: Sequence[Segment], odd: tuple[int, ...], device: torch.device, unroll: int, programs: int, groups: int
) -> Plan:
    made = make_launches(segments, odd, device, unroll, programs, groups)
    return Plan([launch for launch, _ in made], tuple(tables for _, tables in made))


def _addressed(layout: Plan, addresses: Tensor, device: torch.device) -> Plan:
    tables = upload([addresses[launch.parameters] for launch in layout.launches], device)
    pairs = zip(layout.launches, tables.tables, strict=True)
    return Plan([replace(launch, addresses=table) for launch, table in pairs], (*layout.uploads, tables))
