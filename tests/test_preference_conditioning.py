"""Preference conditioning of an unmodified diffusers transformer."""

import copy
import pickle
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from marble_opt.preferences import PreferenceConditioning, install
from preference_cases import (
    BATCH,
    REWARDS,
    TARGETS,
    add_lora,
    by_hand,
    conditioned,
    inputs,
    new_conditioning,
    new_transformer,
    preferences_for,
    run,
)
from toys import close
from transformer_families import FAMILIES, rows

all_families = pytest.mark.parametrize("family", FAMILIES)


FULL, HALF, DOUBLE = torch.float32, torch.bfloat16, torch.float64


@pytest.mark.parametrize(
    ("family", "dtype", "autocast", "lora"),
    [
        *product(["sd3"], [FULL, HALF, DOUBLE], [False], [False, True]),
        *product(["flux", "ltx2"], [FULL, HALF], [False], [True]),
        *product(FAMILIES, [FULL], [True], [True]),
    ],
)
def test_before_training_it_is_the_base_bit_for_bit(
    family: str, dtype: torch.dtype, autocast: bool, lora: bool
) -> None:
    model = new_transformer(dtype, family)
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


@all_families
@pytest.mark.parametrize("reentrant", [False, True])
def test_before_training_a_checkpointed_model_is_the_base_too(family: str, reentrant: bool) -> None:
    model, conditioning = new_transformer(family=family), new_conditioning(moved=None)
    add_lora(model, "default")
    base = run(model)
    checkpoint = torch.utils.checkpoint.checkpoint
    model.enable_gradient_checkpointing(lambda block, *args: checkpoint(block, *args, use_reentrant=reentrant))
    with install(model, conditioning):
        assert torch.equal(conditioned(model, conditioning, preferences_for()), base)


@pytest.mark.parametrize(("family", "chunked"), [("sd3", False), ("sd3", True), ("flux", False), ("ltx2", False)])
def test_it_computes_what_the_paper_says(family: str, chunked: bool) -> None:
    model, conditioning = new_transformer(torch.float64, family), new_conditioning(torch.float64)
    omega = preferences_for()
    expected = by_hand(model, conditioning, omega, inputs(torch.float64, family=family))
    base = run(model)
    if chunked:
        model.enable_forward_chunking(1, dim=1)
    with install(model, conditioning):
        found = conditioned(model, conditioning, omega)
    assert close(found, expected)
    assert not close(found, base, 1e-2)


@all_families
def test_both_paths_matter_and_only_these(family: str) -> None:
    model, omega = new_transformer(torch.float64, family), preferences_for()
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


@all_families
def test_each_sample_sees_its_own_preference_in_the_order_of_the_rewards(family: str) -> None:
    model, conditioning = new_transformer(torch.float64, family), new_conditioning(torch.float64)
    omega, given = preferences_for(), inputs(torch.float64, family=family)
    with install(model, conditioning):
        whole = conditioned(model, conditioning, omega)
        for i in range(BATCH):
            named = dict(zip(reversed(REWARDS), reversed(omega[i].tolist()), strict=True))
            for one in (omega[i], omega[i : i + 1], named):
                with conditioning.preference(one):
                    assert close(run(model, rows(given, slice(i, i + 1))), whole[i : i + 1], 1e-7)
        order = torch.tensor([2, 0, 3, 1])
        with conditioning.preference(omega[order]):
            assert close(run(model, rows(given, order)), whole[order])
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


@all_families
def test_a_sampler_without_preference_and_a_reference_are_the_model_itself(family: str) -> None:
    model, conditioning, omega = new_transformer(family=family), new_conditioning(), preferences_for()
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


@all_families
def test_several_states_of_the_conditioning_take_turns(family: str) -> None:
    model, omega = new_transformer(family=family), preferences_for()
    first, second = new_conditioning(), new_conditioning(moved=1)
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


@all_families
def test_the_transformer_itself_is_not_changed(family: str) -> None:
    model, conditioning = new_transformer(family=family), new_conditioning()
    names, kinds = list(model.state_dict()), [type(module) for module in model.modules()]
    with install(model, conditioning):
        assert list(model.state_dict()) == names
        assert [type(module) for module in model.modules()] == kinds


@all_families
@pytest.mark.parametrize("reentrant", [None, False, True])
def test_a_recomputed_block_sees_the_preference_of_its_own_forward(family: str, reentrant: bool | None) -> None:
    """The backward runs outside the block, after other forwards under other preferences, and in reverse order."""
    model, conditioning, other = new_transformer(family=family), new_conditioning(), new_conditioning(moved=5)
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


@all_families
def test_a_copy_has_a_conditioning_of_its_own(family: str) -> None:
    model, conditioning, omega = new_transformer(family=family), new_conditioning(), preferences_for()
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


@all_families
def test_lora_may_come_before_or_after(family: str) -> None:
    outputs = []
    for first in (True, False):
        model, conditioning = new_transformer(family=family), new_conditioning()
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


@all_families
def test_at_the_start_only_the_last_layers_have_a_gradient(family: str) -> None:
    model, conditioning = new_transformer(family=family), new_conditioning(moved=None)
    with install(model, conditioning):
        conditioned(model, conditioning, preferences_for()).square().sum().backward()
    for path in (conditioning.time_path, conditioning.block_path):
        assert path[-1].weight.grad.any()
        assert path[-1].bias.grad.any()
        assert not any(p.grad.any() for layer in path[:-1] for p in layer.parameters())
