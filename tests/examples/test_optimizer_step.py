"""A step with its norm: the step is Marble's own bit for bit, the norm that of the whole gradient before clipping."""

import pytest
import torch
from torch import Tensor, nn

import marble_opt
from trainer.optimizer_step import take_step

LIMIT = 0.5


def run(own: bool, steps: int = 4, scaled: bool = False, **options: object) -> tuple[list[Tensor], list[float | None]]:
    """Train a small model by :func:`take_step`, or by Marble alone: its weights after each step, and the norms."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    base = torch.optim.AdamW(model.parameters(), lr=0.1)
    opt = marble_opt.Marble(base, ["a", "b"], max_grad_norm=LIMIT, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**6) if scaled else None
    weights, norms = [], []
    for _ in range(steps):
        outputs = model(torch.randn(6, 4))
        opt.backward(2 * (outputs - 1).square().mean(0), shared=outputs.square().mean(), scaler=scaler)
        if own:
            norm = take_step(opt, scaler)
            norms.append(None if norm is None else norm.item())
        elif scaler is None:
            opt.step()
        else:
            opt.balance()
            scaler.step(opt)
            scaler.update()
        opt.zero_grad()
        weights.append(torch.cat([weight.detach().flatten() for weight in model.parameters()]))
    return weights, norms


def unclipped(**options: object) -> list[float]:
    """The norms of what Marble clips by itself."""
    found: list[float] = []
    clip = torch.nn.utils.clip_grad_norm_

    def spy(parameters: list[Tensor], limit: float) -> Tensor:
        found.append(torch.cat([p.grad.flatten() for p in parameters]).norm().item())
        return clip(parameters, limit)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
        run(False, **options)
    return found


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("every", [1, 2])
def test_the_step_is_marbles_and_the_norm_that_before_clipping(every: int, scaled: bool) -> None:
    plain, _ = run(False, scaled=scaled, refresh_every=every)
    own, norms = run(True, scaled=scaled, refresh_every=every)
    assert all(torch.equal(a, b) for a, b in zip(plain, own, strict=True))
    scale = 2.0**6 if scaled else 1
    assert norms == pytest.approx([norm / scale for norm in unclipped(scaled=scaled, refresh_every=every)], rel=1e-5)
    assert max(norms) > LIMIT


@pytest.mark.parametrize("every", [1, 2])
def test_a_fused_step_tells_its_norm_where_it_solved(every: int) -> None:
    plain, _ = run(False, fused=True, refresh_every=every)
    own, norms = run(True, fused=True, refresh_every=every)
    assert all(torch.equal(a, b) for a, b in zip(plain, own, strict=True))
    assert [norm is None for norm in norms] == [step % every != 0 for step in range(4)]
    solved = unclipped(refresh_every=every)
    assert norms[0] == pytest.approx(solved[0], rel=1e-5)
    assert norms[::every] == pytest.approx(solved[::every], rel=1e-3)


def test_a_probed_steps_gram_is_not_its_gradients() -> None:
    model = nn.Linear(4, 2)
    opt = marble_opt.Marble(torch.optim.AdamW(model.parameters()), ["a", "b"], fused=True, micro_steps=2, probe=0.5)
    for _ in range(2):
        opt.backward(model(torch.randn(6, 4)).square().mean(0))
    assert take_step(opt, probed=True) is None
