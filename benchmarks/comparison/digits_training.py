"""One small network with a head per task, trained by any method: the two lines that Marble takes, and the sums."""

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean

import torch
from torch import Tensor, nn

from .digits_data import Table
from .methods import make_marble

Losses = Mapping[str, Tensor | None]

BATCH = 128
_HIDDEN = 32
# Conflicts are measured on every 7th step: coprime to the 10 steps for which amortised coefficients are kept.
_MEASURED_EVERY = 7
# Below this cosine a loss is opposed: above fp32 rounding, and above the regularisation of TorchJD's UPGrad.
_TOLERANCE = 1e-3
# A labelled batch that is fitted to the last bit has no say: fp32 squares of a smaller gradient vanish.
_SOLVED = 1e-12


class Network(nn.Module):
    """A trunk that ends in ``width`` linear units, which all heads share; outputs by task [B, outputs]."""

    def __init__(self, table: Table, width: int) -> None:
        super().__init__()
        inputs = table.inputs.shape[1]
        self.trunk = nn.Sequential(nn.Linear(inputs, _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, width))
        self.heads = nn.ModuleDict({name: nn.Linear(width, task.outputs) for name, task in table.tasks.items()})

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        code = self.trunk(inputs)
        return {name: head(code) for name, head in self.heads.items()}


class Sum(nn.Module):
    """Σ_k L_k of the raw losses that a batch has."""

    def __init__(self, table: Table) -> None:
        super().__init__()

    def forward(self, losses: Losses) -> Tensor:
        return torch.stack([loss for loss in losses.values() if loss is not None]).sum()


class RelativeSum(nn.Module):
    """Σ_k L_k / L_k(0), L_k(0) the loss of the first batch that has it: what takes the units out by hand."""

    def __init__(self, table: Table) -> None:
        super().__init__()
        self.first: dict[str, float] = {}

    def forward(self, losses: Losses) -> Tensor:
        present = {name: loss for name, loss in losses.items() if loss is not None}
        return torch.stack([loss / self.first.setdefault(name, loss.item()) for name, loss in present.items()]).sum()


class UncertaintySum(nn.Module):
    """Σ_k a_k exp(−s_k) L_k + s_k / 2 (Kendall et al. 2018, equations 7 and 10), s_k = log σ_k² learned from 0.

    a = ½ for a squared error, 1 for a cross-entropy.
    """

    def __init__(self, table: Table) -> None:
        super().__init__()
        self.log_variances = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in table.tasks})
        self.halves = {name: 1.0 if task.scale is None else 0.5 for name, task in table.tasks.items()}

    def forward(self, losses: Losses) -> Tensor:
        terms = []
        for name, loss in losses.items():
            if loss is not None:
                s = self.log_variances[name]
                terms.append(self.halves[name] * torch.exp(-s) * loss + s / 2)
        return torch.stack(terms).sum()


SUMS = {"sum": Sum, "sum relative": RelativeSum, "uncertainty": UncertaintySum}


@dataclass(frozen=True)
class Trained:
    """A trained network, and scores of its start on the test rows.

    ``conflicts``: shares of the measured steps that oppose a loss. ``seconds``: mean processor time of the other steps;
    on one thread it is the wall time of an idle machine. ``dropped``: share of steps not taken, for want of a usable
    combined gradient.
    """

    network: Network
    start: dict[str, float]
    conflicts: dict[str, float]
    seconds: float
    dropped: float


def train(table: Table, method: str, rate: float, width: int, steps: int, seed: int, measure: bool = True) -> Trained:
    """``steps`` AdamW steps on random batches of the training rows, the same for all methods of a seed."""
    torch.manual_seed(seed)
    network = Network(table, width)
    parameters = list(network.parameters())
    base = torch.optim.AdamW(parameters, lr=rate)
    total = SUMS[method](table) if method in SUMS else None
    if total is not None and list(total.parameters()):
        base.add_param_group({"params": list(total.parameters()), "weight_decay": 0.0})
    opt = base if total is not None else make_marble(method, base, list(table.tasks))
    start = scores(network, table, table.test)
    random = torch.Generator().manual_seed(seed)
    harm: dict[str, list[float]] = {"gradient": [], "step": []}
    times: list[float] = []
    for step in range(steps):
        rows = table.train[torch.randperm(len(table.train), generator=random)[:BATCH]]
        begin = time.process_time()
        losses = batch_losses(network, table, rows)
        measured = measure and step % _MEASURED_EVERY == 0
        if measured:
            gradients, before = gradient_rows(losses, parameters), flat(parameters)
        if total is not None:
            total(losses).backward()
        else:
            opt.backward(losses)
        if measured:
            if total is None:
                opt.balance()
            combined = flat([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
        with warnings.catch_warnings():
            # A step not taken is counted below.
            warnings.filterwarnings("ignore", "step not taken")
            opt.step()
        opt.zero_grad()
        if measured:
            harm["gradient"].append(opposes(gradients, combined))
            harm["step"].append(opposes(gradients, before - flat(parameters)))
        else:
            times.append(time.process_time() - begin)
    dropped = 0.0 if total is not None else opt.report.dropped_steps / steps
    return Trained(network, start, {kind: mean(found or [0.0]) for kind, found in harm.items()}, mean(times), dropped)


def batch_losses(network: Network, table: Table, rows: Tensor) -> dict[str, Tensor | None]:
    """The loss of each task on ``rows``."""
    outputs = network(table.inputs[rows])
    return {name: task.loss(outputs[name], rows) for name, task in table.tasks.items()}


@torch.no_grad()
def scores(network: Network, table: Table, rows: Tensor) -> dict[str, float]:
    """The score of each task on ``rows``."""
    outputs = network(table.inputs[rows])
    return {name: task.score(outputs[name], rows) for name, task in table.tasks.items()}


def gradient_rows(losses: Losses, parameters: list[nn.Parameter]) -> Tensor:
    """The gradients [K', P] of the losses that the batch has, by autograd alone."""
    return torch.stack(
        [
            flat(torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True))
            for loss in losses.values()
            if loss is not None
        ]
    )


def opposes(gradients: Tensor, descent: Tensor) -> float:
    """1 if moving along −``descent`` [P] raises, to first order, at least one loss of the rows, else 0."""
    norms = gradients.norm(dim=1)
    harmed = gradients @ descent < -_TOLERANCE * norms * descent.norm()
    return float((harmed & (norms > _SOLVED)).any())


def flat(tensors: object) -> Tensor:
    """A detached copy as one vector."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])
