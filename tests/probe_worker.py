"""Steps of several micro-batches that give the same result on one process and on two with half of each batch."""

import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distributed_worker import BATCH, NAMES, Share
from marble_opt import Marble, SeparableLoss, losses

STEPS, MICRO, PROBES = 3, 4, 2
PROBE = {"micro_steps": MICRO, "probe": PROBES / MICRO}
Result = list[dict[str, Any]]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 4)).double()


def nft(share: Share, model: nn.Module, step: int, micro: int) -> SeparableLoss:
    """a applies to the first rank's samples only, b to none of the last micro-step, c to all but one per batch."""
    seed = 1000 * step + 10 * micro
    x_0, noise, old = (share.normal(4, seed=seed + k) for k in range(3))
    t = share.normal(seed=seed + 3).sigmoid()
    whole = Share(0, 1).normal(3, seed=seed + 4).mT * 4
    whole[0, BATCH // 2 :] = whole[2, 1] = torch.nan
    if micro == MICRO - 1:
        whole[1] = torch.nan
    x_t = (1 - t.unsqueeze(1)) * x_0 + t.unsqueeze(1) * noise
    counts = torch.tensor([4 * MICRO, 8 * (MICRO - 1), 7 * MICRO])
    return losses.diffusion_nft(
        *(model(x_t), old, x_t, x_0, t, whole[:, share.rows]),
        **{"beta": 0.5, "counts": counts, "anchor": "shared", "samples": BATCH * MICRO},
    )


def as_mapping(loss: SeparableLoss, factor: float) -> dict[str, Tensor | None]:
    """``None`` where this rank has no sample of a reward; b's loss times ``factor``."""
    each = dict(zip(NAMES, loss.losses(), strict=True))
    each["b"] = each["b"] * factor
    return {name: each[name] if on else None for name, on in zip(NAMES, loss.applies(), strict=True)}


def train(share: Share, form: str, done: int = MICRO, poison: int | None = None, **options: Any) -> Result:
    """``STEPS`` steps of ``done`` micro-steps; in micro-step ``poison`` of the second the last rank meets a NaN."""
    plain = network()
    model: nn.Module = DistributedDataParallel(plain) if share.ranks > 1 else plain
    base = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9)
    opt = Marble(base, NAMES, model=plain if form == "factored" else None, reduction="sum", **options)
    found = []
    for step in range(STEPS):
        asked: list[bool] = []
        for micro in range(done):
            asked.append(opt.wants_shared)
            loss = nft(share, model, step, micro)
            factor = torch.nan if (step, micro) == (1, poison) and share.has(1) else 1.0
            kl = 0.02 * loss.prediction.square().sum()
            if form == "mapping":
                anchor = loss.shared()
                assert anchor is not None
                opt.backward(as_mapping(loss, factor), shared=kl + anchor)
            else:
                terms = loss.terms * torch.tensor([1.0] * (len(loss.prediction) - 1) + [factor])
                opt.backward(SeparableLoss(loss.prediction, terms, loss.weights, loss.shared), shared=kl)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opt.step()
        opt.zero_grad()
        report = opt.report
        assert report is not None
        found.append(
            {
                "params": torch.cat([p.detach().flatten() for p in plain.parameters()]),
                "coefficients": report.coefficients,
                "gram": report.gram[:-1, :-1],
                "said": [report.skipped.tolist(), report.nonfinite.tolist(), report.dropped_steps, report.route, asked],
            }
        )
    return found


SCENARIOS: dict[str, tuple[str, dict[str, Any]]] = {
    "factored": ("factored", {}),
    "factored_amortised": ("factored", {"refresh_every": 2, "shared_every": 2}),
    "probe": ("factored", PROBE),
    "probe_loop": ("loop", PROBE),
    "probe_mapping": ("mapping", PROBE),
    "probe_smoothed": ("factored", {**PROBE, "ema": 0.5, "shared_every": 2, "max_grad_norm": 0.5}),
    "probe_early": ("factored", {**PROBE, "done": 1}),
    "probe_only": ("mapping", {**PROBE, "done": PROBES}),
    "nan_in_a_probe": ("mapping", {**PROBE, "poison": 1}),
    "nan_later": ("factored", {**PROBE, "poison": 2}),
}


def run(share: Share, name: str) -> Result:
    form, options = SCENARIOS[name]
    return train(share, form, **options)


def worker(rank: int, ranks: int, folder: str) -> None:
    """One process: run all scenarios and leave the results in a file."""
    torch.set_num_threads(1)
    store = Path(folder) / "store"
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=ranks, timeout=timedelta(seconds=30)
    )
    torch.save({name: run(Share(rank, ranks), name) for name in SCENARIOS}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
