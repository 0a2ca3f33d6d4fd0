"""What an epoch tells of its optimizer steps, against what the optimizer was given."""

import math

import pytest
import torch
from torch import Tensor
from trainer_cases import without_texts


def test_an_epoch_tells_losses_distance_and_gradient_norms_of_its_steps() -> None:
    """Two steps of two micro-batches, away from the reference, none with a text; in the second epoch all clipped."""
    options = ("method=losses", "optimizer.steps_per_epoch=2", "optimizer.lr=1e-3", "rollout.images=2")
    trainer = without_texts("optimizer.micro_batch=2", *options)
    with torch.no_grad():
        for weight in trainer.adapters.parameters("default").values():
            weight.add_(0.1)
    given: list[tuple[Tensor, Tensor]] = []
    norms: list[Tensor] = []
    own, base_step = trainer.algorithm.loss, trainer.optimizer.base.step

    def spy(noised, micro, batch, wants_shared):
        losses, shared = own(noised, micro, batch, wants_shared)
        given.append((losses.losses().detach(), shared.detach() - losses.combined(batch.shares).detach()))
        return losses, shared

    def step():
        norms.append(torch.cat([w.grad.flatten() for w in trainer.adapters.parameters("default").values()]).norm())
        base_step()

    trainer.algorithm.loss, trainer.optimizer.base.step = spy, step  # type: ignore[method-assign]
    numbers = trainer.train_epoch()
    losses, distances = (torch.stack(column) for column in zip(*given, strict=True))
    assert len(losses) == 4
    assert math.isnan(numbers.pop("loss/reading"))
    names = list(trainer.config.rewards)[1:]
    assert [numbers[f"loss/{name}"] for name in names] == pytest.approx((losses.sum(0) / 2)[1:].tolist(), rel=1e-5)
    weights = trainer.weights[1:] / trainer.weights[1:].sum()
    assert numbers["loss/sum"] == pytest.approx((losses[:, 1:] @ weights).sum().item() / 2, rel=1e-5)
    assert numbers["kl"] == pytest.approx(distances.sum().item() / 2 / trainer.config.loss.kl, rel=1e-5)
    assert numbers["kl"] > 0
    assert numbers["grad_norm"] == pytest.approx(sum(norms).item() / 2, rel=1e-5)
    assert (numbers["clipped"], numbers["lr"]) == (0, 1e-3)
    trainer.optimizer.max_grad_norm = 1e-5
    numbers = trainer.train_epoch()
    assert [norm.item() for norm in norms[2:]] == pytest.approx([1e-5, 1e-5], rel=0.1)
    assert numbers["grad_norm"] > 1e-4
    assert numbers["clipped"] == 1
