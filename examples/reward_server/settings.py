"""Which rewards a server has, from the command line or a YAML file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from rewards.registry import RewardSettings


def from_yaml(path: Path) -> dict[str, RewardSettings]:
    """The fields of RewardSettings by reward: ``{ocr: {device: "cuda:1", options: {model: /weights/ocr}}}``."""
    try:
        import yaml
    except ImportError as error:
        raise ImportError("reading a YAML file needs PyYAML: pip install pyyaml") from error
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} must map names of rewards to their settings, as in `ocr: {{batch_size: 8}}`")
    return {str(name): _settings(str(name), values, path) for name, values in content.items()}


def with_options(settings: Mapping[str, RewardSettings], assignments: Sequence[str]) -> dict[str, RewardSettings]:
    """Settings with options like ``ocr.model=/weights/ocr``; a value that is not JSON is a string."""
    changed = dict(settings)
    for assignment in assignments:
        target, equals, text = assignment.partition("=")
        name, dot, key = target.partition(".")
        if not (equals and dot and key):
            raise ValueError(f"an option is written reward.option=value, got {assignment!r}")
        if name not in changed:
            raise ValueError(f"{assignment!r}: {name!r} is not among the rewards to be served, {', '.join(changed)}")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        changed[name] = replace(changed[name], options={**changed[name].options, key: value})
    return changed


def _settings(name: str, values: Any, path: Path) -> RewardSettings:
    defaults = {field.name: getattr(RewardSettings(), field.name) for field in fields(RewardSettings)}
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ValueError(f"{path}: the settings of {name!r} must be a mapping, got {values!r}")
    for key, value in values.items():
        if key not in defaults:
            raise ValueError(f"{path}: {name!r} has the unknown setting {key!r}; known are {', '.join(defaults)}")
        kinds = (int, float) if isinstance(defaults[key], float) else (type(defaults[key]),)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ValueError(f"{path}: {name}.{key} must be of type {kinds[-1].__name__}, got {value!r}")
    return RewardSettings(**values)
