"""Ways to get gradients under DDP and FSDP2 wrong: refused, or right anyway."""

import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from checkpoint_cases import resumed, state_dict_of_the_wrapper
from distributed_worker import Share
from misuse_ddp import (
    another_checkpoint,
    bucket_view_without_copy,
    ddp_backwards,
    ddp_collects,
    ddp_collects_differ,
    ddp_collects_differ_without_sync,
    nobody_collects,
    one_rank_collects_nothing,
    reentrant,
    unmarked_collects,
)
from misuse_fsdp import (
    another_mesh,
    fsdp1,
    fsdp_beside_a_plain_parameter,
    fsdp_collects_differ,
    fsdp_nan_on_one_rank,
    fsdp_one_rank_has_nothing,
    fsdp_one_rank_has_one,
    fsdp_step_cosines,
    fsdp_without_sync,
    fsdp_without_sync_beside_a_plain_parameter,
    overflow_under_fsdp,
    tensor_parallel,
)
from misuse_fused import fsdp_fused, fsdp_fused_in_turns, fsdp_without_a_usable_gradient

RIGHT: dict[str, tuple[Callable[[Share], Any], dict[str, Any]]] = {
    "collects_together": (lambda share: ddp_collects(share, True), {}),
    "collects_apart": (lambda share: ddp_collects(share, False), {}),
    "collects_apart_reused": (lambda share: ddp_collects(share, False, every=2), {"refresh_every": 2}),
    "collects_bucket_view": (
        lambda share: ddp_collects(share, False, True, gradient_as_bucket_view=True),
        {"shared": True},
    ),
    "collects_bucket_view_reused": (
        lambda share: ddp_collects(share, False, True, 2, gradient_as_bucket_view=True),
        {"shared": True, "refresh_every": 2},
    ),
    "collects_together_bucket_view": (
        lambda share: ddp_collects(share, True, True, gradient_as_bucket_view=True),
        {"shared": True},
    ),
    "collects_static_graph": (lambda share: ddp_collects(share, False, static_graph=True), {}),
    "backwards_static_graph": (lambda share: ddp_backwards(share, static_graph=True), {}),
    "backwards_unused": (lambda share: ddp_backwards(share, find_unused_parameters=True), {}),
    "backwards_bucket_view": (lambda share: ddp_backwards(share, gradient_as_bucket_view=True), {}),
    "reentrant_no_sync": (lambda share: reentrant(share, True), {}),
    "collects_differ_no_sync": (ddp_collects_differ_without_sync, {"steps": 1}),
    "one_rank_collects_nothing": (one_rank_collects_nothing, {"steps": 1}),
    "nobody_collects": (nobody_collects, {"steps": 0}),
    "fsdp_one_rank_has_one": (fsdp_one_rank_has_one, {"steps": 1}),
    "fsdp_beside_a_plain_parameter": (fsdp_beside_a_plain_parameter, {}),
}


REFUSED: dict[str, tuple[Callable[[Share], Any], str]] = {
    "collects_differ": (ddp_collects_differ, "RuntimeError: the ranks ran different backwards .*no_sync"),
    "reentrant": (lambda share: reentrant(share, False), "RuntimeError: DDP reduced gradients .*no_sync"),
    "another_checkpoint": (another_checkpoint, "RuntimeError: the ranks are not in the same state"),
    "fsdp_without_sync": (
        lambda share: fsdp_without_sync(share, False),
        "RuntimeError: .*set_requires_gradient_sync\\(False\\)",
    ),
    "fsdp_collect_without_sync": (
        lambda share: fsdp_without_sync(share, True),
        "ValueError: no gradient .*set_requires_gradient_sync\\(True\\)",
    ),
    "fsdp_without_sync_beside_a_plain_parameter": (
        fsdp_without_sync_beside_a_plain_parameter,
        "RuntimeError: .*set_requires_gradient_sync\\(False\\)",
    ),
    "fsdp_collects_differ": (fsdp_collects_differ, "RuntimeError: the ranks ran different backwards .* 0 \\* loss"),
    "fsdp_one_rank_has_nothing": (fsdp_one_rank_has_nothing, "RuntimeError: .* 0 \\* prediction.sum\\(\\)"),
    "another_mesh": (another_mesh, "ValueError: .* pass process_group="),
    "tensor_parallel": (tensor_parallel, "NotImplementedError: .*tensor parallelism"),
    "fsdp1": (fsdp1, "NotImplementedError: FSDP1 .* use FSDP2"),
}


OTHER: dict[str, Callable[[Share], Any]] = {
    "fsdp_nan_at_refresh": lambda share: fsdp_nan_on_one_rank(share, 1),
    "fsdp_nan_between": lambda share: fsdp_nan_on_one_rank(share, 2),
    "fsdp_step_cosines": fsdp_step_cosines,
    "overflow_under_fsdp": overflow_under_fsdp,
    "fsdp_fused": fsdp_fused,
    "fsdp_fused_in_turns": fsdp_fused_in_turns,
    "fsdp_without_a_usable_gradient": fsdp_without_a_usable_gradient,
    "bucket_view_without_copy": bucket_view_without_copy,
    "unmarked_collects": unmarked_collects,
    "resumed": resumed,
    "resumed_fused": lambda share: resumed(share, fused=True, guard="step", metric="adam"),
    "resumed_without_our_state": lambda share: resumed(share, forget=True),
    "state_dict_of_the_wrapper": state_dict_of_the_wrapper,
}


def attempt(run: Callable[[Share], Any], share: Share) -> dict[str, Any]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            value = run(share)
        except Exception as error:
            value = f"{type(error).__name__}: {error}"
    return {"value": value, "told": [str(each.message) for each in told]}


def worker(rank: int, ranks: int, folder: str) -> None:
    """One process: run everything and leave what happened in a file."""
    torch.set_num_threads(1)
    store = Path(folder) / "store"
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=ranks, timeout=timedelta(seconds=30)
    )
    share = Share(rank, ranks)
    runs = {name: run for name, (run, _) in (*RIGHT.items(), *REFUSED.items())} | OTHER
    found = {}
    for name, run in runs.items():
        found[name] = attempt(run, share)
        dist.barrier()
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
