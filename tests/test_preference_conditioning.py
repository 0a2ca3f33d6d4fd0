"""Preference conditioning of an unmodified diffusers transformer."""

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from marble_opt import preferences
from marble_opt.preferences import PreferenceConditioning, install
from preference_cases import (
    BATCH,
    REWARDS,
    TARGETS,
    add_lora,
    by_hand,
    inputs,
    new_conditioning,
    new_transformer,
    preferences_for,
)
from toys import close


def run(model: Any, given: dict[str, Tensor] | None = None) -> Tensor:
    output: Tensor = model(**(inputs(model.dtype) if given is None else given)).sample
    return output


def conditioned(model: Any, conditioning: PreferenceConditioning, omega: Any) -> Tensor:
    with conditioning.preference(omega):
        return run(model)


@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False), (torch.float64, False)],
)
@pytest.mark.parametrize("lora", [False, True])
def test_before_training_it_is_the_base_bit_for_bit(dtype: torch.dtype, autocast: bool, lora: bool) -> None:
    model = new_transformer(dtype)
    if lora:
        add_lora(model, "default")
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.no_grad():
        base = run(model)
        # The conditioning itself may stay in fp32 beside a base of lower precision.
        for own in {dtype, torch.float32}:
            conditioning = new_conditioning(own, moved=None)
            with install(model, conditioning):
                for omega in (preferences_for(), torch.eye(3)[0], dict.fromkeys(REWARDS, 1 / 3)):
                    assert torch.equal(conditioned(model, conditioning, omega), base)
        assert torch.equal(run(model), base)


@pytest.mark.parametrize("chunked", [False, True])
def test_it_computes_what_the_paper_says(chunked: bool) -> None:
    model, conditioning, omega = new_transformer(torch.float64), new_conditioning(torch.float64), preferences_for()
    expected = by_hand(model, conditioning, omega, inputs(torch.float64))
    base = run(model)
    if chunked:
        model.enable_forward_chunking(1, dim=1)
    with install(model, conditioning):
        found = conditioned(model, conditioning, omega)
    assert close(found, expected)
    assert not close(found, base, 1e-2)


def test_both_paths_matter_and_only_these() -> None:
    model, omega = new_transformer(torch.float64), preferences_for()
    base = run(model)
    for silent, others in (("time_path", "block_path"), ("block_path", "time_path")):
        conditioning = new_conditioning(torch.float64)
        for parameter in getattr(conditioning, silent)[-1].parameters():
            nn.init.zeros_(parameter)
        with install(model, conditioning):
            assert not close(conditioned(model, conditioning, omega), base, 1e-3)
            for parameter in getattr(conditioning, others)[-1].parameters():
                nn.init.zeros_(parameter)
            assert torch.equal(conditioned(model, conditioning, omega), base)


def test_each_sample_sees_its_own_preference_in_the_order_of_the_rewards() -> None:
    model, conditioning = new_transformer(torch.float64), new_conditioning(torch.float64)
    omega, given = preferences_for(), inputs(torch.float64)
    with install(model, conditioning):
        whole = conditioned(model, conditioning, omega)
        for i in range(BATCH):
            named = dict(zip(reversed(REWARDS), reversed(omega[i].tolist()), strict=True))
            for one in (omega[i], omega[i : i + 1], named):
                with conditioning.preference(one):
                    assert close(run(model, {k: v[i : i + 1] for k, v in given.items()}), whole[i : i + 1], 1e-7)
        order = torch.tensor([2, 0, 3, 1])
        with conditioning.preference(omega[order]):
            assert close(run(model, {k: v[order] for k, v in given.items()}), whole[order])
        assert not close(conditioned(model, conditioning, omega[order]), whole, 1e-3)
        assert not close(conditioned(model, conditioning, omega[:, [1, 0, 2]]), whole, 1e-3)
        same = conditioned(model, conditioning, omega[0])
        assert torch.equal(same, conditioned(model, conditioning, omega[:1].expand(BATCH, -1)))


def test_features_are_sines_and_cosines_of_octaves() -> None:
    omega = torch.tensor([[0.25, 0.75]], dtype=torch.float64)
    found = PreferenceConditioning(["a", "b"], 4, frequencies=2).features(omega)
    root = 0.5**0.5
    expected = torch.tensor([[root, 1, root, 0, root, -1, -root, 0]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)


def test_in_bf16_the_fine_frequencies_are_still_those_of_the_preference() -> None:
    # Rounded to bf16 these two preferences are one.
    first, second = torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([[0.7005, 0.1995, 0.1]])
    conditioning = new_conditioning(torch.bfloat16)
    assert torch.equal(first.bfloat16()[:, :1], second.bfloat16()[:, :1])
    features = conditioning.features(first)
    assert features.dtype is torch.float32
    with torch.no_grad():
        rounded = conditioning.block_path(conditioning.features(first.bfloat16()).bfloat16())
        assert not torch.equal(conditioning(first)[1], rounded)


def test_a_sampler_without_preference_and_a_reference_are_the_model_itself() -> None:
    model, conditioning, omega = new_transformer(), new_conditioning(), preferences_for()
    pretrained = run(model)
    add_lora(model, "default")
    adapted = run(model)
    with install(model, conditioning):
        assert torch.equal(conditioned(model, conditioning, None), adapted)
        seen = conditioned(model, conditioning, omega)
        model.disable_adapters()
        assert torch.equal(run(model), pretrained)
        assert torch.equal(conditioned(model, conditioning, omega), pretrained)
        model.enable_adapters()
        assert torch.equal(conditioned(model, conditioning, omega), seen)
        with conditioning.preference(omega):
            with conditioning.preference(None):
                assert torch.equal(run(model), adapted)
            assert torch.equal(run(model), seen)


def test_several_states_of_the_conditioning_take_turns() -> None:
    model, first, second, omega = new_transformer(), new_conditioning(), new_conditioning(moved=1), preferences_for()
    with install(model, first):
        expected = conditioned(model, first, omega)
    handles = install(model, first), install(model, second)
    with second.preference(omega):
        other = run(model)
        assert torch.equal(conditioned(model, first, omega), expected)
        assert torch.equal(run(model), other)
    assert not close(other, expected, 1e-3)
    handles[0].remove()
    assert torch.equal(conditioned(model, second, omega), other)
    with pytest.raises(RuntimeError, match="another conditioning"):
        conditioned(model, first, omega)
    handles[1].remove()
    handles[1].remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    run(model)


def test_the_transformer_itself_is_not_changed() -> None:
    model, conditioning = new_transformer(), new_conditioning()
    names, kinds = list(model.state_dict()), [type(module) for module in model.modules()]
    with install(model, conditioning):
        assert list(model.state_dict()) == names
        assert [type(module) for module in model.modules()] == kinds


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_a_recomputed_block_sees_the_preference_of_its_own_forward(reentrant: bool | None) -> None:
    """The backward runs outside the block, after other forwards under other preferences, and in reverse order."""
    model, conditioning, other = new_transformer(), new_conditioning(), new_conditioning(moved=5)
    add_lora(model, "default", "old")
    trained = [p for p in (*model.parameters(), *conditioning.parameters()) if p.requires_grad]

    def losses() -> list[Tensor]:
        found = [conditioned(model, conditioning, preferences_for(seed=seed)).square().mean() for seed in range(2)]
        with torch.no_grad():
            model.set_adapter("old")
            conditioned(model, other, preferences_for(seed=9))
            model.set_adapter("default")
        conditioned(model, conditioning, None)
        return found

    def gradients(values: list[Tensor]) -> Tensor:
        rows = []
        for value in reversed(values):
            value.backward()
            rows.append(
                torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in trained])
            )
            for p in trained:
                p.grad = None
        return torch.stack(rows)

    with install(model, conditioning), install(model, other):
        plain, expected = losses(), gradients(losses())
        if reentrant is None:
            model.enable_gradient_checkpointing()
        else:
            checkpoint = torch.utils.checkpoint.checkpoint
            model.enable_gradient_checkpointing(lambda block, *args: checkpoint(block, *args, use_reentrant=reentrant))
        values = losses()
        assert all(torch.equal(a, b) for a, b in zip(values, plain, strict=True))
        found = gradients(values)
        assert close(found, expected, 1e-6)
        assert expected[:, -1].all()
        copy.deepcopy((model, conditioning))


def test_a_copy_has_a_conditioning_of_its_own() -> None:
    model, conditioning, omega = new_transformer(), new_conditioning(), preferences_for()
    handle = install(model, conditioning)
    seen = conditioned(model, conditioning, omega)
    other, own = copy.deepcopy((model, conditioning))
    assert torch.equal(conditioned(other, own, omega), seen)
    with torch.no_grad():
        own.time_path[-1].bias += 1
    assert not torch.equal(conditioned(other, own, omega), seen)
    assert torch.equal(conditioned(model, conditioning, omega), seen)
    with pytest.raises(RuntimeError, match="copies have their own"):
        conditioned(other, conditioning, omega)
    handle.remove()
    assert torch.equal(conditioned(other, own, None), run(model))
    restored, mine = pickle.loads(pickle.dumps((other, own)))
    assert torch.equal(conditioned(restored, mine, omega), conditioned(other, own, omega))


def test_lora_may_come_before_or_after() -> None:
    outputs = []
    for first in (True, False):
        model, conditioning = new_transformer(), new_conditioning()
        if first:
            add_lora(model, "default")
        install(model, conditioning)
        if not first:
            add_lora(model, "default")
        outputs.append(conditioned(model, conditioning, preferences_for()))
    assert torch.equal(*outputs)


def test_a_peft_model_around_the_transformer() -> None:
    from peft import LoraConfig, get_peft_model

    conditioning, omega = new_conditioning(), preferences_for()
    inner = new_transformer()
    pretrained = run(inner)
    model = get_peft_model(inner, LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False))
    with install(model, conditioning), conditioning.preference(omega):
        seen = model(**inputs()).sample
        assert not close(seen, pretrained, 1e-2)
        with model.disable_adapter():
            assert torch.equal(model(**inputs()).sample, pretrained)
        assert torch.equal(model(**inputs()).sample, seen)


def test_a_handle_removes_what_it_installed_once() -> None:
    model, first, second, omega = new_transformer(), new_conditioning(), new_conditioning(moved=1), preferences_for()
    install(model, second)
    handle = install(model, first)
    handle.remove()
    install(model, first)
    handle.remove()
    conditioned(model, first, omega)


def test_at_the_start_only_the_last_layers_have_a_gradient() -> None:
    model, conditioning = new_transformer(), new_conditioning(moved=None)
    with install(model, conditioning):
        conditioned(model, conditioning, preferences_for()).square().sum().backward()
    for path in (conditioning.time_path, conditioning.block_path):
        assert path[-1].weight.grad.any()
        assert path[-1].bias.grad.any()
        assert not any(p.grad.any() for layer in path[:-1] for p in layer.parameters())


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


def test_a_transformer_with_single_stream_blocks_is_refused() -> None:
    model = new_transformer()
    model.single_transformer_blocks = nn.ModuleList()
    with pytest.raises(ValueError, match="another kind"):
        install(model, new_conditioning())


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


def test_neither_diffusers_nor_peft_nor_safetensors_is_imported() -> None:
    code = (
        "import sys, torch, marble_opt.preferences as p\n"
        "c = p.PreferenceConditioning(['a'], 2)\n"
        "with c.preference(torch.ones(1)): pass\n"
        "print(sorted({'diffusers', 'peft', 'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.stdout.strip() == "[]", done.stderr
    assert preferences.install is install
