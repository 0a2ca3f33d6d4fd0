"""Steps on local shards: fused, guarded, and in the base optimizer's metric."""

from typing import Any

import torch

MICRO = 2
Case = tuple[str, str, dict[str, Any]]
_CLIPPED: dict[str, Any] = {"max_grad_norm": 0.05}
_GUARD: dict[str, Any] = {"guard": "step"}
# Each is run with ``fused`` and without.
FUSED: dict[str, Case] = {
    "fsdp-mapping": ("fsdp", "mapping", {}),
    "fsdp-clipped-5": ("fsdp", "factored", {**_CLIPPED, "refresh_every": 5}),
    "fsdp-probe": ("fsdp", "loop", {"micro_steps": MICRO, "probe": 0.5, **_CLIPPED}),
    "fsdp-observed": ("fsdp", "factored", {**_CLIPPED, "balancer": "observe"}),
    "fsdp-guard": ("fsdp", "factored", _GUARD),
    "fsdp-adam": ("fsdp", "factored", {"metric": "adam", **_CLIPPED}),
    "hsdp-clipped-5": ("hsdp", "factored", {**_CLIPPED, "refresh_every": 5}),
    "hsdp-guard": ("hsdp", "factored", _GUARD),
    "hsdp-adam": ("hsdp", "factored", {"metric": "adam", **_CLIPPED}),
    "hsdp_flat-all": ("hsdp_flat", "factored", {"metric": "adam", **_CLIPPED, **_GUARD}),
    "mixed-all": ("mixed", "mapping", {"metric": "adam", **_CLIPPED, **_GUARD}),
}
ON_SHARDS = {f"{name}-plain": case for name, case in FUSED.items()}
ON_SHARDS |= {f"{name}-fused": (kind, form, {**own, "fused": True}) for name, (kind, form, own) in FUSED.items()}
ON_SHARDS |= {
    "fsdp-tracked": ("fsdp", "factored", {"metric": "adam", "track_step": True, **_GUARD}),
    "fsdp-guard-fused-float32": ("fsdp", "factored", {"dtype": torch.float32, "fused": True, **_GUARD}),
}
