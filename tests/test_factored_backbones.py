"""The factored backward on Flux and LTX-2 transformers: LoRA and full training, checkpointed or not, several sizes."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from factored_cases import agree, error, loop, make_loss, move, trained
from marble_opt import Marble
from marble_opt.per_sample.engine import RowEngine
from transformer_families import FRAMES, SIDE, SOUND, TARGET, family_of, flux, in_fp64, inputs_for, ltx2, places, run

LORA = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
FUSED = ["to_qkv", "to_added_qkv", "to_out.0", "to_add_out"]
TOKENS = FRAMES * SIDE * SIDE


def edit(model: Any, given: dict[str, Any]) -> Tensor:
    """Flux Kontext: the velocity of the latent's tokens; those of the source image have no loss."""
    velocity: Tensor = model(**given).sample
    return velocity[:, : velocity.shape[1] - 4]


def video(model: Any, given: dict[str, Any], **options: Any) -> Tensor:
    velocity: Tensor = model(**given, **options).sample
    return velocity


# A maker, the forward whose result has a loss, and what gets a LoRA.
CASES: dict[str, tuple[Callable[[], Any], Callable[..., Tensor], list[str]]] = {
    "flux": (flux, edit, LORA),
    "flux fused": (flux, edit, FUSED),
    "ltx2": (ltx2, video, LORA),
    "ltx2 isolated": (ltx2, partial(video, isolate_modalities=True), LORA),
    "ltx2 with sound": (ltx2, run, LORA),
    "ltx2.3": (partial(ltx2, newer=True), video, LORA),
}
ROUTES = [(torch.float32, None), (torch.float64, False), (torch.float64, True)]


def with_lora(case: str, dtype: torch.dtype) -> Any:
    from peft import LoraConfig

    model = CASES[case][0]().to(dtype)
    if case == "flux fused":
        model.fuse_qkv_projections()
    model.requires_grad_(False)
    torch.manual_seed(1)
    model.add_adapter(LoraConfig(r=2, target_modules=CASES[case][2], init_lora_weights=False))
    return model.to(dtype)


def checkpoint_blocks(model: Any, reentrant: bool | None) -> None:
    if reentrant is not None:
        function = torch.utils.checkpoint.checkpoint
        model.enable_gradient_checkpointing(lambda block, *args: function(block, *args, use_reentrant=reentrant))


def exactly(model: Any, dtype: torch.dtype) -> AbstractContextManager[None]:
    return in_fp64(model) if dtype is torch.float64 else nullcontext()


def given_for(model: Any, dtype: torch.dtype, seed: int, count: int = 3) -> dict[str, Any]:
    given = inputs_for(family_of(model), dtype, count, seed)
    # A reentrant checkpoint needs an input with a gradient.
    given["hidden_states"].requires_grad_()
    return given


@pytest.mark.parametrize(
    ("case", "dtype", "reentrant"),
    [
        *((case, torch.float64, None) for case in CASES),
        *((case, *each) for case in ("flux", "ltx2") for each in ROUTES),
    ],
)
def test_lora(case: str, dtype: torch.dtype, reentrant: bool | None) -> None:
    model, forward = with_lora(case, dtype), CASES[case][1]
    checkpoint_blocks(model, reentrant)
    parameters = trained(model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    with exactly(model, dtype), RowEngine(model, 3) as engine:
        for step in range(2):
            loss = make_loss(forward(model, given_for(model, dtype, step)), seed=step)
            if case.startswith("flux"):
                assert loss.prediction.shape == (3, TARGET, 4)
            expected = {p: block for p, block in by_loop(engine, loss, parameters, reentrant).items() if block.any()}
            assert len(expected) >= 20
            assert any("audio" in names[p] for p in expected) == (case in ("ltx2", "ltx2 with sound", "ltx2.3"))
            assert any("single" in names[p] for p in expected) == case.startswith("flux")
            found = engine.gradients(loss, parameters, retain_graph=True)
            assert found.uncovered == []
            agree(found.blocks, expected)
            assert found.hiding == (reentrant is True)
            engine.check(loss, parameters)
            move(parameters, step)


def by_loop(engine: RowEngine, loss: Any, parameters: Any, reentrant: bool | None) -> dict[Tensor, Tensor]:
    """A reentrant checkpoint refuses ``torch.autograd.grad``; :meth:`RowEngine.exact` runs plain backwards."""
    return engine.exact(loss, parameters, retain_graph=True) if reentrant else loop(loss, parameters)


@pytest.mark.parametrize(("dtype", "reentrant"), ROUTES)
def test_full_training_of_flux(dtype: torch.dtype, reentrant: bool | None) -> None:
    model = flux().to(dtype)
    checkpoint_blocks(model, reentrant)
    with exactly(model, dtype), RowEngine(model, 3) as engine:
        for step in range(2):
            parameters = trained(model)
            loss = make_loss(edit(model, given_for(model, dtype, step)), seed=step)
            expected = {p: block for p, block in by_loop(engine, loss, parameters, reentrant).items() if block.any()}
            # The last single block's text tokens are dropped; all else counts.
            assert len(expected) == len(parameters)
            found = engine.gradients(loss, parameters, retain_graph=True)
            assert found.uncovered == []
            agree(found.blocks, expected)
            move(parameters, step)


@pytest.mark.parametrize(
    ("dtype", "reentrant", "per_token"),
    [(torch.float32, None, False), (torch.float64, False, True), (torch.float64, True, False)],
)
def test_full_training_of_ltx2(dtype: torch.dtype, reentrant: bool | None, per_token: bool) -> None:
    """Blocks return two tensors and use their tables themselves, which are followed to where samples come in. With one
    time per token, the rows of the time embedding are tokens, those of a sample side by side: a comparison finds out.
    """
    model = ltx2().to(dtype)
    checkpoint_blocks(model, reentrant)
    parameters = trained(model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    with exactly(model, dtype), RowEngine(model, 3) as engine:
        given = given_for(model, dtype, 0)
        if per_token:
            given["timestep"] = 1000 * torch.rand(3, TOKENS, generator=torch.Generator().manual_seed(5)).to(dtype)
            given["audio_timestep"] = given["sigma"]
        for step in range(2):
            loss = make_loss(video(model, given), seed=step)
            expected = {p: block for p, block in by_loop(engine, loss, parameters, reentrant).items() if block.any()}
            found = engine.gradients(loss, parameters, retain_graph=True)
            apart = {names[p].partition(".")[0] for p in found.uncovered}
            assert apart == (set(TIMED) if per_token and step == 0 else set())
            exact = engine.exact(loss, found.uncovered, retain_graph=True) if apart else {}
            agree({**found.blocks, **exact}, expected)
            assert len(found.blocks) > 100


# What is computed from the video's times.
TIMED = ("time_embed", "av_cross_attn_video_scale_shift", "av_cross_attn_video_a2v_gate")


def sized(family: str, index: int, dtype: torch.dtype) -> dict[str, Any]:
    """Two sizes of latents, with different numbers of samples."""
    count = 3 - index
    given = inputs_for(family, dtype, count, index)
    if family == "flux" and index:
        given |= {"hidden_states": given["hidden_states"][:, :8], "img_ids": places((2, 2))}
    elif index:
        tokens, sound = (FRAMES - 1) * SIDE * SIDE, SOUND - 2
        given |= {"hidden_states": given["hidden_states"][:, :tokens], "num_frames": FRAMES - 1}
        given |= {"audio_hidden_states": given["audio_hidden_states"][:, :sound], "audio_num_frames": sound}
    return given


@pytest.mark.parametrize("case", ["flux", "ltx2"])
def test_micro_steps_of_several_sizes_add_up(case: str) -> None:
    model, forward = with_lora(case, torch.float64), CASES[case][1]
    parameters = trained(model)
    with in_fp64(model), RowEngine(model, 3) as engine:
        losses = [make_loss(forward(model, sized(case, index, torch.float64)), seed=index) for index in range(2)]
        assert losses[0].prediction.shape[1] > losses[1].prediction.shape[1]
        slow = [loop(loss, parameters) for loss in losses]
        fast = [engine.gradients(loss, parameters).blocks for loss in losses]
    reached = [p for p in parameters if slow[0][p].any()]
    assert all(error(fast[0][p] + fast[1][p], slow[0][p] + slow[1][p]) < 1e-12 for p in reached)


@pytest.mark.parametrize("case", ["flux", "ltx2", "full ltx2"])
def test_a_step_of_marble_is_the_same_on_both_routes(case: str) -> None:
    """Two micro-steps of different sizes, for the whole of LTX-2 too."""
    changes = []
    for route in ("factored", "loop"):
        model = ltx2().double() if case == "full ltx2" else with_lora(case, torch.float64)
        family, parameters = family_of(model), trained(model)
        forward = CASES[family][1]
        opt = Marble(torch.optim.SGD(parameters, lr=1e-2), ["a", "b", "c"], model=model, route=route)
        before = torch.cat([p.detach().flatten() for p in parameters])
        with in_fp64(model):
            for index in range(2):
                opt.backward(make_loss(forward(model, sized(family, index, torch.float64)), seed=index))
            opt.step()
        assert opt.report is not None
        assert opt.report.active.all()
        changes.append(torch.cat([p.detach().flatten() for p in parameters]) - before)
    assert changes[1].norm() > 0
    # The coefficients come from a solver whose precision is that of the gap.
    assert (changes[0] - changes[1]).norm() <= 1e-9 * changes[1].norm()
