"""Steps of two micro-batches that give the same on one process and on several, under DDP and FSDP2."""

import os
import warnings
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from distributed_worker import BATCH, NAMES, Share
from marble_opt import Marble, SeparableLoss, losses
from sharded_cases import MICRO, ON_SHARDS

Result = dict[str, Any]


def network(dtype: torch.dtype = torch.float64, device: str = "cpu") -> nn.Module:
    torch.manual_seed(0)
    # Shards of unequal size, and a bias of one number: some ranks hold nothing of it.
    return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 4), nn.Linear(4, 1)).to(
        device, dtype
    )


def wrap(plain: nn.Module, kind: str, share: Share, device: str = "cpu") -> nn.Module:
    if share.ranks == 1 and kind != "fsdp_alone":
        return plain
    if kind == "ddp":
        return DistributedDataParallel(plain)
    if kind == "plain":
        return plain
    from torch.distributed.fsdp import fully_shard

    pairs = {"hsdp": (2, share.ranks // 2), "hsdp_flat": (1, share.ranks)}
    shape = pairs.get(kind, (1,) if kind == "fsdp_alone" else (share.ranks,))
    mesh = init_device_mesh(device, shape, mesh_dim_names=("copies", "shards")[-len(shape) :])
    assert isinstance(plain, nn.Sequential)
    for layer in (plain[0], plain[3]):
        fully_shard(layer, mesh=mesh)
    # The root keeps the norm and the last layer; of mixed parameters, the norm is not sharded.
    ignored = {"ignored_params": set(plain[1].parameters())} if kind == "mixed" else {}
    fully_shard(plain, mesh=mesh, **ignored)
    return plain


def full(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().cpu()


def nft(share: Share, model: nn.Module, step: int, micro: int, dtype: torch.dtype, device: str) -> SeparableLoss:
    """a applies to the first rank's samples only, b to none in every third step and in the last micro-batches."""
    seed = 1000 * step + 10 * micro
    draw = lambda *shape, seed: share.normal(*shape, seed=seed).to(device, dtype)  # noqa: E731
    x_0, noise, old = draw(4, seed=seed), draw(4, seed=seed + 1), draw(1, seed=seed + 2)
    t = share.normal(seed=seed + 3).sigmoid().to(device, dtype)
    whole = Share(0, 1).normal(3, seed=seed + 4).mT.to(dtype) * 4
    whole[0, BATCH // 2 :] = whole[2, 1] = torch.nan
    if micro == MICRO - 1 or step % 3 == 2:
        whole[1] = torch.nan
    x_t = (1 - t.unsqueeze(1)) * x_0 + t.unsqueeze(1) * noise
    counts = torch.tensor([4.0 * MICRO, 8.0, 7.0 * MICRO]).to(device)
    return losses.diffusion_nft(
        *(model(x_t), old, x_t[:, :1], x_0[:, :1], t, whole[:, share.rows].to(device)),
        **{"beta": 0.5, "counts": counts, "anchor": "shared", "samples": BATCH * MICRO},
    )


def as_mapping(loss: SeparableLoss) -> dict[str, Tensor | None]:
    """``None`` where this rank has no sample of a reward."""
    each = dict(zip(NAMES, loss.losses(), strict=True))
    return {name: each[name] if on else None for name, on in zip(NAMES, loss.applies(), strict=True)}


def collect_all(opt: Marble, loss: SeparableLoss, present: list[bool], quiet: Any) -> None:
    """All losses on one graph, the shared one by hand."""
    shared = loss.shared()
    assert shared is not None
    with quiet:
        for name, each, on in zip(NAMES, loss.losses(), present, strict=True):
            if on:
                with opt.collect(name):
                    each.backward(retain_graph=True)
        shared.backward()


def train(
    share: Share,
    kind: str,
    form: str,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    steps: int = 10,
    **options: Any,
) -> Result:
    """``form``: mapping, loop, factored or collect."""
    plain = network(dtype, device)
    early = Marble(torch.optim.AdamW(plain.parameters(), lr=0.05), NAMES, reduction="sum", **options)
    model = wrap(plain, kind.removesuffix("_swapped"), share, device)
    watched = model if form == "factored" else None
    base = torch.optim.AdamW(model.parameters(), lr=0.05)
    opt = Marble(base, NAMES, model=watched, reduction="sum", **options)
    if kind.endswith("_swapped"):
        # As accelerate does: the optimizer exists before the model is sharded.
        opt = early
        opt.param_groups[0]["params"] = list(model.parameters())
    said: list[Any] = []
    for step in range(steps):
        for micro in range(MICRO):
            local = kind == "ddp" and share.ranks > 1 and form == "collect"
            with model.no_sync() if local else nullcontext():  # type: ignore[operator]
                loss = nft(share, model, step, micro, dtype, device)
            if form == "collect":
                anywhere = [True, micro == 0 and step % 3 != 2, True]
                mine = anywhere if kind != "ddp" else loss.applies()
                collect_all(opt, loss, mine, model.no_sync() if local else nullcontext())  # type: ignore[operator]
            elif form == "mapping":
                opt.backward(as_mapping(loss), shared=loss.shared())
            else:
                opt.backward(loss)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opt.step()
        opt.zero_grad()
        report = opt.report
        assert report is not None
        said.append([report.skipped.tolist(), report.nonfinite.tolist(), report.dropped_steps, report.refreshed])
        said[-1] += [report.fused, None if report.guard is None else report.guard.corrected.item()]
    return {**results(opt), "said": said, "route": report.route}


def results(opt: Marble) -> Result:
    report = opt.report
    assert report is not None
    params = torch.cat([full(p).flatten() for p in opt.param_groups[0]["params"]])
    states = [opt.state[p] for p in opt.param_groups[0]["params"]]
    state = [each[key] for each in states for key in ("exp_avg", "exp_avg_sq", "step") if key in each]
    guard = report.guard
    return {
        "params": params,
        "moments": torch.cat([full(each).flatten() for each in state]) if state else torch.zeros(1),
        "coefficients": report.coefficients.cpu(),
        "gram": report.gram[:-1, :-1].cpu(),
        "guard": torch.zeros(0) if guard is None else torch.cat([guard.before, guard.after, guard.multipliers]).cpu(),
        "cosines": torch.zeros(0) if report.step_cosines is None else report.step_cosines.cpu(),
    }


CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    f"{kind}-{form}-{every}": (kind, form, {"refresh_every": every})
    for kind in ("ddp", "fsdp")
    for form in ("mapping", "factored", "collect")
    for every in (1, 5)
}
CASES |= {
    "ddp-loop-1": ("ddp", "loop", {}),
    "fsdp-loop-1": ("fsdp", "loop", {}),
    "fsdp-mapping-clipped": ("fsdp", "mapping", {"max_grad_norm": 0.05, "ema": 0.5}),
    "fsdp-mapping-clipped-5": ("fsdp", "mapping", {"max_grad_norm": 0.05, "refresh_every": 5}),
    "fsdp-loop-probe": ("fsdp", "loop", {"micro_steps": MICRO, "probe": 0.5, "max_grad_norm": 0.05}),
    "ddp-fused": ("ddp", "mapping", {"fused": True, "max_grad_norm": 0.05}),
    "fsdp_swapped": ("fsdp_swapped", "mapping", {"refresh_every": 2}),
    "hsdp": ("hsdp", "mapping", {"max_grad_norm": 0.05}),
    "hsdp_flat": ("hsdp_flat", "mapping", {"max_grad_norm": 0.05}),
    "ddp-float32": ("ddp", "mapping", {"dtype": torch.float32}),
    "ddp-factored-float32": ("ddp", "factored", {"dtype": torch.float32}),
    "fsdp-float32": ("fsdp", "mapping", {"dtype": torch.float32}),
    "fsdp-factored-float32": ("fsdp", "factored", {"dtype": torch.float32}),
}
CASES |= ON_SHARDS


# Ten steps for DDP and FSDP2, solved in each and in every fifth. Under other options until a reward was absent and
# is back, or until the second refresh.
LONG = ("ddp-mapping-1", "ddp-mapping-5", "fsdp-mapping-1", "fsdp-mapping-5")


def steps_of(name: str) -> int:
    return 10 if name in LONG else 6 if CASES[name][2].get("refresh_every") == 5 else 4


def run(share: Share, name: str, device: str = "cpu") -> Result:
    kind, form, options = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return train(share, kind, form, device=device, steps=steps_of(name), **options)


def start(rank: int, ranks: int, folder: str, backend: str = "gloo") -> None:
    """Join the others."""
    torch.set_num_threads(1)
    store = Path(folder) / "store"
    dist.init_process_group(
        backend, init_method=f"file://{store}", rank=rank, world_size=ranks, timeout=timedelta(seconds=60)
    )


def worker(rank: int, ranks: int, folder: str, backend: str = "gloo") -> None:
    """One process: run all cases and leave the results in a file."""
    os.environ["OMP_NUM_THREADS"] = "1"
    start(rank, ranks, folder, backend)
    device = "cpu"
    if backend == "nccl":
        torch.cuda.set_device(rank)
        device = "cuda"
    torch.save({name: run(Share(rank, ranks), name, device) for name in CASES}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
