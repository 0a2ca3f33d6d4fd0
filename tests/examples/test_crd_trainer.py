"""The trainer with Centered Reward Distillation: states, groups, gradients, anchor."""

from pathlib import Path

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from trainer_cases import adapter_weights, small_config, small_trainer

import marble_opt
from prompts.prompt import Prompt
from prompts.sampler import choose, noise
from trainer import checkpoint
from trainer.config import METHODS
from trainer.crd import GroupBatch, anchor_strength
from trainer.forecast import counts_of
from trainer.rollout import Rollout, roll_out
from trainer.step_batch import micro_steps
from trainer.trainer import Trainer

READING = tuple(f"rewards.{name}.weight=0" for name in ("composition", "colour", "contrast", "clean"))


def crd_trainer(*overrides: str) -> Trainer:
    return small_trainer("algorithm=crd", *overrides)


def rollout_of(trainer: Trainer) -> Rollout:
    """What the trainer's next epoch trains on."""
    config = trainer.config
    shares = {name: source.weight for name, source in config.sources.items()}
    prompts = choose(trainer.train_prompts, shares, config.rollout.prompts, config.seed, trainer.epoch)
    rollout = roll_out(trainer.backbone, trainer.adapters, "sampling", trainer.scorer, prompts, config, trainer.epoch)
    return rollout.only([settings.weight > 0 for settings in config.rewards.values()])


def batches_of(trainer: Trainer, rollout: Rollout) -> list:
    times = trainer.backbone.times(trainer.config.rollout.steps, trainer.config.rollout.solver)
    return trainer.algorithm.batches(rollout, times, trainer.epoch, trainer.weights)


@torch.no_grad()
def shake(trainer: Trainer) -> None:
    """Make the trained policy and the old one different from each other and from the pretrained model."""
    generator = torch.Generator().manual_seed(5)
    for name in ("default", "old"):
        for weight in trainer.adapters.parameters(name).values():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))


@pytest.mark.parametrize("method", METHODS)
def test_crd_trains_and_measures_with_every_method(method: str) -> None:
    trainer = crd_trainer(f"method={method}")
    before = trainer.adapters.state_dict()["default"]
    numbers = trainer.train_epoch()
    after = trainer.adapters.state_dict()["default"]
    assert any(not torch.equal(before[key], after[key]) for key in before)
    assert all(torch.isfinite(weight).all() for weight in adapter_weights(trainer))
    assert all(numbers[f"norm/{name}"] > 0 for name in trainer.config.rewards if numbers[f"active/{name}"])
    assert numbers["active/colour"]


def test_old_and_sampling_follow_by_their_own_schedules_once_per_epoch() -> None:
    trainer = crd_trainer(
        "crd.old=min(0.25 * step, 1)", "crd.sampling=0 if step < 4 else 1", "optimizer.steps_per_epoch=3"
    )
    assert trainer.adapters.names == ("default", "old", "sampling", "average")
    start = trainer.adapters.state_dict()["default"]
    trainer.train_epoch()
    first = trainer.adapters.state_dict()
    trainer.config.crd.old = "0.5"
    trainer.train_epoch()
    second = trainer.adapters.state_dict()
    for key, base in start.items():
        torch.testing.assert_close(first["old"][key], 0.75 * base + 0.25 * first["default"][key])
        assert torch.equal(first["sampling"][key], first["default"][key])
        torch.testing.assert_close(second["old"][key], 0.5 * first["old"][key] + 0.5 * second["default"][key])
        assert torch.equal(second["sampling"][key], first["default"][key]), "decay 1 keeps it"


def test_groups_stay_whole_and_share_one_time() -> None:
    options = ("rollout.prompts=6", "optimizer.steps_per_epoch=2", "optimizer.micro_batch=7", "loss.timesteps=2")
    trainer = crd_trainer(*options, "rollout.steps=4")
    rollout = rollout_of(trainer)
    batches = batches_of(trainer, rollout)
    assert [batch.samples for batch in batches] == [18, 18]
    taken = []
    for batch in batches:
        assert [len(micro.index) for micro in batch.micro_batches] == [6, 3, 6, 3]
        assert len(batch.micro_batches) == micro_steps(trainer.config, 18)
        for micro in batch.micro_batches:
            assert torch.equal(micro.prompt_ids, rollout.prompt_ids[micro.index])
            times = [micro.t[micro.prompt_ids == prompt] for prompt in micro.prompt_ids.unique()]
            assert all(len(t) == 3 and (t == t[0]).all() for t in times)
            assert len(set(micro.seeds)) == len(micro.seeds), "the noise is each image's own"
            taken += zip(micro.index.tolist(), micro.t.tolist(), strict=True)
    assert len(set(taken)) == 36, "every image at two different times"
    assert {int(rollout.prompt_ids[i]) % 2 for i in batches[0].micro_batches[0].index} == {0}


@pytest.mark.parametrize("method", ["marble", "sum"])
def test_micro_batches_of_whole_groups_change_nothing(method: str) -> None:
    whole, parts = (
        crd_trainer(f"method={method}", *cut) for cut in ((), ("optimizer.micro_batch=4", "rollout.batch=4"))
    )
    for trainer in (whole, parts):
        shake(trainer)
        trainer.train_epoch()
    for a, b in zip(adapter_weights(whole), adapter_weights(parts), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=4e-6)


def direct_losses(trainer: Trainer, mixed: bool) -> tuple[Tensor, Tensor]:
    """The rewards' losses (or the sum's) over the next optimizer step by the slow twin, and the anchor, as graphs."""
    config, backbone, states = trainer.config, trainer.backbone, trainer.adapters
    rollout = rollout_of(trainer)
    (batch,) = batches_of(trainer, rollout)
    index, t, advantages, ids, scores = [], [], [], [], []
    seeds: list[int] = []
    for number, micro in enumerate(batch.micro_batches):
        index, t = [*index, micro.index], [*t, micro.t]
        advantages.append(micro.mixed if mixed else micro.advantages)
        # One group per prompt and time.
        ids.append(micro.prompt_ids + 100 * number)
        scores.append(micro.scores)
        seeds += micro.seeds
    x_0, time = rollout.take(torch.cat(index))[0], torch.cat(t)
    epsilon = noise(seeds, backbone.latent_shape)
    x_t = (1 - time.view(-1, 1, 1, 1)) * x_0 + time.view(-1, 1, 1, 1) * epsilon
    conditions = rollout.take(torch.cat(index))[1]
    empty = {
        name: tensor.expand(len(time), *tensor.shape[1:]) for name, tensor in backbone.encode([Prompt("")]).items()
    }
    with states.using("old"):
        old = backbone.velocity(x_t, time, conditions)
    with states.using(None):
        plain, without = backbone.velocity(x_t, time, conditions), backbone.velocity(x_t, time, empty)
    prediction = backbone.velocity(x_t, time, conditions)
    losses = marble_opt.losses.crd_reference(
        prediction, old, epsilon - x_0, torch.cat(advantages, 1), torch.cat(ids), beta=config.crd.beta
    )
    u = torch.cat(scores, 1).clamp(0, 1).nanmean(0).nan_to_num(0)
    distance = (prediction - (without + 4.5 * (plain - without))).square().flatten(1).mean(1)
    return losses, (((1 - u) * 1e-4 + 0.1 * u) * distance).mean()


def gradient(value: Tensor, trainer: Trainer) -> Tensor:
    parameters = list(trainer.adapters.parameters("default").values())
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters, retain_graph=True)])


def test_a_summed_step_takes_the_gradient_of_the_whole_steps_loss() -> None:
    options = ("method=sum", "loss.timesteps=2", "optimizer.micro_batch=3", "crd.beta=0.5")
    trainer = crd_trainer(*options, "optimizer.max_grad_norm=1e9", "optimizer.lr=1")
    shake(trainer)
    losses, anchor = direct_losses(trainer, mixed=True)
    expected = gradient(losses.sum() + anchor, trainer)
    before = torch.cat([w.detach().flatten().clone() for w in trainer.adapters.parameters("default").values()])
    trainer.train_epoch()
    after = torch.cat([w.detach().flatten() for w in trainer.adapters.parameters("default").values()])
    assert (before - after - expected).norm() < 1e-4 * expected.norm()


def test_balanced_gradients_are_those_of_each_rewards_whole_loss() -> None:
    trainer = crd_trainer("loss.timesteps=2", "optimizer.micro_batch=6")
    shake(trainer)
    losses, _ = direct_losses(trainer, mixed=False)
    numbers = {}
    for name, loss in zip(trainer.config.rewards, losses, strict=True):
        if loss.requires_grad:
            numbers[name] = gradient(loss, trainer).norm().item()
    measured = trainer.train_epoch()
    assert len(numbers) >= 4
    assert {name: measured[f"norm/{name}"] for name in numbers} == pytest.approx(numbers, rel=1e-3)


def test_a_resumed_crd_run_equals_an_unbroken_one_bit_for_bit(tmp_path: Path) -> None:
    options = ("optimizer.name=adamw", "optimizer.lr=1e-3", "crd.sampling=0.25")
    unbroken, second = crd_trainer(*options), crd_trainer(*options)
    unbroken.train_epoch()
    checkpoint.save(tmp_path, unbroken.state_dict())
    second.load_state_dict(checkpoint.load(tmp_path))
    for trainer in (unbroken, second):
        trainer.train_epoch()
    assert all(torch.equal(a, b) for a, b in zip(adapter_weights(unbroken), adapter_weights(second), strict=True))


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        (("crd.anchor.adaptive=constant", "crd.anchor.weight=0"), []),
        (("crd.anchor.adaptive=advantage", "crd.anchor.low=0", "crd.anchor.high=0"), []),
        (("crd.anchor.guidance=1",), [9]),
        ((), [18]),
    ],
)
def test_the_reference_runs_only_where_the_anchor_wants_it(
    options: tuple[str, ...], sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = crd_trainer(*options)
    found, velocity = [], trainer.backbone.velocity

    def counted(x: Tensor, *rest: object) -> Tensor:
        layer = next(m for m in trainer.backbone.transformer.modules() if isinstance(m, BaseTunerLayer))
        if layer.disable_adapters:
            found.append(len(x))
        return velocity(x, *rest)

    monkeypatch.setattr(trainer.backbone, "velocity", counted)
    trainer.train_epoch()
    assert found == sizes
    counts = counts_of(trainer.config)
    assert counts.kl * counts.references * counts.samples == sum(sizes)


def test_the_anchors_strength_follows_rewards_or_advantages() -> None:
    nan = torch.nan
    micro = GroupBatch(
        torch.arange(4),
        torch.ones(4),
        [0, 1, 2, 3],
        torch.tensor([[-9.0, 0.0, 2.5, nan], [nan, 5.0, 2.5, nan]]),
        None,
        torch.zeros(4, dtype=torch.int64),
        torch.tensor([[0.0, 0.5, 3.0, nan], [nan, 1.0, 0.5, nan]]),
    )

    def u(adaptive: str) -> list[float]:
        options = (f"crd.anchor.adaptive={adaptive}", "crd.anchor.low=0", "crd.anchor.high=1")
        return anchor_strength(small_config("algorithm=crd", *options), micro).tolist()

    assert u("raw") == pytest.approx([0.0, 0.75, 0.75, 0.0])
    assert u("advantage") == pytest.approx([0.0, 0.75, 0.75, 0.5])
    config = small_config("algorithm=crd", "crd.anchor.adaptive=constant", "crd.anchor.weight=0.3")
    assert anchor_strength(config, micro) == 0.3
    low, high = anchor_strength(small_config("algorithm=crd"), micro)[[0, 1]].tolist()
    assert (low, high) == pytest.approx((1e-4, 0.25 * 1e-4 + 0.75 * 0.1))


@pytest.mark.parametrize("algorithm", ["nft", "crd"])
def test_a_reward_of_weight_0_is_evaluated_and_not_trained(algorithm: str) -> None:
    trainer = small_trainer(f"algorithm={algorithm}", *READING)
    rollout = rollout_of(trainer) if algorithm == "crd" else None
    numbers = trainer.train_epoch()
    assert [name for name in trainer.config.rewards if numbers[f"active/{name}"]] in (["reading"], [])
    assert trainer.evaluate().summary()["clean"] > 0
    if rollout is not None:
        assert [int(batch.counts[1:].sum()) for batch in batches_of(trainer, rollout)] == [0]
