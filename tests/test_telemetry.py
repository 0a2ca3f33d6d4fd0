"""Reports against brute force, and the writers."""

import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from marble_opt import Balance, JsonLinesSink, Marble, TelemetryWriter, TensorBoardSink
from toys import LENGTH, balanced, flat, grads, linear, linear_losses, normal, parameters, quadratic_losses, sgd, values


def report_of(rows: Tensor, shared: Tensor | None = None) -> tuple[Balance, Tensor]:
    params = parameters()
    opt = sgd(params, len(rows))
    opt.backward(linear_losses(params, rows), shared=None if shared is None else linear(params, shared))
    report = opt.balance()
    assert report is not None
    return report, grads(params)


def cosine(left: Tensor, right: Tensor) -> float:
    return (left @ right / left.norm() / right.norm()).item()


def test_norms_and_cosines_are_those_of_the_gradients() -> None:
    rows = normal(3, LENGTH)
    report, combined = report_of(rows, shared=normal(LENGTH, seed=3))
    torch.testing.assert_close(report.norms, rows.norm(dim=1))
    for j in range(3):
        assert report.combined_cosines[j].item() == pytest.approx(cosine(rows[j], combined), abs=1e-12)
        for k in range(3):
            assert report.cosines[j, k].item() == pytest.approx(cosine(rows[j], rows[k]), abs=1e-12)
    assert report.combined_norm.item() == pytest.approx(combined.norm().item(), rel=1e-12)


def test_a_shared_term_can_bring_the_update_into_conflict() -> None:
    rows = normal(3, LENGTH)
    assert not report_of(rows)[0].conflict
    assert report_of(rows, shared=-100 * rows[0])[0].conflict


def test_an_absent_reward_is_never_in_conflict() -> None:
    rows = normal(3, LENGTH)
    rows[1] = torch.nan
    report, combined = report_of(rows)
    assert not report.conflict
    assert report.combined_norm.item() == pytest.approx(combined.norm().item(), rel=1e-12)


def test_scalars_are_plain_numbers_by_name() -> None:
    _, opt = balanced(normal(3, LENGTH), groups={"pair": ["a", "b"]})
    assert opt.report is not None
    scalars = opt.report.scalars()
    assert all(type(value) is float for value in scalars.values())
    names = {"balance/gap", "balance/conflict", "alpha/pair", "alpha/c", "coefficient/a", "norm/b", "cosine/c"}
    assert names | {"skipped/a", "nonfinite/b", "pair/a/b", "pair/b/c"} <= set(scalars)
    assert scalars["coefficient/a"] == opt.report.coefficients[0].item()
    assert scalars["pair/a/c"] == opt.report.cosines[0, 2].item()


@pytest.mark.parametrize("shared_only", [False, True])
@pytest.mark.parametrize("refresh_every", [1, 2])
def test_step_cosines_are_those_of_the_step_really_taken(shared_only: bool, refresh_every: int) -> None:
    params = parameters()
    everything = [*params, torch.nn.Parameter(torch.ones(3, dtype=torch.float64))] if shared_only else params
    base = torch.optim.AdamW(everything, lr=0.1, weight_decay=0.1)
    opt = Marble(base, ["a", "b", "c"], track_step=True, refresh_every=refresh_every)
    for seed in range(3):
        before, centres = values(everything), normal(3, LENGTH, seed=seed)
        losses = quadratic_losses(params, centres)
        rows = [flat(torch.autograd.grad(loss, params, retain_graph=True)) for loss in losses.values()]
        opt.backward(losses, shared=everything[-1].square().sum() if shared_only else None)
        opt.step()
        opt.zero_grad()
        assert opt.report is not None
        if not opt.report.refreshed:
            assert opt.report.step_cosines is None
            continue
        moved = before - values(everything)
        assert opt.report.step_cosines is not None
        for row, got in zip(rows, opt.report.step_cosines, strict=True):
            padded = torch.cat([row, torch.zeros(len(moved) - LENGTH, dtype=torch.float64)])
            assert got.item() == pytest.approx(cosine(padded, moved), abs=1e-9)
            assert got.item() != pytest.approx(opt.report.combined_cosines[0].item(), abs=1e-6)


def test_step_cosines_are_absent_unless_asked_for() -> None:
    params = parameters()
    opt = sgd(params)
    opt.backward(linear_losses(params, normal(3, LENGTH)))
    opt.step()
    assert opt.report is not None
    assert opt.report.step_cosines is None


def test_a_reused_report_is_the_last_refresh_with_its_own_step() -> None:
    params = parameters()
    opt = sgd(params, refresh_every=2)
    reports = []
    for seed in range(3):
        opt.backward(linear_losses(params, normal(3, LENGTH, seed=seed)))
        opt.step()
        opt.zero_grad()
        assert opt.report is not None
        reports.append(opt.report)
    assert [(r.step, r.refreshed) for r in reports] == [(0, True), (1, False), (2, True)]
    assert torch.equal(reports[1].coefficients, reports[0].coefficients)
    assert torch.equal(reports[1].gram, reports[0].gram)
    assert not torch.equal(reports[2].gram, reports[0].gram)


def reports_of_run(count: int) -> list[Balance]:
    params = parameters()
    opt, reports = sgd(params), []
    for seed in range(count):
        rows = normal(3, LENGTH, seed=seed)
        rows[1, 0] = torch.nan if seed == 1 else 0
        opt.backward(linear_losses(params, rows))
        opt.step()
        opt.zero_grad()
        assert opt.report is not None
        reports.append(opt.report)
    return reports


def test_json_lines_hold_one_valid_object_per_step(tmp_path: Path) -> None:
    path = tmp_path / "run" / "balance.jsonl"
    with TelemetryWriter(JsonLinesSink(path)) as writer:
        for report in reports_of_run(3):
            writer.add(report)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert rows[1]["norm/b"] is None
    assert rows[1]["active/b"] == 0
    assert rows[2]["nonfinite/b"] == 1


def test_json_lines_are_appended(tmp_path: Path) -> None:
    for _ in range(2):
        with TelemetryWriter(JsonLinesSink(tmp_path / "x.jsonl")) as writer:
            writer.add(reports_of_run(1)[0])
    assert len((tmp_path / "x.jsonl").read_text().splitlines()) == 2


def test_nothing_is_read_before_the_flush_and_the_rest_is_flushed_on_exit() -> None:
    class Memory:
        def __init__(self) -> None:
            self.steps: list[int] = []
            self.closed = False

        def write(self, step: int, values: dict[str, float]) -> None:
            self.steps.append(step)

        def close(self) -> None:
            self.closed = True

    sinks = Memory(), Memory()
    with TelemetryWriter(*sinks, flush_every=2) as writer:
        first, second, third = reports_of_run(3)
        writer.add(None)
        writer.add(first)
        assert sinks[0].steps == []
        writer.add(second)
        writer.add(third)
        assert sinks[0].steps == [0, 1]
    assert sinks[0].steps == sinks[1].steps == [0, 1, 2]
    assert sinks[0].closed
    assert sinks[1].closed


def test_tensorboard_gets_the_scalars(tmp_path: Path) -> None:
    report = reports_of_run(1)[0]
    with TelemetryWriter(TensorBoardSink(tmp_path)) as writer:
        writer.add(report)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(report.scalars())
    assert events.Scalars("alpha/a")[0].value == pytest.approx(report.alpha[0].item())


def test_missing_tensorboard_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        TensorBoardSink(tmp_path)


@pytest.mark.parametrize("build", [lambda: TelemetryWriter(), lambda: TelemetryWriter(object(), flush_every=0)])
def test_a_writer_needs_a_sink_and_a_period(build: object) -> None:
    assert callable(build)
    with pytest.raises(ValueError, match="at least one sink and flush_every >= 1"):
        build()
