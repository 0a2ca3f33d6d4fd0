"""Method "losses": one backward of the weighted mean of the rewards' own losses."""

import pytest
import torch
from trainer_cases import adapter_weights, without_texts


def test_own_losses_take_the_step_of_their_mean_in_one_backward() -> None:
    """Against a gradient per reward and the balancer that gives each of the present ones the same share."""
    mean = ("balance.balancer=benchmarks.comparison.balancers:mean", "balance.normalize=false")
    summed, balanced = (
        without_texts("rewards.composition.weight=1", *options) for options in (("method=losses",), mean)
    )
    start = adapter_weights(summed)
    for trainer in (summed, balanced):
        numbers = trainer.train_epoch()
        assert numbers["active/reading"] == 0
    for before, a, b in zip(start, adapter_weights(summed), adapter_weights(balanced), strict=True):
        torch.testing.assert_close(a - before, b - before, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("algorithm", ["nft", "crd"])
def test_own_losses_have_their_weights_among_the_rewards_that_have_samples(algorithm: str) -> None:
    """Over several micro-batches that hold unequal numbers of each reward's samples, against autograd by hand."""
    none = ("loss.kl=0", "crd.anchor.adaptive=constant", "crd.anchor.weight=0")
    trainer = without_texts("method=losses", f"algorithm={algorithm}", "rewards.colour.weight=4", *none)
    weights = list(trainer.adapters.parameters("default").values())
    shares = {"composition": 2 / 8, "colour": 4 / 8, "contrast": 1 / 8, "clean": 1 / 8}
    expected, own = [torch.zeros_like(weight) for weight in weights], trainer.algorithm.loss

    def spy(*arguments):
        losses, shared = own(*arguments)
        for name, loss in zip(trainer.config.rewards, losses.losses(), strict=True):
            if name in shares:
                for total, grad in zip(expected, torch.autograd.grad(loss, weights, retain_graph=True), strict=True):
                    total.add_(grad, alpha=shares[name])
        return losses, shared

    trainer.algorithm.loss = spy  # type: ignore[method-assign]
    before = [weight.detach().clone() for weight in weights]
    trainer.train_epoch()
    assert max(total.abs().max() for total in expected) > 1e-4
    for start, weight, step in zip(before, weights, expected, strict=True):
        torch.testing.assert_close(start - weight, step, rtol=1e-4, atol=1e-7)
