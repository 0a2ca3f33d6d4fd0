"""What two runs' settings differ in, apart from what a resumed run may change."""

from typing import Any

# How long it is, what it shows, and where and in what portions it computes.
_FREE = ("epochs", "parallel", "log.", "evaluation.", "rollout.batch", "optimizer.micro_batch")
_FREE_OF_MODEL = ("model.checkpointing", "model.prompt_cache", "model.offload_text_encoders", "model.decode_batch")
_FREE_OF_REWARD = ("url", "device", "batch_size")


def differences(own: dict[str, Any], saved: dict[str, Any]) -> list[str]:
    """The settings that a run saved with ``saved`` cannot continue with, as text: "optimizer.lr: saved 1, now 2"."""
    rewards = tuple(f"rewards.{name}.{setting}" for name in own["rewards"] for setting in _FREE_OF_REWARD)
    free, now, old = (*_FREE, *_FREE_OF_MODEL, *rewards), flat(own), flat(saved)
    return [
        f"{key}: saved {old.get(key)!r}, now {now.get(key)!r}"
        for key in sorted({*now, *old})
        if now.get(key) != old.get(key) and not key.startswith(free)
    ]


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    values: dict[str, Any] = {}
    for key, value in settings.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
    return values
