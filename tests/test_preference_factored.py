"""The factored route through a conditioned transformer: K gradients of LoRA and both conditioning modules at once."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from factored_cases import agree, error, loop, make_loss, move, trained
from marble_opt import Marble, losses
from marble_opt.per_sample.engine import RowEngine
from marble_opt.preferences import BucketBalancer, bucket_advantages, bucket_rewards, install
from preference_cases import BATCH, add_lora, inputs, new_conditioning, new_transformer, preferences_for, run
from toys import normal
from transformer_families import FAMILIES, family_of, in_fp64


def forward(model: Any, conditioning: Any, omega: Tensor, step: int) -> Tensor:
    with conditioning.preference(omega):
        return run(model, inputs(model.dtype, seed=step, family=family_of(model)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("dtype", "reentrant"),
    [(torch.float32, None), (torch.float64, None), (torch.float64, False), (torch.float64, True)],
)
def test_all_gradients_equal_the_loop(family: str, dtype: torch.dtype, reentrant: bool | None) -> None:
    model, conditioning = new_transformer(dtype, family), new_conditioning(dtype)
    install(model, conditioning)
    engine = RowEngine([model, conditioning], 3)
    add_lora(model, "default")
    if reentrant is not None:
        function = torch.utils.checkpoint.checkpoint
        model.enable_gradient_checkpointing(lambda block, *args: function(block, *args, use_reentrant=reentrant))
    parameters = trained(model, conditioning)
    own = set(conditioning.parameters())
    assert own < set(parameters)
    with in_fp64(model) if dtype is torch.float64 else nullcontext():
        for step in range(2):
            # One preference per sample, then one for all, which is expanded.
            omega = preferences_for(seed=step) if step < 1 else preferences_for(seed=step)[0]
            loss = make_loss(forward(model, conditioning, omega, step), seed=step)
            forward(model, conditioning, preferences_for(seed=50), step)
            # A reentrant checkpoint refuses torch.autograd.grad.
            rows = engine.exact(loss, parameters, retain_graph=True) if reentrant else loop(loss, parameters)
            expected = {p: block for p, block in rows.items() if block.any()}
            assert own < set(expected)
            found = engine.gradients(loss, parameters, retain_graph=True)
            assert found.uncovered == []
            agree(found.blocks, expected)
            engine.check(loss, parameters)
            move(parameters, step)


def test_under_autocast_it_is_no_worse_than_the_loop() -> None:
    model, exact = new_transformer(), new_transformer().double()
    conditioning, twin = new_conditioning(), new_conditioning(torch.float64)
    install(model, conditioning)
    install(exact, twin)
    engine, parameters = RowEngine([model, conditioning], 3), trained(conditioning)
    given, omega = inputs(), preferences_for()
    with twin.preference(omega):
        prediction = exact(**{name: value.double() for name, value in given.items()}).sample
    expected = torch.cat([each.flatten() for each in loop(make_loss(prediction), trained(twin)).values()])
    with torch.autocast("cpu", torch.bfloat16), conditioning.preference(omega):
        prediction = model(**given).sample
    loss = make_loss(prediction.float())
    slow = torch.cat([each.flatten() for each in loop(loss, parameters).values()])
    found = engine.gradients(loss, parameters, retain_graph=True)
    assert found.uncovered == []
    fast = torch.cat([found.blocks[p].flatten() for p in parameters])
    assert error(slow, expected) > 1e-4
    assert error(fast, expected) < 1.5 * error(slow, expected)


def conditioned_step(route: str, family: str) -> tuple[Tensor, Tensor]:
    """Old policy, reference and current forward as in a training loop, with a bucket per preference; the parameters."""
    model, conditioning, old = new_transformer(family=family), new_conditioning(), new_conditioning()
    add_lora(model, "default", "old")
    install(model, conditioning)
    install(model, old)
    parameters = trained(model, conditioning)
    omega = preferences_for(2)
    buckets = torch.tensor([0, 1, 1, 0])
    opt = Marble(
        torch.optim.SGD(parameters, lr=1e-2),
        bucket_rewards(conditioning.rewards, 2),
        balancer=BucketBalancer(omega),
        model=[model, conditioning],
        route=route,
    )
    before = torch.cat([p.detach().flatten() for p in parameters])
    given = inputs(family=family)
    t, x_t = torch.linspace(0.2, 0.8, BATCH), given["hidden_states"]
    x_0 = normal(*x_t.shape, dtype=torch.float32)
    with torch.no_grad():
        model.set_adapter("old")
        with old.preference(omega[buckets]):
            v_old = model(**given).sample
        model.set_adapter("default")
        model.disable_adapters()
        reference = model(**given).sample
        model.enable_adapters()
    with conditioning.preference(omega[buckets]):
        v = model(**given).sample
    rows = bucket_advantages(normal(3, BATCH, dtype=torch.float32), buckets, 2)
    loss = losses.diffusion_nft(v, v_old, x_t, x_0, t, rows, beta=0.1, anchor="shared")
    opt.backward(loss, shared=losses.kl_anchor(v, reference, strength=1e-4))
    opt.step()
    assert opt.report is not None
    assert opt.report.route == route
    assert not opt.report.fallback
    assert opt.report.active.all()
    return before, torch.cat([p.detach().flatten() for p in parameters])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_conditioned_step_of_marble_trains_lora_and_conditioning_alike_on_both_routes(family: str) -> None:
    before, factored = conditioned_step("factored", family)
    own = sum(p.numel() for p in new_conditioning().parameters())
    assert (factored != before)[-own:].double().mean() > 0.8
    assert (factored != before)[:-own].double().mean() > 0.8
    change = conditioned_step("loop", family)[1] - before
    assert ((factored - before) - change).norm() <= 1e-4 * change.norm()
