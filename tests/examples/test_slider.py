"""The algorithm slider: who gets which preference, what is trained on, what is saved."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor
from trainer_cases import SMALL, adapter_weights

import marble_opt
from backbones.load import load_backbone
from backbones.preferred import load_preferred, preferring
from backbones.settings import ModelSettings
from marble_opt.preferences import PreferenceConditioning, nearest
from prompts.prompt import Prompt
from prompts.sampler import noise
from rewards.scorer import Scorer
from trainer import checkpoint
from trainer.buckets import Bucket
from trainer.config import Config, load_config
from trainer.preference_groups import preferences
from trainer.rollout import Rollout, advantages
from trainer.run import train
from trainer.slider import Slider
from trainer.table import table
from trainer.trainer import Trainer

SMALL_SLIDER = (
    *SMALL[:-2],
    "rollout.prompts=3",
    "balance.refresh_every=1",
    "loss.kl=0.1",
    "optimizer.steps_per_epoch=1",
)
FORMS = (
    ("method=gdpo",),
    ("method=gdpo", "slider.scalarisation=tchebycheff"),
    ("method=marble", "slider.divisions=2"),
)


def slider_config(*overrides: str, preset: str = "slider_tiny") -> Config:
    return load_config(preset, [*SMALL_SLIDER, *overrides])


def slider_trainer(*overrides: str, preset: str = "slider_tiny") -> Trainer:
    config = slider_config(*overrides, preset=preset)
    return Trainer(config, load_backbone(config.model), Scorer(config.rewards))


def pictures(backbone, omega: list[float]) -> Tensor:
    prompts = [preferring(Prompt(text), omega) for text in ("two red circles", "a meadow at night")]
    return backbone.sample(backbone.encode(prompts), noise([1, 2], backbone.latent_shape), 3)


def test_a_new_slider_is_the_base_model_bit_for_bit_in_every_state_and_for_every_preference() -> None:
    plain = load_backbone(ModelSettings())
    expected = plain.sample(
        plain.encode([Prompt("two red circles"), Prompt("a meadow at night")]), noise([1, 2], plain.latent_shape), 3
    )
    trainer = slider_trainer()
    for state in (*trainer.adapters.names, None):
        for omega in ([1.0, 0.0], [0.5, 0.5], [0.1, 0.9]):
            with trainer.adapters.using(state):
                assert torch.equal(pictures(trainer.backbone, omega), expected), (state, omega)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_slider_trains_lora_and_conditioning(form: tuple[str, ...]) -> None:
    trainer = slider_trainer(*form)
    before = {name: weight.detach().clone() for name, weight in trainer.adapters.parameters("default").items()}
    trainer.train_epoch()
    trainer.train_epoch()
    after = trainer.adapters.parameters("default")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"conditioning.time_path.2.weight", "conditioning.block_path.6.weight"} <= moved
    assert any("lora_B" in name for name in moved)
    assert all(torch.isfinite(weight).all() for weight in adapter_weights(trainer))
    assert not torch.equal(pictures(trainer.backbone, [1.0, 0.0]), pictures(trainer.backbone, [0.0, 1.0]))


def test_preferences_reach_the_rollout_and_both_policies_but_not_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = slider_trainer("slider.slots=2", "rollout.prompts=4")
    seen: dict[str, list[Tensor]] = {name: [] for name in trainer.adapters.names}
    for name, conditioning in trainer.adapters.conditionings.items():
        conditioning.register_forward_hook(lambda module, args, output, name=name: seen[name].append(args[0]))
    states: Counter[str | None] = Counter()
    plain = trainer.backbone.backbone.velocity

    def velocity(x: Tensor, t: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
        states[trainer.adapters.active] += 1
        assert "preference" not in conditioning
        return plain(x, t, conditioning)

    monkeypatch.setattr(trainer.backbone.backbone, "velocity", velocity)
    trainer.train_epoch()
    assert states == {"old": 2 + 1, None: 1, "default": 1}, "two sampler steps, then a forward of each policy"
    assert {name: len(calls) for name, calls in seen.items()} == {"default": 1, "old": 3, "average": 0}
    expected = preferences(trainer.config, 0).repeat_interleave(3, 0).float()
    for omega in (*seen["old"], *seen["default"]):
        assert torch.equal(omega.float(), expected), "a group's ω, the same over all sampling steps"


def test_groups_are_a_prompts_slots_and_their_preferences_a_function_of_the_epoch() -> None:
    config = slider_config("slider.slots=2", "rollout.prompts=4")
    assert config.distinct_prompts == 2
    assert torch.equal(preferences(config, 3), preferences(config, 3))
    assert not torch.equal(preferences(config, 3), preferences(config, 4))
    assert preferences(config, 3).shape == (4, 2)
    assert len(preferences(config, 3).unique(dim=0)) > 2


def test_slider_advantages_are_normalised_within_a_prompt_and_its_preference() -> None:
    trainer = slider_trainer("slider.slots=2", "rollout.prompts=4")
    (batch,), rollout = _batches(trainer, torch.rand(2, 12))
    omega = preferences(trainer.config, 0)[rollout.prompt_ids]
    values = advantages(rollout)
    for group in range(4):
        assert values[:, rollout.prompt_ids == group].mean(1).abs().max() < 1e-6
    (micro,) = batch.micro_batches
    torch.testing.assert_close(micro.mixed, (omega.mT * values).sum(0, keepdim=True).to(micro.mixed))


def _batches(trainer: Trainer, scores: Tensor) -> tuple[list, Rollout]:
    groups, images = trainer.config.rollout.prompts, trainer.config.rollout.images
    samples = [(group, image) for group in range(groups) for image in range(images)]
    prompt_ids, image_ids = torch.tensor(samples).unbind(1)
    latents = torch.zeros(len(samples), *trainer.backbone.latent_shape)
    bucket = Bucket(torch.arange(len(samples)), latents, {}, prompt_ids)
    rollout = Rollout(samples, [bucket], scores, prompt_ids, image_ids, slice(0, len(samples)))
    times = torch.tensor([1.0, 0.5])
    return trainer.algorithm.batches(rollout, times, 0, torch.ones(len(scores))), rollout


def test_tchebycheff_weighs_the_reward_that_lags_more() -> None:
    trainer = slider_trainer("slider.scalarisation=tchebycheff", "slider.mu=0.01", "rollout.prompts=6")
    slider, scores = trainer.algorithm, torch.stack([torch.linspace(0.8, 1, 18), torch.linspace(0, 1, 18)])
    _, rollout = _batches(trainer, scores)
    omega = preferences(trainer.config, 0)[rollout.prompt_ids]
    weights = slider._weights(rollout, omega, nearest(omega, slider.centres))
    inner = (omega > 0.2).all(1)
    assert (weights[inner, 1] > omega[inner, 1]).all(), "the second is far below its best"
    torch.testing.assert_close(weights.sum(1), torch.ones(18, dtype=weights.dtype))


@pytest.mark.parametrize("form", [pytest.param(FORMS[0], marks=pytest.mark.soak), FORMS[2]])
def test_micro_batches_of_a_slider_change_nothing(form: tuple[str, ...]) -> None:
    cut = ("optimizer.micro_batch=2", "rollout.batch=4")
    options = (
        *form,
        "loss.timesteps=2",
        "optimizer.steps_per_epoch=3",
        "optimizer.name=sgd",
        "optimizer.lr=0.5",
    )
    whole, parts = slider_trainer(*options), slider_trainer(*options, *cut)
    for trainer in (whole, parts):
        trainer.train_epoch()
    for a, b in zip(adapter_weights(whole), adapter_weights(parts), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=3e-6)


@pytest.mark.parametrize("form", FORMS[1:])
def test_a_resumed_slider_equals_an_unbroken_one_bit_for_bit(form: tuple[str, ...], tmp_path: Path) -> None:
    unbroken, second = slider_trainer(*form), slider_trainer(*form)
    unbroken.train_epoch()
    checkpoint.save(tmp_path, unbroken.state_dict())
    second.load_state_dict(checkpoint.load(tmp_path))
    for trainer in (unbroken, second):
        trainer.train_epoch()
    assert all(torch.equal(a, b) for a, b in zip(adapter_weights(unbroken), adapter_weights(second), strict=True))
    mine, other = (trainer.algorithm.state_dict() for trainer in (unbroken, second))
    torch.testing.assert_close(mine, other, rtol=0, atol=0, equal_nan=True)
    if "slider.scalarisation=tchebycheff" in form:
        assert mine["ideal"]["best"].isfinite().all()


def test_the_balanced_slider_equals_a_min_norm_problem_per_bucket() -> None:
    """One optimizer step against gradients of each bucket alone, by autograd, and `solve_min_norm`."""
    trainer = slider_trainer(
        "method=marble", "slider.divisions=1", "rollout.prompts=6", "optimizer.name=sgd", "optimizer.lr=1", "loss.kl=0"
    )
    trainer.config.optimizer.max_grad_norm = 1e9
    for _ in range(2):
        trainer.train_epoch()
    applied: dict[str, Tensor] = {}
    weights = trainer.adapters.parameters("default")
    slider, captured = trainer.algorithm, []
    assert isinstance(slider, Slider)
    loss = slider.loss

    def spy(noised, micro, batch, wants_shared):
        losses, shared = loss(noised, micro, batch, wants_shared)
        parameters = list(weights.values())
        for value in losses.losses():
            active = value.requires_grad
            grads = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True) if active else []
            captured.append(torch.cat([torch.zeros(p.numel()) if g is None else g.flatten() for p, g in
                                       zip(parameters, grads or [None] * len(parameters), strict=True)]))  # fmt: skip
        applied["omega"] = batch.preferences
        return losses, shared

    slider.loss = spy  # type: ignore[method-assign]
    base_step = trainer.optimizer.base.step
    trainer.optimizer.base.step = lambda *a: (
        applied.update({name: weight.grad.clone() for name, weight in weights.items()}) or base_step(*a)
    )
    trainer.train_epoch()
    rows, expected, used = torch.stack(captured).double(), 0, 0
    for bucket, omega in enumerate(applied["omega"]):
        own = rows[2 * bucket : 2 * bucket + 2]
        norms = own.norm(dim=1)
        keep = (norms > 0) & (omega > 0)
        if not keep.any():
            continue
        scaled = own[keep] / norms[keep, None] / omega[keep, None]
        beta = marble_opt.solve_min_norm(scaled @ scaled.mT).alpha
        alpha = beta / omega[keep]
        expected = expected + norms[keep].mean() * (alpha / alpha.sum()) @ (own[keep] / norms[keep, None])
        used += 1
    assert used == 2
    got = torch.cat([applied[name].flatten() for name in weights]).double()
    assert (got - expected / used).norm() < 1e-4 * got.norm()


def test_a_saved_slider_loads_into_a_fresh_model_and_draws_the_same_images(tmp_path: Path) -> None:
    trainer = slider_trainer("optimizer.lr=1e-2")
    for _ in range(2):
        trainer.train_epoch()
    trainer.backbone.save_lora(tmp_path, "average")
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    loaded = load_preferred(load_backbone(ModelSettings()), tmp_path)
    images = []
    for omega in ([1.0, 0.0], [0.3, 0.7], [0.0, 1.0]):
        with trainer.adapters.using("average"):
            images.append(pictures(trainer.backbone, omega))
        assert torch.equal(pictures(loaded, omega), images[-1])
    assert not torch.equal(images[0], images[2])


@pytest.mark.parametrize("method", ["gdpo", "marble"])
def test_a_whole_run_leaves_a_folder_that_loads(method: str, tmp_path: Path) -> None:
    run = train(slider_config("epochs=1", f"method={method}"), tmp_path, False, "cpu")
    assert table([run]).startswith("held-out reward")
    assert load_preferred(load_backbone(ModelSettings()), tmp_path / "lora").current().rewards == ("colour", "soft")


def test_a_folder_without_a_conditioning_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no preference_conditioning"):
        load_preferred(load_backbone(ModelSettings()), tmp_path)


def test_the_papers_recipe_is_a_preset() -> None:
    config = load_config("slider_sd35")
    assert (config.distinct_prompts, config.slider.slots, config.rollout.images) == (48, 3, 8)
    assert preferences(config, 0).shape == (144, 2)


def test_three_rewards_make_a_triangle() -> None:
    trainer = slider_trainer(preset="slider_tiny3")
    numbers = trainer.train_epoch()
    assert [f"train/{name}" in numbers for name in trainer.config.rewards] == [True] * 3
    assert preferences(trainer.config, 0).shape == (3, 3)
    assert pictures(trainer.backbone, [0.2, 0.3, 0.5]).shape == (2, 3, 24, 24)
    assert isinstance(trainer.adapters.current(), PreferenceConditioning)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method=sum", "a slider takes method gdpo"),
        ("method=losses", "got 'losses', which gives every sample the same weights"),
        ("rollout.prompts=4", r"slider\.slots \(3\) must divide rollout\.prompts \(4\)"),
        ("rollout.guidance=2", "sampled without guidance"),
        ("parallel=fsdp2", "not sharded"),
        ("stages=[{epochs: 1, rewards: [colour]}]", "takes no stages"),
        ("slider.scalarisation=chebyshev", "slider.scalarisation must be one of"),
        ("slider.mu=0", "mu > 0"),
        ("slider.means_decay=1", "slider.means_decay must be in"),
        ("slider.mixture={vertex: 0.5}", "shares of sum 1"),
        ("slider.slots=0", "slots, frequencies, divisions >= 1"),
    ],
)
def test_slider_settings_out_of_range_are_refused(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        slider_config(override)
