"""``torch.nn.Embedding``."""

from collections.abc import Collection
from typing import Any, cast

from torch import Tensor, nn

from .base import Handler, wide


class EmbeddingHandler(Handler):
    """y_lt = weight[x_lt]: the gradient of row l adds δ_lt to row x_lt of the table, except at ``padding_idx``."""

    names = frozenset({"weight"})

    def refuses(self, module: nn.Module, names: Collection[str]) -> str | None:
        if not (module.scale_grad_by_freq and names):
            return None
        return "has scale_grad_by_freq=True, which divides by counts over the whole batch: switch it off"

    def batched(self, module: nn.Module, saved: list[Tensor], output: Tensor) -> bool:
        return output.dim() > 1

    def contract(
        self,
        module: nn.Module,
        names: Collection[str],
        saved: list[Tensor],
        other: Any,
        grad: Tensor,
        weights: Tensor,
    ) -> dict[str, Tensor]:
        table = cast(nn.Embedding, module)
        indices, delta = saved[0].reshape(len(grad), -1), wide(grad).reshape(len(grad), -1, grad.shape[-1])
        if table.padding_idx is not None:
            delta = delta * (indices != table.padding_idx).unsqueeze(-1)
        weights = weights.to(delta.dtype)
        # Not the weight's shape, which FSDP2 may have given back.
        block = delta.new_zeros(len(weights), table.num_embeddings, table.embedding_dim)
        for row, weight in zip(block, weights, strict=True):
            row.index_add_(0, indices.flatten(), (weight[:, None, None] * delta).flatten(0, 1))
        return {"weight": block}
