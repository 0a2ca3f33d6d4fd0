"""Presets, files and overrides; everything wrong is refused before a model is loaded."""

from pathlib import Path

import pytest
from trainer_cases import small_config

from prompts.sources import load_prompts
from train import parse
from trainer.config import load_config
from trainer.config_files import PRESETS


@pytest.mark.parametrize("name", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_every_preset_loads(name: str) -> None:
    config = load_config(name)
    assert config.rewards
    assert config.total_epochs >= 1


def test_presets_have_the_prompts_that_need_no_download() -> None:
    """Each once: most presets have those of the recipe."""
    sources = [item for preset in PRESETS.glob("*.yaml") for item in load_config(preset.stem).sources.items()]
    for source, settings in {repr(item): item for item in sources}.values():
        if settings.path.startswith(("tiny:", "generated:")):
            train, test = (load_prompts(source, settings, held_out) for held_out in (False, True))
            trained, kept = ({(p.text, p.metadata.get("image")) for p in prompts} for prompts in (train, test))
            assert not trained & kept
            assert settings.count in (0, len(train))


def test_the_recipe_is_marbles() -> None:
    config = load_config("marble_sd35_5r")
    assert list(config.rewards) == ["pickscore", "hpsv2", "clipscore", "ocr", "geneval"]
    assert config.rewards["pickscore"].scale == pytest.approx(1 / 26)
    assert (config.rollout.prompts, config.rollout.images, config.rollout.steps) == (48, 24, 25)
    assert (config.lora.rank, config.lora.alpha, config.optimizer.lr) == (32, 64, 3e-4)
    assert (config.loss.beta, config.loss.kl, config.balance.refresh_every, config.balance.ema) == (0.1, 1e-4, 10, 0.7)
    assert config.rollout.prompts * config.rollout.images == 16 * 9 * 8


@pytest.mark.parametrize(
    ("name", "method"), [("equal_alpha", "equal"), ("gdpo", "gdpo"), ("weighted_sum", "sum"), ("sequential", "sum")]
)
def test_presets_of_other_methods_differ_in_the_method_only(name: str, method: str) -> None:
    recipe, other = load_config("marble_sd35_5r").as_dict(), load_config(name).as_dict()
    changed = {key for key in recipe if recipe[key] != other[key]}
    assert changed == {"method", "stages"} if name == "sequential" else changed == {"method"}
    assert other["method"] == method


def test_a_file_starts_from_a_preset_and_overrides_come_last(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("base: tiny\nseed: 7\noptimizer: {lr: 0.1}\nrewards:\n  reading: {weight: 3}\n")
    config = load_config(str(path), ["optimizer.lr=0.2", "rewards.colour.weight=0.5"])
    assert (config.seed, config.optimizer.lr, config.optimizer.name) == (7, 0.2, "sgd")
    assert {name: reward.weight for name, reward in config.rewards.items()} == {
        "reading": 3.0,
        "composition": 2.0,
        "colour": 0.5,
        "contrast": 1.0,
        "clean": 1.0,
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method=mean", "method must be one of"),
        ("parallel=tensor", "parallel must be one of"),
        ("epochs=0", "epochs must be at least 1"),
        ("epochs=many", "epochs"),
        ("learning_rate=1", "learning_rate"),
        ("optimizer.learning_rate=1", "learning_rate"),
        ("optimizer.lr=0", "must be positive"),
        ("optimizer.name=adam", "optimizer.name must be one of"),
        ("optimizer.schedule=step", "optimizer.schedule is one of"),
        ("optimizer.warmup=-1", "optimizer.warmup must not be negative"),
        ("optimizer.warmup=3", r"optimizer\.warmup \(3\) must be below the run's 3 optimizer steps"),
        ("optimizer.steps_per_epoch=2", r"must divide rollout.images \(3\)"),
        ("rollout.images=1", "at least 2"),
        ("rollout.solver=heun", "rollout.solver is one of"),
        ("loss.timesteps=20", r"drawn from the 2 rollout.steps"),
        ("loss.anchor=none", "loss.anchor is per_reward or shared"),
        ("loss.std=batch", "loss.std must be group or global"),
        ("loss.old=fast", "loss.old must be one of"),
        ("lora.rank=0", "lora.rank must be at least 1"),
        ("evaluation.every=0", "at least 1"),
        ("evaluation.shown=0", "shown are at least 1"),
        ("seed=-1", "seed must be a whole number >= 0"),
        ("rewards.reading.weight=-1", "must not be negative"),
        ("rewards.taste.weight=1", "unknown reward 'taste': known are pickscore"),
        ("rewards.reading.dtype=int8", "dtype"),
        ("sources.text.weight=-1", ">= 0"),
        ("model.precision=tf32", "model.precision must be"),
        ("stages=[{epochs: 1, rewards: [taste]}]", r"stages\[0\] names \['taste'\]"),
        ("stages=[{epochs: 1}]", "at least one reward"),
        ("stages=[{epochs: 1, rewards: [clean], sources: {text: 0}}]", r"stages\[0\].sources must be weights >= 0"),
        ("stages=[{epochs: 1, rewards: [clean], sources: {text: -1, general: 1}}]", r"stages\[0\].sources must be"),
        ("balance.groups={a: [reading, taste]}", r"balance.groups names \['taste'\]"),
        ("balance.ema=1", "balance.ema"),
        ("balance.refresh_every=0", "balance.refresh_every"),
        ("balance.probe=1.5", "balance.probe"),
        ("balance.guard=gradient", "balance.guard"),
    ],
)
def test_bad_settings_are_refused(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_config(override)


def test_probes_go_with_a_refresh_on_every_step() -> None:
    with pytest.raises(ValueError, match=r"balance\.probe solves on every step"):
        small_config("balance.refresh_every=2", "balance.probe=0.5")


def test_a_resumed_run_may_compute_elsewhere_and_in_other_portions() -> None:
    config = small_config("rewards.clean.url=http://other:1", "rewards.clean.batch_size=2", "optimizer.micro_batch=1")
    config.check_same(small_config("rollout.batch=2", "model.decode_batch=1").as_dict())
    with pytest.raises(ValueError, match=r"other settings \(rewards.clean.scale: saved 2.0, now 1.0\)"):
        config.check_same(small_config("rewards.clean.scale=2").as_dict())


def test_a_setting_that_a_saved_run_does_not_know_yet_counts_as_its_default() -> None:
    saved = small_config().as_dict()
    del saved["optimizer"]["warmup"], saved["slider"], saved["loss"]["std"], saved["rewards"]["clean"]["prefix"]
    small_config().check_same(saved)
    with pytest.raises(ValueError, match=r"other settings \(optimizer\.warmup: saved 0, now 1\)"):
        small_config("optimizer.warmup=1").check_same(saved)
    with pytest.raises(ValueError, match=r"\(optimizer\.gone: saved 3, now None\)"):
        small_config().check_same(
            small_config().as_dict() | {"optimizer": saved["optimizer"] | {"gone": 3, "warmup": 0}}
        )


def test_null_takes_away_what_a_preset_or_base_brings(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("base: tiny\nsources: {text: null}\nrewards: {reading: null, clean: {weight: 2}}\n")
    config = load_config(str(path), ["rewards.contrast=null", "rewards.colour.weight=3"])
    assert list(config.sources) == ["general", "composition"]
    weights = {name: reward.weight for name, reward in config.rewards.items()}
    assert weights == {"composition": 2.0, "colour": 3.0, "clean": 2.0}
    assert list(load_config("tiny").rewards) == ["reading", "composition", "colour", "contrast", "clean"]


def test_a_null_that_takes_nothing_away_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rewards\.raeding is null, .* has only reading, composition, colour"):
        load_config("tiny", ["rewards.raeding=null"])
    path = tmp_path / "own.yaml"
    path.write_text("sources: {general: {path: 'tiny:general'}}\nrewards:\n  colour:\n")
    with pytest.raises(ValueError, match=r"rewards\.colour is null, .* has only none; .* is written colour: \{\}"):
        load_config(str(path))
    with pytest.raises(ValueError, match="at least one of sources and of rewards"):
        load_config("tiny", [f"sources.{name}=null" for name in ("general", "text", "composition")])
    with pytest.raises(ValueError, match="sequential: Cannot merge"):
        load_config("sequential", ["stages.0=null"])


def test_all_weights_zero_are_refused() -> None:
    names = ("reading", "composition", "colour", "contrast", "clean")
    with pytest.raises(ValueError, match="all rewards have weight 0"):
        small_config(*(f"rewards.{name}.weight=0" for name in names))


def test_an_unknown_config_names_the_presets() -> None:
    with pytest.raises(ValueError, match=r"no config 'sd4'.*marble_sd35_5r"):
        load_config("sd4")


def test_a_config_without_rewards_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("sources: {general: {path: 'tiny:general'}}\n")
    with pytest.raises(ValueError, match="at least one of sources and of rewards"):
        load_config(str(path))


def test_a_file_that_is_no_yaml_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("sources: [\n")
    with pytest.raises(ValueError, match=r"broken\.yaml"):
        load_config(str(path))


def test_settings_stand_anywhere_on_the_command_line_and_paths_may_look_alike() -> None:
    words = ["rewards.my-own.weight=2", "--output", "runs/lr=1e-4", "stages=[{epochs: 1}]", "--seeds", "1", "2"]
    arguments, overrides = parse(words)
    assert str(arguments.output) == "runs/lr=1e-4"
    assert arguments.seeds == [1, 2]
    assert overrides == ["rewards.my-own.weight=2", "stages=[{epochs: 1}]"]
