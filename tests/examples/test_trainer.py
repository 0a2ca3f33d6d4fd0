"""The trainer on a few images: what is trained, what is measured, what is saved."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from trainer_cases import adapter_weights, small_config, small_trainer

import marble_opt
from backbones.load import load_backbone
from backbones.settings import ModelSettings
from prompts.prompt import Prompt
from trainer import checkpoint
from trainer.adapters import Adapters
from trainer.buckets import Bucket
from trainer.config import METHODS
from trainer.evaluation import Evaluation, composite, evaluate
from trainer.forecast import counts_of
from trainer.optimizer import make_balancer
from trainer.rollout import Rollout, gdpo_advantages, roll_out, summed_advantages
from trainer.run import Run, check_applies, check_shares
from trainer.step_batch import StepBatch, micro_steps, training_times
from trainer.table import table, worst_cosine

ONES = torch.ones(2)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_moves_the_trained_adapter_and_measures_all_rewards(method: str) -> None:
    trainer = small_trainer(f"method={method}")
    before = adapter_weights(trainer)
    numbers = trainer.train_epoch()
    assert any(not torch.equal(a, b) for a, b in zip(before, adapter_weights(trainer), strict=True))
    assert all(torch.isfinite(weight).all() for weight in adapter_weights(trainer))
    assert worst_cosine(numbers) is not None
    assert worst_cosine(numbers, "step_cosine") is not None
    assert ("loss/sum" in numbers) == trainer.config.summed
    assert all(numbers[f"loss/{name}"] > 0 for name in trainer.config.rewards if numbers[f"active/{name}"])


def test_another_balancer_is_found_by_its_import_path() -> None:
    """MGDA of unit gradients is what Marble solves; of raw gradients it is something else."""
    runs = {}
    mgda = "balance.balancer=benchmarks.comparison.balancers:mgda"
    same = "rewards.composition.weight=1"
    for name, options in {"own": (), "mgda": (mgda,), "raw": (mgda, "balance.normalize=false")}.items():
        trainer = small_trainer(same, *options)
        trainer.train_epoch()
        runs[name] = trainer.optimizer.report.coefficients
    torch.testing.assert_close(runs["own"], runs["mgda"], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(runs["own"], runs["raw"], rtol=1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("balance.balancer=torchjd.nothing:UPGradWeighting",), "module:name of a factory"),
        (("balance.balancer=marble_opt:Nothing",), "module:name of a factory"),
        (("balance.balancer=marble_opt:MinNorm", "method=sum"), "replaces method marble's"),
        (("balance.balancer=marble_opt:MinNorm", "rewards.clean.weight=3"), "the same weight"),
        (("balance.balancer=marble_opt:MinNorm", "balance.floor=0.1"), "the same weight"),
    ],
)
def test_a_balancer_that_cannot_be_used_is_refused(options: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_balancer(small_config("rewards.composition.weight=1", *options).balance.balancer)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_step_follows_the_gradient_under_sgd_only(optimizer: str) -> None:
    numbers = small_trainer(f"optimizer.name={optimizer}", "loss.kl=0").train_epoch()
    pairs = [(numbers[f"cosine/{name}"], numbers[f"step_cosine/{name}"]) for name in ("colour", "contrast", "clean")]
    same = all(abs(gradient - step) < 1e-3 for gradient, step in pairs)
    assert same == (optimizer == "sgd")


def test_an_epoch_shows_its_refresh_whichever_of_its_steps_that_was() -> None:
    """As in the recipe: two steps per epoch, a refresh on every tenth one, always the first of its epoch."""
    trainer = small_trainer("rollout.images=4", "optimizer.steps_per_epoch=2", "balance.refresh_every=4")
    rows = [trainer.train_epoch() for _ in range(3)]
    assert [row["balance/refreshed"] for row in rows] == [1, 0, 1]
    assert [worst_cosine(row) is not None for row in rows] == [True, False, True]


def test_adapters_start_as_the_base_model_bit_for_bit() -> None:
    backbone = load_backbone(ModelSettings())
    conditions, x = backbone.encode([Prompt("two red circles")]), torch.randn(1, 3, 24, 24)
    expected = backbone.velocity(x, torch.tensor([0.5]), conditions)
    adapters = Adapters(backbone.transformer, backbone.lora_targets, 4)
    for name in (*adapters.names, None):
        with adapters.using(name):
            assert torch.equal(backbone.velocity(x, torch.tensor([0.5]), conditions), expected)


def test_adapters_leave_the_generators_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of GPUs are not asked for: torch warns where there are several."""
    forked: list[object] = []
    fork = torch.random.fork_rng

    def remember(devices: object = None) -> object:
        forked.append(devices)
        return fork(devices=devices)

    monkeypatch.setattr(torch.random, "fork_rng", remember)
    backbone, before = load_backbone(ModelSettings()), torch.get_rng_state()
    Adapters(backbone.transformer, backbone.lora_targets, 4)
    assert torch.equal(torch.get_rng_state(), before)
    assert forked == [[]]


def test_only_the_default_adapter_is_trained_whichever_is_used() -> None:
    trainer = small_trainer()
    for name in (*trainer.adapters.names, None):
        with trainer.adapters.using(name):
            trainable = {key for key, weight in trainer.backbone.transformer.named_parameters() if weight.requires_grad}
            assert trainable
            assert all(".default." in key for key in trainable)


@pytest.mark.parametrize("method", ["marble", "gdpo"])
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(method: str, tmp_path: Path) -> None:
    rate = ("optimizer.schedule=linear", "optimizer.warmup=1") if method == "gdpo" else ()
    options = (f"method={method}", "balance.ema=0.5", "balance.refresh_every=2", "epochs=4", *rate)
    unbroken, second = small_trainer(*options), small_trainer(*options)
    unbroken.train_epoch()
    # Between two refreshes: the next step needs the last one's coefficients.
    checkpoint.save(tmp_path, unbroken.state_dict())
    second.load_state_dict(checkpoint.load(tmp_path))
    for trainer in (unbroken, second):
        for _ in range(2):
            trainer.train_epoch()
    assert all(torch.equal(a, b) for a, b in zip(adapter_weights(unbroken), adapter_weights(second), strict=True))
    for name in ("train/colour", "lr", "kl", "grad_norm"):
        assert [row[name] for row in second.history] == [row[name] for row in unbroken.history]
    if rate:
        assert [row["lr"] for row in second.history] == [0, 0.75, 0.5]


@pytest.mark.parametrize(
    ("method", "anchor"),
    [
        ("marble", "per_reward"),
        pytest.param("marble", "shared", marks=pytest.mark.soak),
        pytest.param("sum", "shared", marks=pytest.mark.soak),
    ],
)
def test_micro_batches_change_nothing(method: str, anchor: str) -> None:
    """Counts and averages are those of the whole step, however it is cut."""
    cut = ("optimizer.micro_batch=2", "rollout.batch=4", "evaluation.batch=5")
    options = (f"method={method}", f"loss.anchor={anchor}", "loss.timesteps=2", "optimizer.steps_per_epoch=3")
    whole, parts = small_trainer(*options), small_trainer(*options, *cut)
    for trainer in (whole, parts):
        trainer.train_epoch()
    for a, b in zip(adapter_weights(whole), adapter_weights(parts), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)
    assert whole.step == 3


def test_a_gradient_scaler_changes_nothing_but_the_scale() -> None:
    """What precision fp16 uses, here on fp32 gradients."""
    plain, scaled = small_trainer("optimizer.max_grad_norm=0.01"), small_trainer("optimizer.max_grad_norm=0.01")
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for trainer in (plain, scaled):
        trainer.train_epoch()
        trainer.train_epoch()
    for a, b in zip(adapter_weights(plain), adapter_weights(scaled), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert scaled.state_dict()["scaler"]["scale"] == 2.0**10


def test_a_preset_with_probes_runs_sums_too() -> None:
    trainer = small_trainer("method=sum", "balance.probe=0.5", "balance.shared_every=2", "loss.timesteps=2")
    assert counts_of(trainer.config).probe == 0
    trainer.train_epoch()
    assert trainer.optimizer.report.refreshed


def test_probes_and_guards_are_passed_on() -> None:
    options = ("balance.probe=0.5", "loss.timesteps=2", "optimizer.micro_batch=3", "balance.guard=step", "loss.kl=0.01")
    trainer = small_trainer(*options)
    trainer.train_epoch()
    report = trainer.optimizer.report
    assert report.refreshed
    assert report.guard is not None
    assert trainer.optimizer._cycle.schedule.probes == 3


def test_a_stage_trains_on_its_rewards_and_sources_only() -> None:
    stages = (
        "stages=[{epochs: 1, rewards: [reading], sources: {text: 1}}, {epochs: 2, rewards: [colour, clean]}]",
        "epochs=1",
    )
    trainer = small_trainer(*stages)
    assert trainer.config.total_epochs == 3
    first, second = trainer.train_epoch(), trainer.train_epoch()
    assert math.isnan(first["train/composition"])
    assert not math.isnan(first["train/clean"])
    assert [name for name in trainer.config.rewards if first[f"active/{name}"]] == ["reading"]
    assert [name for name in trainer.config.rewards if second[f"active/{name}"]] == ["colour", "clean"]
    assert not math.isnan(second["train/composition"])


def test_a_checkpoint_of_other_settings_is_refused() -> None:
    with pytest.raises(ValueError, match=r"other settings \(optimizer\.lr: saved 0\.75, now 0\.001\)"):
        small_trainer("optimizer.lr=1e-3").load_state_dict(small_trainer("epochs=9").state_dict())


def test_a_truncated_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, small_trainer().state_dict())
    path = tmp_path / checkpoint.NAME
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"checkpoint\.pt is not a readable checkpoint"):
        checkpoint.load(tmp_path)


def test_a_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"weights": torch.ones(1)}, tmp_path / checkpoint.NAME)
    with pytest.raises(ValueError, match=r"was not written by marble_opt\.save_checkpoint"):
        checkpoint.load(tmp_path)


def test_a_checkpoint_of_another_program_is_refused(tmp_path: Path) -> None:
    marble_opt.save_checkpoint(tmp_path / checkpoint.NAME, {"weights": torch.ones(1)})
    with pytest.raises(ValueError, match="not written by this trainer"):
        checkpoint.load(tmp_path)


def rollout_of(scores: torch.Tensor) -> Rollout:
    """Two prompts of two images each."""
    samples = [(0, 0), (0, 1), (1, 0), (1, 1)]
    prompt_ids, image_ids = torch.tensor(samples).unbind(1)
    bucket = Bucket(torch.arange(4), torch.zeros(4, 3, 24, 24), {}, prompt_ids)
    return Rollout(samples, [bucket], scores, prompt_ids, image_ids, slice(0, 4))


def test_mixed_advantages_follow_their_definitions() -> None:
    scores = torch.tensor([[1.0, 3.0, torch.nan, torch.nan], [10.0, 10.0, 2.0, 4.0]])
    rollout = rollout_of(scores)
    expected = torch.tensor([[-1.0, 1.0, -1.0, 1.0]])
    torch.testing.assert_close(summed_advantages(rollout, ONES), expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(gdpo_advantages(rollout, ONES), expected, atol=1e-3, rtol=0)
    raw = scores.clone()
    raw[1, :2] = torch.tensor([20.0, 10.0])
    conflicting = replace(rollout, scores=raw)
    assert summed_advantages(conflicting, ONES)[0, 0] > 0.99, "the raw sum follows the reward of larger scale"
    assert gdpo_advantages(conflicting, ONES)[0, :2].abs().max() < 1e-3, "z-scores of two opposed rewards cancel"
    assert gdpo_advantages(conflicting, torch.tensor([2.0, 1.0]))[0, 0] < -0.99, "unless one has more weight"


def test_a_score_lost_in_an_outage_sets_no_image_apart() -> None:
    """The second image has lost its second score, the fourth both."""
    nan = torch.nan
    rollout = rollout_of(torch.tensor([[1.0, 2.0, 1.0, nan], [20.0, nan, 3.0, nan]]))
    for mixed in (summed_advantages(rollout, ONES), gdpo_advantages(rollout, ONES)):
        torch.testing.assert_close(mixed[0, :2], torch.tensor([-1.0, 1.0]), atol=1e-3, rtol=0)
        assert mixed.isnan().tolist() == [[False, False, False, True]]


@pytest.mark.parametrize("method", ["sum", "gdpo", "losses"])
def test_a_sum_of_nothing_trains_nothing(method: str) -> None:
    trainer = small_trainer(f"method={method}", "loss.kl=0", "stages=[{epochs: 3, rewards: [reading]}]")
    trainer.train_prompts["text"] = trainer.train_prompts["composition"]
    before = adapter_weights(trainer)
    # Away from the old policy the anchor has a gradient.
    with torch.no_grad():
        for weight in trainer.adapters.parameters("old").values():
            weight.add_(0.1)
    trainer.train_epoch()
    trained = len(trainer.adapters.parameters("default"))
    assert all(torch.equal(a, b) for a, b in zip(before[:trained], adapter_weights(trainer), strict=False))


def test_a_reward_that_tells_no_images_apart_sits_the_step_out() -> None:
    rollout = rollout_of(torch.tensor([[1.0, 1.0, 3.0, 3.0], [1.0, 2.0, 2.0, 2.0], [torch.nan, torch.nan, 1.0, 2.0]]))
    config = small_config("rollout.images=2")
    batch = StepBatch.of(rollout, 0, torch.tensor([1.0, 0.5]), 0, torch.ones(3), config)
    (micro,) = batch.micro_batches
    assert micro.advantages[0].isnan().all()
    assert not micro.advantages[1].isnan().any(), "its second prompt has zero advantages, which is not absence"
    assert batch.counts.tolist() == [0, 4, 2]


def test_a_step_takes_an_equal_share_of_every_prompt() -> None:
    rollout = rollout_of(torch.rand(2, 4))
    config = small_config("rollout.images=2", "optimizer.steps_per_epoch=2", "optimizer.micro_batch=1")
    batches = [StepBatch.of(rollout, part, torch.tensor([1.0, 0.5]), 0, ONES, config) for part in range(2)]
    taken = [[int(micro.index) for micro in batch.micro_batches] for batch in batches]
    assert taken == [[0, 2], [1, 3]]
    assert micro_steps(config, 4) == 2


def test_training_times_are_drawn_without_repetition_from_the_first_share() -> None:
    times = torch.linspace(1, 0.04, 25)
    drawn = training_times(times, 0, [1, 2, 3])
    assert drawn.shape == (24, 3)
    assert all(sorted(column.tolist(), reverse=True) == times[:24].tolist() for column in drawn.T)
    assert not torch.equal(drawn[:, 0], drawn[:, 1])
    assert torch.equal(training_times(times, 5, [2])[:, 0], drawn[:5, 1])


def test_rollouts_depend_on_the_sample_and_not_on_the_batch() -> None:
    trainer = small_trainer()
    prompts = [prompts[0] for prompts in trainer.train_prompts.values()]
    rollouts = [
        roll_out(trainer.backbone, trainer.adapters, "old", trainer.scorer, prompts, small_config(option), 4)
        for option in ("rollout.batch=0", "rollout.batch=2")
    ]
    torch.testing.assert_close(rollouts[0].buckets[0].x_0, rollouts[1].buckets[0].x_0, rtol=0, atol=1e-5)
    assert torch.equal(rollouts[0].scores.isnan(), rollouts[1].scores.isnan())


def test_evaluation_is_repeatable_and_independent_of_training() -> None:
    trainer = small_trainer("evaluation.batch=4")
    result = trainer.evaluate()
    config = small_config()
    base = evaluate(load_backbone(config.model), None, None, trainer.scorer, trainer.test_prompts, config)
    assert sorted(base.images) == [0, 2, 4]
    torch.testing.assert_close(result.images[2], base.images[2], rtol=0, atol=1e-5)


def test_the_composite_is_a_mean_of_z_scores() -> None:
    base = {"a": 1.0, "a/std": 0.5, "b": 2.0, "b/std": 4.0, "c": math.nan, "c/std": math.nan, "d": 1.0, "d/std": 0.0}
    assert composite({"a": 2.0, "b": 0.0, "c": math.nan, "d": 2.0}, base, ["a", "b", "c", "d"]) == (2.0 - 0.5) / 2


def test_samples_that_cannot_be_shared_out_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_shares(small_config())
    monkeypatch.setattr("trainer.run.ranks.ranks", lambda: 2)
    with pytest.raises(ValueError, match="cannot be divided by 2 ranks: take 2 or 4 prompts"):
        check_shares(small_config())
    with pytest.raises(ValueError, match=r"has 6 samples per epoch, which optimizer.steps_per_epoch \(4\) does"):
        check_shares(small_config("rollout.images=4", "optimizer.steps_per_epoch=4"))


def test_a_reward_that_never_applies_is_refused() -> None:
    scores = torch.tensor([[1.0, 2.0], [torch.nan, torch.nan]])
    with pytest.raises(
        ValueError, match=r"no held-out prompt carries ocr: leave these rewards out \(rewards\.ocr=null\)"
    ):
        check_applies(Evaluation(("clean", "ocr"), [Prompt("a"), Prompt("b")], scores, {}))


def test_the_forecast_counts_what_the_trainer_does() -> None:
    config = small_config("optimizer.micro_batch=2", "loss.timesteps=2")
    counts = counts_of(config)
    assert (counts.samples, counts.micro_steps, counts.form) == (9, micro_steps(config, 9), "marble")
    assert {counts_of(small_config(f"method={method}")).form for method in ("sum", "gdpo", "losses")} == {"observe"}


def test_table_names_every_reward_and_the_conflict_shares() -> None:
    trainer = small_trainer()
    trainer.train_epoch()
    base = trainer.evaluate()
    text = table([Run(trainer.config, trainer.history, trainer.evaluations, base, base)])
    names = [line.split()[0] for line in text.splitlines()[1:6]]
    assert names == ["reading", "composition", "colour", "contrast", "clean"]
    assert "steps in conflict (gradient)" in text
    assert "steps in conflict (step taken)" in text


def test_the_table_has_no_row_for_what_was_not_measured() -> None:
    trainer = small_trainer("balance.track_step=false")
    trainer.train_epoch()
    base = trainer.evaluate()
    text = table([Run(trainer.config, trainer.history, trainer.evaluations, base, base)])
    assert "steps in conflict (gradient)" in text
    assert "step taken" not in text
    assert "nan" not in text
