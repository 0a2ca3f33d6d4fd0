"""Settings of a reward are checked before anything is loaded."""

import math

import omegaconf
import pytest

from rewards.registry import RewardSettings, build
from trainer.config import load_config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dtype": "fp16"}, "dtype must be float32, float16 or bfloat16, got 'fp16'"),
        ({"device": "gpu"}, "device must be one that torch knows, got 'gpu'"),
        ({"device": "cuda:first"}, "got 'cuda:first'"),
        ({"device": ""}, "got ''"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"frame_stride": 0}, "frame_stride must be at least 1, got 0"),
        ({"weight": math.nan}, "weight and scale must be finite, got nan and 1.0"),
        ({"scale": math.inf}, "weight and scale must be finite, got 1.0 and inf"),
    ],
)
def test_values_that_no_reward_can_have_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewardSettings(**values)


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:7", "mps"])
def test_a_device_need_not_be_present(device: str) -> None:
    assert RewardSettings(device=device, url="http://127.0.0.1:1").device == device


def test_a_device_that_is_not_there_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="reward clean: there is no GPU here for its device 'cuda'; or set its url"):
        build("clean", RewardSettings(device="cuda"))


def test_settings_are_a_structured_config() -> None:
    schema = omegaconf.OmegaConf.structured(RewardSettings)
    values = {"scale": 1 / 26, "dtype": "float16", "options": {"model": "/weights"}}
    values |= {"prefix": "a pencil sketch of ", "frame_stride": 4}
    merged = omegaconf.OmegaConf.to_object(omegaconf.OmegaConf.merge(schema, values))
    assert merged == RewardSettings(
        scale=1 / 26, dtype="float16", prefix="a pencil sketch of ", frame_stride=4, options={"model": "/weights"}
    )
    with pytest.raises(omegaconf.errors.ConfigKeyError):
        omegaconf.OmegaConf.merge(schema, {"batchsize": 3})
    with pytest.raises(ValueError, match="dtype must be"):
        omegaconf.OmegaConf.to_object(omegaconf.OmegaConf.merge(schema, {"dtype": "half"}))


def test_a_run_takes_prefix_and_stride_from_its_config_and_a_resumed_one_keeps_them() -> None:
    changes = ["rewards.colour.prefix='a sketch of '", "rewards.colour.frame_stride=2"]
    config = load_config("tiny", changes)
    assert (config.rewards["colour"].prefix, config.rewards["colour"].frame_stride) == ("a sketch of ", 2)
    assert (config.rewards["clean"].prefix, config.rewards["clean"].frame_stride) == ("", 1)
    config.check_same(load_config("tiny", changes).as_dict())
    for change in changes:
        with pytest.raises(ValueError, match=r"other settings \(rewards\.colour"):
            load_config("tiny", [change]).check_same(config.as_dict())
    with pytest.raises(ValueError, match="frame_stride must be at least 1, got 0"):
        load_config("tiny", ["rewards.colour.frame_stride=0"])
