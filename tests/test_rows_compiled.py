"""Rows of compiled models: whole or block by block, checkpointed or not, as separate backwards of the plain model."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compiled_cases import Frames, Network, Odd, Run, by_block, whole
from distributed_worker import start_two
from factored_cases import TOLERANCE, make_loss, trained
from marble_opt import SeparableLoss
from marble_opt.per_sample import taps

TERMS = 2
# The last of them is used without a comparison: those are made in steps 0, 1, 2, 4 and 8.
STEPS = 4
WAYS = {"whole": whole, "by block": by_block}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize(("way", "dtype"), [*((way, torch.float64) for way in WAYS), ("by block", torch.float32)])
def test_rows_are_those_of_the_plain_model(way: str, checkpointed: bool, dtype: torch.dtype) -> None:
    run = Run(Network(checkpointed), WAYS[way]("aot_eager"), dtype)
    for step in range(STEPS):
        report, error = run.step(run.inputs(4, 5, seed=step), step)
        assert error <= TOLERANCE[dtype]
        assert (report.route, report.fallback) == ("factored", {})
        assert report.passes == TERMS
        assert report.checks == (step < 3)


def test_inductor() -> None:
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("inductor needs a C++ compiler on a CPU: neither g++ nor clang++ was found")
    run = Run(Network(blocks=1), by_block("inductor"))
    for step in range(STEPS):
        report, error = run.step(run.inputs(4, seed=step), step)
        assert error <= TOLERANCE[torch.float32]
        assert (report.route, report.fallback, report.passes) == ("factored", {}, TERMS)
    assert report.checks == 0


@pytest.mark.parametrize("way", WAYS)
def test_batches_of_several_sizes(way: str) -> None:
    run = Run(Network(blocks=1), WAYS[way]("aot_eager"))
    for step, size in enumerate((4, 6, 1, 4, 3)):
        report, error = run.step(run.inputs(size, seed=step), step)
        assert error <= TOLERANCE[torch.float32]
        assert (report.route, report.fallback) == ("factored", {})


@pytest.mark.parametrize(("way", "inside"), [("by block", False), ("whole", True)])
def test_a_batch_wider_than_compiled_layers_were_traced_for(
    way: str, inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taps, "CAPACITY", 4)
    run = Run(Network(blocks=1), WAYS[way]("aot_eager"), inside=inside)
    routes = []
    # The wide ones in steps without a comparison of their own: 3, and 5 to 7.
    for step, size in enumerate((4, 4, 4, 6, 4, 6, 8)):
        report, error = run.step(run.inputs(size, seed=step), step)
        assert error <= TOLERANCE[torch.float32]
        routes.append((report.route, bool(report.fallback)))
    assert routes == [("loop", True) if step == 3 else ("factored", False) for step in range(7)]


@pytest.mark.parametrize("way", WAYS)
def test_frames_folded_into_the_batch(way: str) -> None:
    """Nothing shows the order inside a compiled region: the comparison finds it."""
    run = Run(Frames(), WAYS[way]("aot_eager"))
    reports = []
    for step in range(STEPS):
        report, error = run.step(run.inputs(3, 5, 2, seed=step), step)
        assert error <= TOLERANCE[torch.float32]
        reports.append(report)
    assert reports[0].fallback
    assert not any(report.fallback for report in reports[1:])
    assert (reports[-1].route, reports[-1].passes) == ("factored", TERMS)


def test_a_layer_without_a_rule_is_left_to_the_loop() -> None:
    run = Run(Odd(), whole("aot_eager"))
    with pytest.warns(UserWarning, match=r"mixed\.weight"):
        first, error = run.step(run.inputs(4, 5))
    assert error <= TOLERANCE[torch.float32]
    assert {name.removeprefix("_orig_mod.") for name in first.fallback} == {"mixed.weight", "mixed.bias"}
    for step in range(1, STEPS):
        report, error = run.step(run.inputs(4, 5, seed=step), step)
        assert error <= TOLERANCE[torch.float32]
        assert report.route == "loop"


def test_autocast_around_a_compiled_model() -> None:
    """As near to the rows in fp32 as separate backwards under autocast are."""

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(x).float()  # type: ignore[no-any-return]

    run = Run(Network(), by_block("aot_eager"), run=forward)
    for step in range(STEPS):
        x = run.inputs(4, 5, seed=step)
        rounded = run.expected(x, step)
        run.forward = lambda model, x: model(x)
        exact = run.expected(x, step)
        run.forward = forward
        run.opt.zero_grad()
        run.backward(x, step)
        whole_error = distance(run.found(), exact)
        assert 0 < whole_error <= 1.5 * distance(rounded, exact)
        assert not run.opt._collector.work.fallback
    assert run.opt._collector.work.checks == 0


def distance(found: list[Tensor], expected: list[Tensor]) -> float:
    flat = [torch.cat([block.flatten() for block in blocks]) for blocks in (found, expected)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


@pytest.mark.parametrize("way", WAYS)
def test_a_backward_of_the_user_leaves_the_rows_alone(way: str) -> None:
    run = Run(Network(), WAYS[way]("aot_eager"))
    for step in range(STEPS):
        run.step(run.inputs(4, 5, seed=step), step)
    run.opt.zero_grad()
    x = run.inputs(4, 5)
    prediction = run.model(x)
    loss = SeparableLoss(prediction, make_loss(prediction).terms, make_loss(prediction).weights / 3)
    prediction.square().mean().backward(retain_graph=True)
    assert len(run.opt._collector.bank) == 0
    run.opt.backward(loss, retain_graph=True)
    prediction.square().mean().backward()
    assert run.error(run.expected(x)) <= TOLERANCE[torch.float32]
    run.twin.zero_grad()
    run.twin(x).square().mean().backward()
    for mine, twin in zip(trained(run.network), trained(run.twin), strict=True):
        torch.testing.assert_close(mine.grad, 2 * twin.grad, rtol=1e-5, atol=1e-7)


def _ddp_rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    run = Run(Network(), lambda model: nn.parallel.DistributedDataParallel(by_block("aot_eager")(model)))
    for step in range(STEPS):
        run.opt.zero_grad()
        run.backward(run.inputs(4, 5, seed=10 * step + rank), step)
        each = [run.expected(run.inputs(4, 5, seed=10 * step + other), step) for other in range(2)]
        # Local until the step is balanced.
        assert run.error(each[rank]) <= TOLERANCE[torch.float32]
        report = run.opt.balance()
        assert run.error([(one + other) / 2 for one, other in zip(*each, strict=True)]) <= TOLERANCE[torch.float32]
        assert report is not None
        assert (report.route, report.fallback, report.passes) == ("factored", {}, TERMS)
    assert report.checks == 0
    both = [torch.empty_like(report.coefficients) for _ in range(2)]
    torch.distributed.all_gather(both, report.coefficients)
    assert torch.equal(*both)
    Path(folder, f"passed{rank}").touch()
    torch.distributed.destroy_process_group()


def test_compiled_blocks_under_ddp(tmp_path: Path) -> None:
    start_two(_ddp_rank, str(tmp_path))
    assert {path.name for path in tmp_path.glob("passed*")} == {"passed0", "passed1"}
