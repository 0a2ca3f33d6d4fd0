"""What is sharded for tests of rows under FSDP2: models, a loss, the wrappers, and rows of one plain process."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional as F

from compiled_cases import WIDTH, Frames, Network
from factored_cases import loop, trained
from marble_opt import SeparableLoss, losses
from toys import NAMES
from transformer_families import inputs_for, sd3

REWARDS = NAMES[:3]
RANKS = 2
LORA = ["to_q", "to_k", "to_v", "to_out.0"]


@dataclass(frozen=True)
class Case:
    """``model``: network (trained as a whole), frames, past (a parameter is used past its layer) or lora.

    ``batches``: samples per rank. ``absent``: on rank 1 a reward applies to no sample of the last micro-step.
    ``anchor``, ``kl``: shared terms. ``user``: a backward of the user's own on the same graph. ``streamed``: the size
    from which parameters are reduced during the backward.
    """

    model: str = "network"
    dtype: torch.dtype = torch.float64
    mesh: tuple[int, ...] = (RANKS,)
    checkpointed: bool = False
    backend: str | None = None
    bf16: bool = False
    micro_steps: int = 1
    accelerate: bool = False
    batches: tuple[int, int] = (4, 4)
    absent: bool = False
    anchor: str = "per_reward"
    kl: bool = False
    user: bool = False
    streamed: int | None = None

    @property
    def plain(self) -> bool:
        """Whether nothing but rewards has a gradient."""
        return not (self.user or self.kl or self.anchor == "shared")


class PastItsLayer(Network):
    """The last weight is used by its layer and, in other words, past it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.linear(x.tanh(), self.out.weight)


def plain_model(case: Case) -> Any:
    torch.manual_seed(0)
    if case.model != "lora":
        kinds = {"network": Network, "frames": Frames, "past": PastItsLayer}
        return kinds[case.model](case.checkpointed, blocks=2 if case.backend is None else 1).to(case.dtype)
    from peft import LoraConfig, inject_adapter_in_model

    model = sd3().requires_grad_(False)
    torch.manual_seed(1)
    # Rows of a matrix of five are shared out unequally.
    model = inject_adapter_in_model(LoraConfig(r=5, target_modules=LORA, init_lora_weights=False), model).train()
    if case.checkpointed:
        model.enable_gradient_checkpointing()
    return model


def blocks_of(model: Any) -> Sequence[nn.Module]:
    return model.blocks if isinstance(model, Network) else model.transformer_blocks  # type: ignore[no-any-return]


def shard(model: Any, case: Case) -> None:
    """As FSDP2's guides have it: each block, then the root."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh("cpu", case.mesh, mesh_dim_names=("copies", "shards")[-len(case.mesh) :])
    options: dict[str, Any] = {"mesh": mesh}
    if case.bf16:
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in blocks_of(model):
        fully_shard(block, **options)
    fully_shard(model, **options)


def predict(model: Any, case: Case, rank: int) -> Tensor:
    count = case.batches[rank]
    if case.model != "lora":
        x = torch.randn(count, 5, 2, WIDTH, generator=Generator().manual_seed(rank))
        return model(x.to(case.dtype)).to(case.dtype)  # type: ignore[no-any-return]
    given = inputs_for("sd3", case.dtype, count, rank)
    # A tensor of the loop's own, as a sign, a scale or a cast makes it.
    return -model(**given, return_dict=False)[0].to(case.dtype)  # type: ignore[no-any-return]


def nft(prediction: Tensor, case: Case, rank: int, step: int, micro: int) -> SeparableLoss:
    """DiffusionNFT with an old policy at a little distance; no reward applies to the same samples as another."""
    random, count = Generator().manual_seed(100 * rank + 10 * step + micro), len(prediction)

    def normal() -> Tensor:
        return torch.randn(prediction.shape, generator=random).to(prediction)

    advantages = torch.randn(len(REWARDS), count, generator=random)
    advantages[0, 1] = advantages[2, 0] = torch.nan
    if case.absent and rank == 1 and micro == case.micro_steps - 1:
        advantages[1] = torch.nan
    old, x_t, x_0 = prediction.detach() + 0.1 * normal(), normal(), normal()
    t = torch.rand(count, generator=random).to(prediction)
    return losses.diffusion_nft(prediction, old, x_t, x_0, t, advantages.to(prediction), beta=0.5, anchor=case.anchor)


def kl_of(prediction: Tensor, case: Case) -> Tensor | None:
    return 0.1 * (prediction - 1).square().mean() if case.kl else None


def own_loss(prediction: Tensor) -> Tensor:
    """What a user differentiates besides."""
    return (prediction + 2).abs().mean()


def rows_of_one_process(model: nn.Module, case: Case, step: int) -> list[Tensor]:
    """Means over ranks of separate backwards, summed over micro-steps."""
    parameters = trained(model)
    total = [torch.zeros(len(REWARDS), *parameter.shape, dtype=parameter.dtype) for parameter in parameters]
    for rank in range(RANKS):
        for micro in range(case.micro_steps):
            blocks = loop(nft(predict(model, case, rank), case, rank, step, micro), parameters)
            total = [each + blocks[p] / RANKS for each, p in zip(total, parameters, strict=True)]
    return total


def shared_of_one_process(model: nn.Module, case: Case, step: int) -> list[Tensor]:
    """What ``.grad`` holds before the step is balanced."""
    plain = copy.deepcopy(model)
    for rank in range(RANKS):
        for micro in range(case.micro_steps):
            prediction = predict(plain, case, rank)
            terms = [nft(prediction, case, rank, step, micro).shared(), kl_of(prediction, case)]
            terms += [own_loss(prediction)] if case.user else []
            (sum(term for term in terms if term is not None) / RANKS).backward()
    return [parameter.grad for parameter in trained(plain) if parameter.grad is not None]


def own_shards(full: Sequence[Tensor], parameters: Sequence[Any], dimension: int) -> list[Tensor]:
    """This rank's parts of tensors whose ``dimension`` is their parameter's first."""
    found = []
    for each, parameter in zip(full, parameters, strict=True):
        mesh = parameter.device_mesh
        parts, place = torch.chunk(each, mesh.shape[-1], dimension), mesh.get_local_rank(mesh.ndim - 1)
        found.append(parts[place] if place < len(parts) else each.narrow(dimension, 0, 0))
    return found


def distance(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    flat = [torch.cat([block.flatten().double() for block in blocks]) for blocks in (found, expected)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


def worst(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest error of a parameter, relative to its own size and, a hundredth of it, to the whole."""
    usual = torch.cat([each.flatten() for each in expected]).norm()
    return max(
        float((mine - right).norm() / (right.norm() + 1e-2 * usual))
        for mine, right in zip(found, expected, strict=True)
    )
