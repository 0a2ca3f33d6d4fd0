"""The options of a reward, checked by name."""

from typing import Any

from .registry import RewardSettings


def options_of(settings: RewardSettings, **defaults: Any) -> dict[str, Any]:
    """``settings.options`` over ``defaults``.

    Raises ``ValueError`` for an option that ``defaults`` does not name, so that a misspelt one is not ignored.
    """
    unknown = sorted(set(settings.options) - set(defaults))
    if unknown:
        known = ", ".join(defaults) or "none"
        raise ValueError(f"unknown option {unknown[0]!r} of a reward: known are {known}")
    return {**defaults, **settings.options}
