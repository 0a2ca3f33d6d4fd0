"""The anchor to the guided pretrained model."""

import pytest
import torch

from marble_opt import Marble, losses
from toys import close, normal


def test_guidance_extrapolates_from_the_empty_prompt() -> None:
    with_prompt, without = normal(2, 3).requires_grad_(), normal(2, 3, seed=1)
    assert torch.equal(losses.guided_velocity(with_prompt, without, 0.0), without)
    assert close(losses.guided_velocity(with_prompt, without, 1.0), with_prompt.detach())
    guided = losses.guided_velocity(with_prompt, without)
    assert close(guided, (4.5 * with_prompt - 3.5 * without).detach())
    assert not guided.requires_grad


def test_the_anchor_is_the_mean_over_samples_and_dimensions() -> None:
    v, reference = normal(4, 2, 3).requires_grad_(), normal(4, 2, 3, seed=1).requires_grad_()
    strength = torch.tensor([0.0, 0.1, 0.2, 3.0], dtype=torch.float64, requires_grad=True)
    expected = sum(strength[i].detach() * sum((v[i] - reference[i].detach()).flatten() ** 2) / 6 for i in range(4)) / 4
    found = losses.kl_anchor(v, reference, strength=strength)
    assert close(found, expected)
    assert close(losses.kl_anchor(v, reference, strength=strength, samples=8), expected / 2)
    assert close(*(torch.autograd.grad(each, v, retain_graph=True)[0] for each in (found, expected)))
    assert all(each is None for each in torch.autograd.grad(found, [reference, strength], allow_unused=True))
    assert close(losses.kl_anchor(v, reference), 0.1 * (v - reference).square().mean())


def test_it_is_computed_in_fp32_at_least() -> None:
    v = normal(4, 1000).bfloat16().requires_grad_()
    found = losses.kl_anchor(v, torch.zeros_like(v), strength=torch.ones(4).bfloat16())
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, v.detach().float().square().mean(), rtol=1e-5, atol=0)


def test_strength_goes_from_low_to_high_with_the_reward() -> None:
    found = losses.adaptive_strength(torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor([1e-4, 0.75e-4 + 0.025, 0.1], dtype=torch.float64))
    ends = losses.adaptive_strength(torch.tensor([0.0, 1.0]), 0.3, 0.7)
    assert ends.tolist() == torch.tensor([0.3, 0.7]).tolist()


def test_it_is_a_shared_term_of_marble() -> None:
    p = torch.nn.Parameter(normal(3, 2))
    opt = Marble(torch.optim.SGD([p], lr=1.0), ["a"])
    strength = losses.adaptive_strength(torch.rand(3, dtype=torch.float64))
    anchor = losses.kl_anchor(p, torch.zeros_like(p), strength=strength)
    opt.backward({"a": p.sum()}, shared=anchor)
    opt.balance()
    assert p.grad is not None
    assert close(p.grad - 1, (strength.unsqueeze(1) * p / 3).detach())


def test_bad_anchors_are_refused() -> None:
    v = normal(4, 2)
    with pytest.raises(ValueError, match=r"got \[4, 2\] and \[4, 3\]"):
        losses.kl_anchor(v, normal(4, 3))
    with pytest.raises(ValueError, match=r"one number or \[4\]"):
        losses.kl_anchor(v, v, strength=torch.ones(3))
    with pytest.raises(ValueError, match="finite and not negative"):
        losses.kl_anchor(v, v, strength=-0.1)
    with pytest.raises(ValueError, match="finite and not negative"):
        losses.kl_anchor(v, v, strength=torch.tensor([0.1, torch.nan, 0.1, 0.1]))
    with pytest.raises(ValueError, match="at least the 4"):
        losses.kl_anchor(v, v, samples=3)
    with pytest.raises(ValueError, match=r"conditional has shape \[4, 2\]"):
        losses.guided_velocity(v, normal(4, 1))
    for wrong in (1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"within \[0, 1\]"):
            losses.adaptive_strength(torch.tensor([0.5, wrong]))
    with pytest.raises(ValueError, match="low <= high"):
        losses.adaptive_strength(torch.tensor([0.5]), 0.2, 0.1)
