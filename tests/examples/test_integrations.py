"""The integration recipes train, and do what a plain loop does."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import diffusion_nft_loop
import flow_factory_trainer
import flow_grpo_loop
import marble_opt
import trl_reward_matrix
from flow_factory_trainer import Settings, make_trainer
from tiny_flow import REWARDS, Velocity, prompt_batch, sample, score, seeded

RECIPES = Path(diffusion_nft_loop.__file__).parent
WORKER = Path(__file__).with_name("integrations_worker.py")


def flat(model: nn.Module) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def gain(model: nn.Module, start: nn.Module) -> Tensor:
    """How much the mean score [K] of fixed noise rose."""
    prompts = prompt_batch()
    after, before = (
        score(sample(m, prompts, torch.randn(len(prompts), 8, generator=seeded(99))), prompts) for m in (model, start)
    )
    return (after - before).nanmean(1)


def check_report(opt: marble_opt.Marble, steps: int, route: str) -> None:
    report = opt.report
    assert report is not None
    assert (report.step, report.dropped_steps, report.route) == (steps - 1, 0, route)
    assert report.active.all()
    assert report.alpha.sum().item() == pytest.approx(1)
    assert (report.coefficients > 0).any()
    assert report.gap.item() < 1e-9


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("recipes")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    path = os.pathsep.join([str(RECIPES), os.environ.get("PYTHONPATH", "")])
    variables = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, str(WORKER), str(folder)], capture_output=True, text=True, timeout=300, env=variables
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.soak
@pytest.mark.parametrize("recipe", [diffusion_nft_loop, flow_grpo_loop])
def test_two_ranks_of_torchrun_end_where_one_process_does(recipe: ModuleType, two_ranks: list[dict[str, Any]]) -> None:
    alone = recipe.train()[0].state_dict()
    first, second = (results[recipe.__name__] for results in two_ranks)
    for name, weight in alone.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], weight, rtol=1e-4, atol=1e-5)


def test_diffusion_nft_moves_the_trained_adapter_and_the_old_one_follows() -> None:
    start = diffusion_nft_loop.with_adapters()
    model, opt = diffusion_nft_loop.train(steps=6)
    check_report(opt, 6, "factored")
    before, after = start.state_dict(), model.state_dict()
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved == {name for name in after if "lora_" in name}
    assert gain(model, start)[0] > 0.1


def test_diffusion_nft_with_a_scaler_equals_the_loop_without() -> None:
    scaled, plain = (diffusion_nft_loop.train(steps=4, scaled=scaled)[0] for scaled in (True, False))
    torch.testing.assert_close(flat(scaled), flat(plain), rtol=1e-5, atol=1e-6)


def plain_grpo(steps: int) -> nn.Module:
    """The loop without accelerate."""
    torch.manual_seed(0)
    model, prompts = Velocity(), prompt_batch()
    opt = marble_opt.Marble(torch.optim.AdamW(model.parameters(), lr=1e-2), rewards=REWARDS)
    for step in range(steps):
        trajectory, x_0 = flow_grpo_loop.roll_out(model, prompts, slice(None), step)
        advantages = marble_opt.group_advantages(score(x_0, prompts), prompts)
        counts = (~advantages.isnan()).sum(1) * len(trajectory)
        for part in torch.arange(len(prompts)).chunk(flow_grpo_loop.MICRO_BATCHES):
            for moment in trajectory:
                opt.backward(flow_grpo_loop.micro_loss(model, moment, part, prompts, advantages, counts))
        opt.balance()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad()
    return model


def test_flow_grpo_raises_all_rewards() -> None:
    torch.manual_seed(0)
    start = Velocity()
    model, opt = flow_grpo_loop.train(steps=60)
    check_report(opt, 60, "loop")
    assert (gain(model, start) > 0.01).all()


def test_flow_grpo_through_accelerate_equals_the_plain_loop_bit_for_bit() -> None:
    model, opt = flow_grpo_loop.train(steps=5)
    check_report(opt, 5, "loop")
    assert torch.equal(flat(model), flat(plain_grpo(5)))


def test_the_trainer_is_found_by_name_and_by_dotted_path() -> None:
    assert type(make_trainer(Settings())) is flow_factory_trainer.GdpoTrainer
    chosen = make_trainer(Settings(trainer="flow_factory_trainer.MarbleTrainer"))
    assert type(chosen) is flow_factory_trainer.MarbleTrainer
    with pytest.raises(ValueError, match=r"unknown trainer 'marble': use one of \['gdpo'\] or package\.module\.Class"):
        make_trainer(Settings(trainer="marble"))


def test_both_trainers_train_and_differ() -> None:
    start, trained = make_trainer(Settings()).model, []
    for name in ("gdpo", "flow_factory_trainer.MarbleTrainer"):
        trainer = make_trainer(Settings(trainer=name, steps=60))
        trainer.train()
        trained.append(flat(trainer.model))
        assert (gain(trainer.model, start) > 0).all()
    check_report(trainer.optimizer, 60, "factored")
    assert not torch.equal(*trained)


def test_with_one_reward_both_trainers_are_the_same() -> None:
    results = []
    for name in ("gdpo", "flow_factory_trainer.MarbleTrainer"):
        trainer = make_trainer(Settings(trainer=name, rewards=("left",)))
        trainer.train()
        results.append(flat(trainer.model))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_none_and_nan_become_nan_in_the_matrix() -> None:
    functions = [lambda prompts, completions: [1.0, None], lambda prompts, completions: [float("nan"), 2]]
    matrix = trl_reward_matrix.reward_matrix(functions, ["a", "b"], [[0], [1]])
    assert torch.equal(matrix.nan_to_num(-1), torch.tensor([[1.0, -1.0], [-1.0, 2.0]]))


def test_trl_rewards_rise_although_two_of_them_disagree() -> None:
    _, opt, means = trl_reward_matrix.train(steps=30)
    check_report(opt, 60, "factored")
    assert means[-1][2] > means[0][2] + 1
    assert means[-1][0] > means[0][0]


def test_samples_to_which_a_trl_reward_does_not_apply_do_not_count() -> None:
    prompt_ids = torch.arange(4).repeat_interleave(3)
    prompts = [trl_reward_matrix.PROMPTS[i] for i in prompt_ids]
    completions = [[i % 8, 2, (3 * i) % 8] for i in range(12)]
    matrix = trl_reward_matrix.reward_matrix([trl_reward_matrix.correct], prompts, completions)
    advantages = marble_opt.group_advantages(matrix.T, prompt_ids)
    assert advantages[0].isnan().tolist() == [True] * 6 + [False] * 6
    assert torch.equal(advantages[:, 6:], marble_opt.group_advantages(matrix.T[:, 6:], prompt_ids[6:]))


@pytest.mark.parametrize("recipe", [diffusion_nft_loop, flow_grpo_loop, flow_factory_trainer, trl_reward_matrix])
def test_every_recipe_runs_as_a_script(recipe: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    main: Callable[[], None] = recipe.main
    main()
    assert capsys.readouterr().out
