"""A conditioning on disk, and what it refuses to be given or installed on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from marble_opt.preferences import PreferenceConditioning, install
from preference_cases import (
    REWARDS,
    conditioned,
    new_conditioning,
    new_transformer,
    preferences_for,
    run,
)


def test_saved_beside_a_lora_and_read_again(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model, conditioning, omega = new_transformer(), new_conditioning(), preferences_for()
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"someone else's")
    conditioning.save_pretrained(tmp_path)
    conditioning.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "preference_conditioning.json",
        "preference_conditioning.safetensors",
        "pytorch_lora_weights.safetensors",
    ]
    assert (tmp_path / "pytorch_lora_weights.safetensors").read_bytes() == b"someone else's"
    assert json.loads((tmp_path / "preference_conditioning.json").read_text())["rewards"] == REWARDS
    again = PreferenceConditioning.from_pretrained(tmp_path)
    assert again.rewards == tuple(REWARDS)
    with install(model, conditioning), install(model, again):
        assert torch.equal(conditioned(model, again, omega), conditioned(model, conditioning, omega))
    conditioning.to(torch.bfloat16).save_pretrained(tmp_path)
    assert all(
        t.dtype is torch.bfloat16 for t in PreferenceConditioning.from_pretrained(tmp_path).state_dict().values()
    )
    assert set(load_file(tmp_path / "preference_conditioning.safetensors")) == set(conditioning.state_dict())


def test_a_folder_that_does_not_hold_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no preference_conditioning.json and no preference_conditioning.safetensors"):
        PreferenceConditioning.from_pretrained(tmp_path)
    new_conditioning().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "preference_conditioning.json").read_text())
    (tmp_path / "preference_conditioning.json").write_text(json.dumps({**config, "width": 8}))
    with pytest.raises(ValueError, match="does not fit"):
        PreferenceConditioning.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("omega", "message"),
    [
        (torch.tensor([0.5, 0.5]), r"\[..., 3\].*\[2\]"),
        (torch.tensor([[0.5, 0.4, 0.3]]), "on the simplex"),
        (torch.tensor([1.2, -0.2, 0.0]), "on the simplex"),
        (torch.full((4, 3), torch.nan), "on the simplex"),
        (torch.ones(2, 4, 3) / 3, r"\[3\] or \[B, 3\], got \[2, 4, 3\]"),
        ([0.2, 0.3, 0.5], "got list"),
        ({"photo": 0.5, "sketch": 0.5}, "the preference names"),
        ({"photo": 0.5, "sketch": 0.5, "colour": 0.0, "size": 0.0}, "the preference names"),
        ({"photo": 0.5, "sketch": 0.5, "colour": 0.5}, "on the simplex"),
    ],
)
def test_a_bad_preference_is_refused_before_any_forward(omega: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message), new_conditioning().preference(omega):
        pytest.fail("the block was entered")


def test_a_missing_preference_and_one_of_another_batch_are_told() -> None:
    model, conditioning = new_transformer(), new_conditioning()
    with install(model, conditioning):
        with pytest.raises(RuntimeError, match="no preference is given"):
            run(model)
        with pytest.raises(ValueError, match="runs 4 samples with 2 preferences"):
            conditioned(model, conditioning, preferences_for(2))
        model.enable_forward_chunking(1, dim=0)
        with pytest.raises(ValueError, match="chunk over tokens"):
            conditioned(model, conditioning, preferences_for())
        model.disable_forward_chunking()
        # An error leaves nothing behind.
        conditioned(model, conditioning, preferences_for())
        with pytest.raises(RuntimeError, match="no preference is given"):
            run(model)


class Other(nn.Module):
    def __init__(self, **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Other(), "has no time_text_embed, transformer_blocks, norm_out"),
        (
            lambda: Other(time_text_embed=nn.Identity(), norm_out=nn.Identity(), transformer_blocks=nn.ModuleList()),
            "no blocks",
        ),
        (
            lambda: Other(
                time_text_embed=nn.Identity(), norm_out=nn.Identity(), transformer_blocks=nn.ModuleList([nn.Identity()])
            ),
            "has no transformer_blocks.0.ff",
        ),
    ],
)
def test_a_model_without_the_parts_is_refused(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        install(make(), new_conditioning())


def test_bad_installations_are_refused() -> None:
    model, conditioning = new_transformer(), new_conditioning()
    with pytest.raises(ValueError, match="width 8, the transformer 16"):
        install(model, PreferenceConditioning(REWARDS, 8))
    install(model, conditioning)
    with pytest.raises(ValueError, match="installed on the transformer already"):
        install(model, conditioning)
    for arguments in ((REWARDS, 0), (REWARDS, 4, 0), ([], 4), (["a", "a"], 4)):
        with pytest.raises(ValueError, match=r"at least 1|rewards must be|unique"):
            PreferenceConditioning(*arguments[:2], **({"frequencies": arguments[2]} if len(arguments) > 2 else {}))


def test_the_size_of_sd35_medium_is_that_of_the_docs() -> None:
    with torch.device("meta"):
        conditioning = PreferenceConditioning(["a", "b"], 1536)
    assert round(sum(p.numel() for p in conditioning.parameters()) / 1e6, 1) == 9.5
