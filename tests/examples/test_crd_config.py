"""CRD's section of a config, its presets, and the command line that chooses them."""

import pytest
from trainer_cases import small_config

import train
from trainer.config import load_config
from trainer.crd import check_groups


def test_the_crd_recipe_is_the_papers() -> None:
    config = load_config("crd_sd35")
    assert (config.algorithm, list(config.rewards), config.model.resolution) == ("crd", ["ocr"], 512)
    assert (config.lora.rank, config.lora.alpha) == (32, 64)
    assert (config.optimizer.name, config.optimizer.lr, config.optimizer.steps_per_epoch) == ("adamw", 3e-4, 2)
    rollout = config.rollout
    assert (rollout.prompts, rollout.images, rollout.steps, rollout.solver) == (48, 24, 10, "euler")
    assert (rollout.guidance, config.loss.timesteps, config.loss.std, config.evaluation.steps) == (1.0, 0, "global", 40)
    assert (config.crd.beta, config.crd.self_normalize, config.crd.form) == (1.0, True, "mse")
    anchor = config.crd.anchor
    assert (anchor.guidance, anchor.adaptive, anchor.low, anchor.high) == (4.5, "raw", 1e-4, 0.1)
    assert (config.crd.old, config.crd.sampling) == ("crd_ocr_old", "crd_ocr_sampling")


def test_the_spread_is_the_algorithms_own_unless_given() -> None:
    assert small_config().loss.std == "group"
    assert small_config("algorithm=crd").loss.std == "global"
    assert small_config("algorithm=crd", "loss.std=group").loss.std == "group"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algorithm=grpo", "algorithm must be one of"),
        ("crd.beta=0", "beta and temperature must be positive"),
        ("crd.temperature=-1", "beta and temperature must be positive"),
        ("crd.weighting=softmax", r"crd\.weighting must be one of"),
        ("crd.form=hinge", r"crd\.form must be one of"),
        ("crd.old=fast", r"crd\.old must be one of .*'crd_ocr_old'.* or a formula: 'fast' is not allowed"),
        ("crd.sampling=0.01 * step", r"crd\.sampling must be one of .*is 1\.01 at step 101"),
        ("loss.old=__import__('os')", r"loss\.old must be one of"),
        ("crd.anchor.weight=-0.1", r"crd\.anchor\.weight must be >= 0"),
        ("crd.anchor.guidance=-1", r"crd\.anchor\.guidance is >= 0"),
        ("crd.anchor.guidance=.inf", r"crd\.anchor\.guidance is >= 0"),
        ("crd.anchor.adaptive=on", r"crd\.anchor\.adaptive"),
        ("crd.anchor.low=0.2", "0 <= low <= high"),
        ("optimizer.steps_per_epoch=2", r"must divide rollout\.prompts \(3\)"),
        ("optimizer.micro_batch=2", r"micro_batch \(2\) must hold the 3 rollout\.images"),
    ],
)
def test_bad_crd_settings_are_refused(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_config("algorithm=crd", override)


def test_ranks_that_would_share_a_prompt_are_refused_with_what_fits() -> None:
    check_groups(48, 2, 8)
    with pytest.raises(ValueError, match=r"48 rollout\.prompts cannot be divided by 16 ranks x 2 .* take 32 or 64"):
        check_groups(48, 2, 16)
    with pytest.raises(ValueError, match="take 2 or 4 prompts"):
        check_groups(1, 1, 2)


@pytest.mark.parametrize(
    ("words", "overrides"),
    [
        ("", []),
        ("--algorithm crd --model tiny", ["model.name=tiny", "algorithm=crd"]),
        ("--algorithm nft epochs=3", ["algorithm=nft", "epochs=3"]),
        ("--model a/b", ["model.name=a/b"]),
    ],
)
def test_the_command_lines_model_and_algorithm_are_settings(words: str, overrides: list[str]) -> None:
    assert train.parse(words.split())[1] == overrides
