"""Each way to smooth against an explicit loop in fp64: numpy gradients, a min-norm point by enumeration."""

import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import marble_opt

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from comparison.smoothing import CrossFit, correlation
from comparison.smoothing_optimizers import CrossFitted, RewardMomentum, SmoothedGram

NAMES, IMAGES, BATCH, STEPS, RATE = ("a", "b", "c"), 2, 12, 6, 0.05
# A stranger's balancer gets the Gram in fp32.
TOLERANCE = {"rtol": 2e-5, "atol": 1e-6}


class Stream:
    """Squared errors to one target per reward; in odd steps the last reward has no sample."""

    def __init__(self) -> None:
        random = torch.Generator().manual_seed(3)
        self.inputs = torch.randn(STEPS, BATCH, 4, generator=random, dtype=torch.float64)
        self.targets = torch.randn(STEPS, 3, BATCH, generator=random, dtype=torch.float64)
        self.weights = torch.rand(STEPS, 3, BATCH, generator=random, dtype=torch.float64)
        self.weights[:, 1, ::2] = 0
        self.weights[1::2, 2] = 0

    def loss(self, model: nn.Module, step: int) -> marble_opt.SeparableLoss:
        prediction = model(self.inputs[step])
        terms = (prediction.squeeze(1) - self.targets[step]).square()
        return marble_opt.SeparableLoss(prediction, terms, torch.diag_embed(self.weights[step].T).permute(1, 2, 0))

    def rows(self, theta: np.ndarray, step: int, used: np.ndarray | None = None) -> np.ndarray:
        """g_k [3, 4] by hand: Σ_i w_ki 2 (x_iᵀθ − y_ki) x_i, over the samples ``used``."""
        x, y, w = (part[step].numpy() for part in (self.inputs, self.targets, self.weights))
        w = w if used is None else w * used
        return np.stack([(w[k] * 2 * (x @ theta - y[k])) @ x for k in range(3)])


def min_norm(gram: np.ndarray) -> np.ndarray:
    """The min-norm point of the simplex: the best of the affine minimisers of all faces."""
    best, found = np.inf, np.empty(0)
    for size in range(1, len(gram) + 1):
        for face in map(list, combinations(range(len(gram)), size)):
            system = np.block([[gram[np.ix_(face, face)], np.ones((size, 1))], [np.ones((1, size)), np.zeros((1, 1))]])
            weights = np.linalg.lstsq(system, np.append(np.zeros(size), 1.0), rcond=None)[0][:size]
            alpha = np.zeros(len(gram))
            alpha[face] = weights
            if weights.min() >= -1e-12 and alpha @ gram @ alpha < best:
                best, found = alpha @ gram @ alpha, alpha
    return found


def direction(rows: np.ndarray, gram: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """n̄ Σ α_k g_k / n_k over the rows that are not zero."""
    on = np.flatnonzero(np.abs(rows).sum(1))
    scale = norms[on]
    alpha = min_norm(gram[np.ix_(on, on)] / np.outer(scale, scale))
    return scale.mean() * (alpha / scale) @ rows[on]


def run(make) -> tuple[np.ndarray, np.ndarray]:
    """Parameters before and after the steps of a variant, with SGD as base."""
    torch.manual_seed(1)
    model = nn.Linear(4, 1, bias=False).double()
    start = model.weight.detach().flatten().numpy().copy()
    opt = make(model, torch.optim.SGD(model.parameters(), lr=RATE))
    stream = Stream()
    for step in range(STEPS):
        opt.backward(stream.loss(model, step))
        opt.step()
        opt.zero_grad()
    return start, model.weight.detach().flatten().numpy()


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, **TOLERANCE)


def test_no_smoothing() -> None:
    theta, found = run(lambda model, base: marble_opt.Marble(base, NAMES, model=model))
    for step in range(STEPS):
        rows = Stream().rows(theta, step)
        theta = theta - RATE * direction(rows, rows @ rows.T, np.linalg.norm(rows, axis=1))
    close(found, theta)


def test_ema_of_the_weights() -> None:
    theta, found = run(lambda model, base: marble_opt.Marble(base, NAMES, model=model, ema=0.7))
    stored = np.full(3, np.nan)
    for step in range(STEPS):
        rows = Stream().rows(theta, step)
        norms = np.linalg.norm(rows, axis=1)
        on = np.flatnonzero(norms)
        unit = rows[on] / norms[on, None]
        alpha = min_norm(unit @ unit.T)
        stored[on] = np.where(np.isnan(stored[on]), alpha, 0.7 * stored[on] + 0.3 * alpha)
        theta = theta - RATE * norms[on].mean() * (stored[on] / stored[on].sum()) @ unit
    close(found, theta)


def test_ema_of_the_gram() -> None:
    theta, found = run(lambda model, base: SmoothedGram(base, NAMES, model, rho=0.7))
    stored = np.full((3, 3), np.nan)
    for step in range(STEPS):
        rows = Stream().rows(theta, step)
        on = np.abs(rows).sum(1) > 0
        new = rows @ rows.T
        mixed = np.where(np.isnan(stored), new, 0.7 * stored + 0.3 * new)
        stored = np.where(np.outer(on, on), mixed, stored)
        theta = theta - RATE * direction(rows, stored, np.sqrt(np.diag(stored)))
    close(found, theta)


def test_momentum_per_reward() -> None:
    theta, found = run(lambda model, base: RewardMomentum(base, NAMES, beta1=0.9))
    moments, steps = np.zeros((3, 4)), np.zeros(3)
    for step in range(STEPS):
        rows = Stream().rows(theta, step)
        on = np.abs(rows).sum(1) > 0
        moments[on] = 0.9 * moments[on] + 0.1 * rows[on]
        steps += on
        smoothed = on[:, None] * moments / (1 - 0.9 ** np.maximum(steps, 1))[:, None]
        theta = theta - RATE * direction(smoothed, smoothed @ smoothed.T, np.linalg.norm(smoothed, axis=1))
    close(found, theta)


@pytest.mark.parametrize("signal", [False, True])
def test_cross_fitted_cosines(signal: bool) -> None:
    theta, found = run(lambda model, base: CrossFitted(base, NAMES, model, IMAGES, seed=5, signal=signal))
    random = torch.Generator().manual_seed(5)
    for step in range(STEPS):
        order = torch.randperm(BATCH // IMAGES, generator=random).numpy()
        first = np.repeat(order < BATCH // IMAGES // 2, IMAGES)
        stream = Stream()
        halves = [stream.rows(theta, step, used) for used in (first, ~first)]
        rows = halves[0] + halves[1]
        used = stream.weights[step].numpy() > 0
        means = [h / np.maximum((used & f).sum(1) / np.maximum(used.sum(1), 1), 1e-9)[:, None] for h, f in
                 zip(halves, (first, ~first), strict=True)]  # fmt: skip
        cross = (means[0] @ means[1].T + means[1] @ means[0].T) / 2
        plain = np.linalg.norm(rows, axis=1)
        scale = np.sqrt(np.maximum(np.diag(cross), 0.1 * plain**2))
        on = plain > 0
        cosines = np.clip(cross[np.ix_(on, on)] / np.outer(scale[on], scale[on]), -1, 1)
        np.fill_diagonal(cosines, 1)
        values, vectors = np.linalg.eigh(cosines)
        fixed = vectors @ np.diag(np.maximum(values, 0)) @ vectors.T
        fixed = fixed / np.sqrt(np.outer(np.diag(fixed), np.diag(fixed)))
        norms = scale[on] if signal else plain[on]
        theta = theta - RATE * norms.mean() * (min_norm(fixed) / norms) @ rows[on]
    close(found, theta)


def test_cross_fitting_undoes_the_attenuation_of_noise() -> None:
    """Two true gradients at cosine 0.8, noise of 4 times their length: plain cosines say 0.05, crossed ones 0.8."""
    random = torch.Generator().manual_seed(0)
    true = torch.tensor([[1.0, 0.0], [0.8, 0.6]], dtype=torch.float64)
    padded = torch.cat([true, torch.zeros(2, 398, dtype=torch.float64)], dim=1)
    total_plain, total_crossed = torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
    rule = CrossFit(2)
    for _ in range(400):
        parts = [padded / 2 + 0.2 / 2**0.5 * torch.randn(2, 400, generator=random, dtype=torch.float64) for _ in "AB"]
        rows = torch.cat(parts)
        whole = rows[:2] + rows[2:]
        total_plain += whole @ whole.T
        crossed = (rows @ rows.T)[:2, 2:] / rule.share.outer(1 - rule.share)
        total_crossed += (crossed + crossed.T) / 2
    assert _cosine(total_plain) < 0.1
    assert _cosine(total_crossed) == pytest.approx(0.8, abs=0.1)


def test_a_reward_of_one_half_only_has_its_plain_products() -> None:
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 5, generator=random, dtype=torch.float64)
    rule = CrossFit(2)
    rule.present = [True, True, True, False]
    gram = rows @ rows.T
    whole = torch.stack([rows[0] + rows[2], rows[1]])
    unit = whole / whole.norm(dim=1, keepdim=True)
    alpha = torch.as_tensor(min_norm((unit @ unit.T).numpy()))
    expected = whole.norm(dim=1).mean() * alpha / whole.norm(dim=1)
    torch.testing.assert_close(rule(gram), expected[[0, 1, 0]])


def test_an_indefinite_matrix_of_cosines_becomes_a_correlation() -> None:
    matrix = torch.tensor([[1.0, 0.9, -0.9], [0.9, 1.0, 0.9], [-0.9, 0.9, 1.0]], dtype=torch.float64)
    fixed = correlation(matrix)
    assert torch.linalg.eigvalsh(matrix)[0] < -0.5
    assert torch.linalg.eigvalsh(fixed)[0] > -1e-12
    torch.testing.assert_close(fixed.diagonal(), torch.ones(3, dtype=torch.float64))
    definite = torch.tensor([[1.0, 0.3], [0.3, 1.0]], dtype=torch.float64)
    assert torch.equal(correlation(definite), definite)


def test_a_vanished_gradient_is_refused_by_a_balancer_that_counts_rows() -> None:
    rule = CrossFit(2)
    with pytest.raises(ValueError, match="4 rows have a loss, 3 have a usable gradient"):
        rule(torch.eye(3))


def _cosine(gram: Tensor) -> float:
    return (gram[0, 1] / (gram[0, 0] * gram[1, 1]).sqrt()).item()
