"""How often an optimizer opposes a reward of its own batch, measured from outside, the same way for all methods."""

import torch
from torch import Tensor, nn

_TOLERANCE = 1e-3


class ConflictMeter:
    """Call :meth:`before` the backward pass of a step with the rewards' losses and :meth:`after` the step, before
    ``zero_grad``.

    With g_k the gradient of loss k on the batch, d what ``.grad`` holds and s = θ_before − θ_after: a conflict is a
    cosine of any g_k that applies with d ("gradient") or with s ("step": momentum and preconditioning included) below
    −0.001, since fp32 parameters round the step.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = list(model.parameters())
        self.harm: dict[str, list[bool]] = {"gradient": [], "step": []}

    def before(self, losses: Tensor, applies: Tensor) -> None:
        """Of ``losses`` [K], those that the batch has samples of: bool [K]."""
        rows = [_flat(torch.autograd.grad(loss, self.parameters, retain_graph=True)) for loss in losses[applies]]
        self.rows, self.start = torch.stack(rows), _flat(self.parameters)

    def after(self) -> None:
        """Of the step that was just taken."""
        gradient = _flat([p.grad for p in self.parameters])
        for name, direction in (("gradient", gradient), ("step", self.start - _flat(self.parameters))):
            cosines = self.rows @ direction / (self.rows.norm(dim=1) * direction.norm())
            self.harm[name].append(bool((cosines < -_TOLERANCE).any()))

    def shares(self) -> dict[str, float]:
        """``conflict/gradient`` and ``conflict/step``: shares of the measured steps with a conflict."""
        return {f"conflict/{name}": sum(harm) / len(harm) for name, harm in self.harm.items()}


def _flat(tensors: object) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])
