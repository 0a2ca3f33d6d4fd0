"""DiffusionNFT against a loop over the published formula, one reward and one sample at a time."""

from typing import Any

import pytest
import torch
from torch import Tensor

from marble_opt import losses
from toys import close, flat, normal, reward_gradients

SIZE, BATCH, BETA, CLIP = 3, 6, 0.7, 2.0


class Batch:
    def __init__(self) -> None:
        torch.manual_seed(2)
        self.model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8, 8), torch.nn.Unflatten(1, (2, 2, 2)))
        self.model.double()
        self.x_0, noise = normal(BATCH, 2, 2, 2), normal(BATCH, 2, 2, 2, seed=8)
        self.t = torch.tensor([0.0, 0.1, 0.35, 0.6, 0.9, 1.0], dtype=torch.float64)
        time = self.t.view(-1, 1, 1, 1)
        self.x_t = (1 - time) * self.x_0 + time * noise
        self.old = normal(BATCH, 2, 2, 2, seed=9)
        self.advantages = 2 * normal(SIZE, BATCH, seed=10)
        self.advantages[0, 1] = self.advantages[1, :4] = torch.nan
        assert (self.advantages.abs() > CLIP).any()

    def loss(self, **options: Any) -> Any:
        prediction = self.model(self.x_t)
        defaults = {"beta": BETA, "adv_clip": CLIP}
        return losses.diffusion_nft(
            prediction, self.old, self.x_t, self.x_0, self.t, self.advantages, **{**defaults, **options}
        )

    def sides(self, i: int) -> tuple[Tensor, Tensor]:
        """L⁺_i and L⁻_i."""
        v, old, x_t, x_0, t = self.model(self.x_t[i : i + 1])[0], self.old[i], self.x_t[i], self.x_0[i], self.t[i]
        result = []
        for implicit in (BETA * v + (1 - BETA) * old, (1 + BETA) * old - BETA * v):
            estimate = x_t - t * implicit
            size = max((estimate - x_0).abs().mean().item(), 1e-5)
            result.append((estimate - x_0).square().mean() / size)
        return result[0], result[1]

    def rating(self, k: int, i: int) -> float:
        return min(max(self.advantages[k, i].item(), -CLIP), CLIP) / (2 * CLIP) + 0.5

    def valid(self, k: int) -> list[int]:
        return [i for i in range(BATCH) if not self.advantages[k, i].isnan()]

    def per_reward(self, k: int, count: int) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for i in self.valid(k):
            plus, minus = self.sides(i)
            total = total + (self.rating(k, i) * plus + (1 - self.rating(k, i)) * minus) / count
        return total * CLIP / BETA

    def contrast(self, k: int, count: int) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for i in self.valid(k):
            plus, minus = self.sides(i)
            total = total + (self.rating(k, i) - 0.5) * (plus - minus) / count
        return total * CLIP / BETA

    def gradient(self, loss: Tensor) -> Tensor:
        return flat(torch.autograd.grad(loss, list(self.model.parameters()), retain_graph=True))


@pytest.mark.parametrize("counts", [None, [9, 8, 7]])
@pytest.mark.parametrize("anchor", ["per_reward", "shared"])
def test_gradients_equal_separate_backwards_of_the_formula(anchor: str, counts: list[int] | None) -> None:
    batch = Batch()
    loss = batch.loss(anchor=anchor, counts=None if counts is None else torch.tensor(counts))
    rows = reward_gradients(batch.model.parameters(), loss)
    for k in range(SIZE):
        count = len(batch.valid(k)) if counts is None else counts[k]
        alone = (batch.per_reward if anchor == "per_reward" else batch.contrast)(k, count)
        assert close(loss.losses()[k], alone)
        assert close(rows[k], batch.gradient(alone))


@pytest.mark.parametrize("samples", [None, 20])
def test_the_shared_anchor_is_the_mean_over_used_samples(samples: int | None) -> None:
    batch = Batch()
    batch.advantages[:, 0] = torch.nan
    used = [i for i in range(BATCH) if not batch.advantages[:, i].isnan().all()]
    expected = sum(sum(batch.sides(i)) for i in used) * CLIP / BETA / 2 / (samples or len(used))
    shared = batch.loss(anchor="shared", samples=samples).shared()
    assert isinstance(expected, Tensor)
    assert close(shared, expected)
    assert close(batch.gradient(shared), batch.gradient(expected))


def test_anchor_and_contrast_are_the_whole_when_every_reward_applies() -> None:
    batch = Batch()
    batch.advantages = batch.advantages.nan_to_num(0.3)
    contrast, whole = batch.loss(anchor="shared"), batch.loss()
    for k in range(SIZE):
        assert close(contrast.losses()[k] + contrast.shared(), whole.losses()[k])
    assert (contrast.weights.shape[0], whole.weights.shape[0]) == (1, 2)


def test_micro_batches_with_counts_add_up_to_the_whole_batch() -> None:
    batch = Batch()
    whole = reward_gradients(batch.model.parameters(), batch.loss())
    counts = torch.tensor([len(batch.valid(k)) for k in range(SIZE)])
    parts = torch.zeros_like(whole)
    full = {name: getattr(batch, name) for name in ("x_t", "x_0", "t", "old", "advantages")}
    for part in (slice(0, 2), slice(2, 6)):
        for name, tensor in full.items():
            setattr(batch, name, tensor[..., part] if name == "advantages" else tensor[part])
        parts += reward_gradients(batch.model.parameters(), batch.loss(counts=counts))
    assert close(parts, whole)


def test_a_reward_without_samples_has_no_weight() -> None:
    batch = Batch()
    batch.advantages[1] = torch.nan
    assert not batch.loss().weights[:, 1].any()
    assert batch.loss().losses().isfinite().all()


def test_advantages_beyond_the_clip_count_as_the_clip() -> None:
    batch = Batch()
    clipped = batch.loss().weights
    batch.advantages = batch.advantages.clamp(-CLIP, CLIP)
    assert torch.equal(batch.loss().weights, clipped)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_anchor_has_no_gradient_at_the_old_policy(dtype: torch.dtype) -> None:
    batch = Batch()
    prediction = batch.model(batch.x_t).detach().to(dtype).requires_grad_()
    x_t, x_0, t, advantages = (tensor.to(dtype) for tensor in (batch.x_t, batch.x_0, batch.t, batch.advantages))
    # Not to rounding error but exactly: a reward whose advantages are all zero then has no row at all.
    nothing = torch.zeros_like(advantages)
    loss = losses.diffusion_nft(prediction, prediction.detach().clone(), x_t, x_0, t, nothing, beta=BETA)
    (gradient,) = torch.autograd.grad(loss.losses().sum(), prediction)
    assert not gradient.any()


@pytest.mark.parametrize("name", ["old", "x_t", "x_0"])
def test_a_tensor_of_another_shape_is_named(name: str) -> None:
    batch = Batch()
    prediction = batch.model(batch.x_t)
    setattr(batch, name, normal(BATCH, 3))
    with pytest.raises(ValueError, match=rf"{name}\w* has shape \[6, 3\], the prediction \[6, 2, 2, 2\]"):
        losses.diffusion_nft(prediction, batch.old, batch.x_t, batch.x_0, batch.t, batch.advantages, beta=BETA)


@pytest.mark.parametrize(
    "t", [torch.full((6,), 1.2), torch.full((6,), -0.1), torch.full((6,), torch.nan), torch.ones(5)]
)
def test_times_outside_the_unit_interval_are_refused(t: Tensor) -> None:
    batch = Batch()
    batch.t = t
    with pytest.raises(ValueError, match=r"t must be \[6\] within \[0, 1\]"):
        batch.loss()


@pytest.mark.parametrize("options", [{"beta": 0.0}, {"beta": -1.0}, {"adv_clip": 0.0}])
def test_strengths_must_be_positive(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="beta and adv_clip must be positive"):
        Batch().loss(**options)


def test_an_unknown_anchor_is_named() -> None:
    with pytest.raises(ValueError, match=r"anchor must be one of .*'both'"):
        Batch().loss(anchor="both")
