"""The numbers of a call: gradient rows in the forms that losses take."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from marble_opt import SeparableLoss

# The last two have squares at the edges of fp32.
SCALES = {"huge": 1e30, "tiny": 1e-30, "large": 1e17, "small": 1e-21}


def normal(size: int, random: torch.Generator) -> Tensor:
    """A row of independent normal numbers."""
    return torch.randn(size, generator=random, dtype=torch.float64)


def row_of(kind: str, size: int, random: torch.Generator, others: Sequence[Tensor | None]) -> Tensor | None:
    """The gradient of a reward whose kind is drawn; ``others`` are those of the rewards before it."""
    row = normal(size, random)
    known = [other for other in others if other is not None]
    if kind in ("absent", "none"):
        return None
    if kind == "zero":
        return torch.zeros_like(row)
    if kind in ("nan", "inf"):
        row[int(torch.randint(size, (1,), generator=random))] = torch.nan if kind == "nan" else torch.inf
    elif kind in SCALES:
        row *= SCALES[kind]
    elif kind in ("same", "opposite") and known:
        row = known[-1] if kind == "same" else -known[-1]
    return row


def linear(parameters: Sequence[Tensor], row: Tensor) -> Tensor:
    """A loss whose gradient is ``row``, rounded to the parameters' dtype."""
    pieces = row.split([parameter.numel() for parameter in parameters])
    products = [
        (parameter * piece.view(parameter.shape).to(parameter.dtype)).sum()
        for parameter, piece in zip(parameters, pieces, strict=True)
    ]
    return torch.stack(products).sum()


def as_seen(parameters: Sequence[Tensor], row: Tensor) -> Tensor:
    """``row`` as autograd hands it on: rounded, and zero where a parameter is frozen."""
    pieces = row.split([parameter.numel() for parameter in parameters])
    seen = [
        piece.to(parameter.dtype).double() if parameter.requires_grad else torch.zeros_like(piece)
        for parameter, piece in zip(parameters, pieces, strict=True)
    ]
    return torch.cat(seen)


def offered(
    parameters: Sequence[Tensor], names: Sequence[str], micro: dict[str, Any], random: torch.Generator
) -> tuple[Any, list[Tensor | None], list[bool]]:
    """The losses of one micro-step, the rows [P] they have (``None``: absent), and whether each loss is finite."""
    size = sum(parameter.numel() for parameter in parameters)
    rows: list[Tensor | None] = []
    for kind in micro["kinds"]:
        rows.append(row_of(kind, size, random, rows))
    if micro["form"] == "separable":
        return _separable(parameters, rows, random)
    given = [None if row is None else linear(parameters, row) for row in rows]
    given = [
        loss + torch.nan if kind == "nan value" and loss is not None else loss
        for loss, kind in zip(given, micro["kinds"], strict=True)
    ]
    seen = [None if row is None else as_seen(parameters, row) for row in rows]
    finite = [loss is not None and bool(torch.isfinite(loss.detach())) for loss in given]
    # A row that is not finite spoils all of a stacked tensor, whose backward multiplies it by zero.
    sound = all(row is not None and bool(torch.isfinite(row).all()) for row in rows)
    if micro["form"] == "tensor" and sound:
        return torch.stack([loss for loss in given if loss is not None]), seen, finite
    return dict(zip(names, given, strict=True)), seen, finite


def _separable(
    parameters: Sequence[Tensor], rows: list[Tensor | None], random: torch.Generator
) -> tuple[SeparableLoss, list[Tensor | None], list[bool]]:
    """Weights of one sample per reward; rows that are not finite are replaced, as weights and terms must be finite."""
    clean = [None if row is None else row.nan_to_num(1.0, 1.0, 1.0) for row in rows]
    terms = torch.stack(
        [linear(parameters, torch.zeros_like(normal_like(parameters)) if r is None else r) for r in clean]
    )
    weights = torch.diag(torch.tensor([0.0 if row is None else 1.0 for row in clean])).unsqueeze(0)
    loss = SeparableLoss(terms.unsqueeze(1), terms.unsqueeze(0), weights.to(terms.dtype))
    seen = [None if row is None else as_seen(parameters, row) for row in clean]
    return loss, seen, [row is not None for row in clean]


def normal_like(parameters: Sequence[Tensor]) -> Tensor:
    """A vector as long as all parameters together."""
    return torch.empty(sum(parameter.numel() for parameter in parameters), dtype=torch.float64)
