"""Steps on two ranks of FSDP2 with factored rows, beside the rows of one plain process."""

import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from factored_cases import trained
from marble_opt import Marble
from marble_opt.per_sample import fsdp2
from marble_opt.ranks import local_part
from rows_fsdp2_models import (
    REWARDS,
    Case,
    blocks_of,
    distance,
    kl_of,
    nft,
    own_loss,
    own_shards,
    plain_model,
    predict,
    rows_of_one_process,
    shard,
    shared_of_one_process,
    worst,
)
from sharded_worker import start

Result = dict[str, Any]
# The rows of the last step are used without a comparison: those are made in steps 0, 1, 2, 4 and 8.
STEPS = 4
TERMS = 2
FP32 = torch.float32
WITH_KL = {"anchor": "shared", "kl": True}

CASES = {
    "network": Case(),
    "network checkpointed": Case(checkpointed=True),
    "network aot_eager": Case(backend="aot_eager", dtype=FP32),
    "network aot_eager checkpointed": Case(backend="aot_eager", checkpointed=True),
    "network inductor": Case(backend="inductor", dtype=FP32),
    "network bf16": Case(dtype=FP32, bf16=True),
    "network (2, 1)": Case(mesh=(2, 1)),
    "network (1, 2)": Case(mesh=(1, 2)),
    "network streamed": Case(streamed=8),
    "network streamed (2, 1)": Case(streamed=8, mesh=(2, 1)),
    "network streamed micro-steps": Case(streamed=8, micro_steps=2, absent=True),
    "network micro-steps": Case(micro_steps=2),
    "network accelerate": Case(micro_steps=2, accelerate=True, absent=True),
    "network unequal batches": Case(batches=(4, 3), absent=True),
    "network shared": Case(**WITH_KL),
    "network shared micro-steps": Case(**WITH_KL, micro_steps=2, absent=True),
    "network user": Case(user=True),
    "past": Case(model="past"),
    "frames": Case(model="frames"),
    "lora": Case("lora", FP32),
    "lora checkpointed": Case("lora", FP32, checkpointed=True),
    "lora aot_eager": Case("lora", FP32, backend="aot_eager"),
    "lora bf16": Case("lora", FP32, bf16=True),
    "lora (2, 1)": Case("lora", FP32, mesh=(2, 1)),
    "lora micro-steps": Case("lora", FP32, micro_steps=2, absent=True),
    "lora shared": Case("lora", FP32, **WITH_KL),
    "lora user": Case("lora", FP32, user=True, batches=(4, 3)),
}
COMPILER = shutil.which("g++") or shutil.which("clang++")


def accelerated(model: Any) -> tuple[Any, Marble, Callable[[], AbstractContextManager[Any]]]:
    """accelerate's own way, optimizer first. It offers FSDP2 on a CPU to nobody, so it is told after its start."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from accelerate.utils import DistributedType

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=["Block"]
    )
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin, gradient_accumulation_steps=2)
    AcceleratorState._shared_state.update(distributed_type=DistributedType.FSDP, fsdp_plugin=plugin)
    opt = Marble(torch.optim.SGD(model.parameters(), lr=0.0), REWARDS, model=model)
    model._no_split_modules = ["Block"]
    model, _ = accelerator.prepare(model, opt)
    return model, opt, lambda: accelerator.accumulate(model)


def prepared(case: Case) -> tuple[Any, Marble, Callable[[], AbstractContextManager[Any]]]:
    model = plain_model(case)
    if case.accelerate:
        return accelerated(model)
    shard(model, case)
    if case.backend is not None:
        # Beside others that are not.
        blocks_of(model)[-1].compile(backend=case.backend)
    opt = Marble(torch.optim.SGD(trained(model), lr=0.0), REWARDS, model=model)
    return model, opt, nullcontext


def micro_step(model: Any, opt: Marble, case: Case, rank: int, step: int, micro: int) -> None:
    prediction = predict(model, case, rank)
    if case.user:
        own_loss(prediction).backward(retain_graph=True)
    opt.backward(nft(prediction, case, rank, step, micro), shared=kl_of(prediction, case))


def run(case: Case, rank: int) -> Result:
    """The reports of all steps; of the last one the errors of rows and ``.grad``, and the collectives."""
    plain = plain_model(case)
    model, opt, accumulating = prepared(case)
    parameters = [p for p in opt.param_groups[0]["params"] if p.requires_grad]
    said, told, errors = [], [], []
    for step in range(STEPS):
        opt.zero_grad()
        # The mode keeps the compiler out.
        counting = Counting() if case.backend is None else None
        with warnings.catch_warnings(record=True) as caught, counting or nullcontext():
            warnings.simplefilter("always")
            for micro in range(case.micro_steps):
                with accumulating():
                    if not case.accelerate and case.micro_steps > 1:
                        # As accelerate and hand-written loops do.
                        model.set_requires_gradient_sync(micro + 1 == case.micro_steps)
                    micro_step(model, opt, case, rank, step, micro)
            grads = [None if p.grad is None else local_part(p.grad).clone() for p in parameters]
            report = opt.balance()
        assert report is not None
        said.append((report.route, report.passes, report.checks, sorted(report.fallback)))
        told += [str(each.message) for each in caught if "get no rows" in str(each.message)]
        blocks = opt._collector.bank.blocks
        found = [blocks.get(parameter, torch.zeros(())) for parameter in parameters]
        expected = own_shards(rows_of_one_process(plain, case, step), parameters, 1)
        errors.append(worst(found, expected))
    gathered = opt._collector.gathered
    whole = sum(len(REWARDS) * p.numel() * p.element_size() for p in parameters)
    result: Result = {
        "said": said,
        "told": told,
        "errors": errors,
        "coefficients": report.coefficients,
        "shared": grads
        if case.plain
        else worst(grads, own_shards(shared_of_one_process(plain, case, step), parameters, 0)),
        "collectives": None if counting is None else counting.counts,
        "traversals": traversals(model, case, rank),
        "peak": gathered.peak,
        "held": sum(buffer.nbytes for buffer in gathered.memory.buffers),
        "whole": whole,
    }
    if case.bf16:
        result["distances"] = [
            distance(found, expected),
            distance(by_loop(model, parameters, case, rank, step), expected),
        ]
    return result


class Counting(TorchDispatchMode):
    """How often each collective runs."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.counts[func._schema.name.removeprefix("c10d::")] += 1
        return func(*args, **(kwargs or {}))


def traversals(model: Any, case: Case, rank: int) -> dict[str, int]:
    """The collectives of a forward and as many plain backwards as there are terms."""
    with Counting() as counting:
        prediction = predict(model, case, rank)
        for term in range(TERMS):
            prediction.sum().backward(retain_graph=term + 1 < TERMS)
    return counting.counts


def by_loop(model: Any, parameters: Sequence[Any], case: Case, rank: int, step: int) -> list[Tensor]:
    opt = Marble(torch.optim.SGD(parameters, lr=0.0), REWARDS, route="loop")
    opt.backward(nft(predict(model, case, rank), case, rank, step, 0))
    opt.balance()
    return [opt._collector.bank.blocks[parameter] for parameter in parameters]


def worker(rank: int, ranks: int, folder: str) -> None:
    """One process: run all cases and leave the results in a file."""
    os.environ |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "RANK": str(rank), "WORLD_SIZE": str(ranks)}
    os.environ |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    start(rank, ranks, folder)
    results = {}
    for name, case in CASES.items():
        if case.backend == "inductor" and COMPILER is None:
            continue
        limit = fsdp2.STREAMED_ELEMENTS if case.streamed is None else case.streamed
        with mock.patch.object(fsdp2, "STREAMED_ELEMENTS", limit):
            results[name] = run(case, rank)
        torch._dynamo.reset()
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
