"""The question digits: labels measured on images, losses in units, the sums, what its rows hold."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from benchmarks.comparison import digits, digits_data, digits_training
from benchmarks.comparison.cells import Cell
from benchmarks.comparison.digits_data import Table, Task, moments, thickness
from benchmarks.comparison.digits_training import Network, RelativeSum, Sum, UncertaintySum, train
from benchmarks.comparison.methods import make_marble


def small_table() -> Table:
    """40 rows of 5 inputs; three classes, a number of scale 50, and two numbers that half of the training rows have."""
    random = torch.Generator().manual_seed(3)
    inputs = torch.randn(40, 5, generator=random)
    large = 50 * torch.randn(40, 1, generator=random)
    pair = 0.1 * torch.randn(40, 2, generator=random)
    tasks = {
        "kind": Task(torch.randint(3, (40,), generator=random).float(), 3),
        "large": Task(large, 1, 50.0, torch.zeros(1)),
        "pair": Task(pair, 2, 0.1, torch.zeros(2), partial=True),
    }
    rows = torch.arange(40)
    return Table(inputs, tasks, rows[:24], rows[24:30], rows[30:])


def parameters_of(network: Network) -> torch.Tensor:
    return digits_training.flat(network.parameters())


def test_centre_and_slant_of_known_strokes() -> None:
    upright, diagonal = np.zeros((8, 8)), np.eye(8)
    upright[1:7, 2:4] = 1
    steep = np.kron(np.eye(3), np.ones((2, 1)))[None]
    centre, slant = moments(np.stack([upright, diagonal]))
    np.testing.assert_allclose(centre, [[2.5, 3.5], [3.5, 3.5]])
    np.testing.assert_allclose(slant, [0, 45], atol=1e-12)
    y, x = np.nonzero(steep[0])
    slope = np.polyfit(y, x, 1)[0]
    np.testing.assert_allclose(moments(steep)[1], math.degrees(math.atan(slope)))


def test_thickness_of_a_bar() -> None:
    image = np.zeros((1, 8, 8))
    image[0, 0:7, 5:8] = 1
    np.testing.assert_allclose(thickness(image), 3 * 7 / (3 + 7))


def test_a_loss_counts_present_labels_in_squared_units() -> None:
    labels = torch.tensor([[3.0, 1.0], [float("nan")] * 2, [7.0, 5.0]])
    task = Task(labels, 2, scale=2.0, centre=torch.tensor([5.0, 3.0]), factor=100.0)
    outputs, rows = torch.tensor([[0.5, 0.0], [9.0, 9.0], [1.0, 2.0]]), torch.arange(3)
    predicted = task.centre + task.scale * outputs
    expected = sum((predicted[i] - labels[i]).square().sum() for i in (0, 2)) / 4
    torch.testing.assert_close(task.loss(outputs, rows), 100 * expected)
    assert task.loss(outputs[1:2], rows[1:2]) is None

    classes = Task(torch.tensor([1.0, float("nan"), 0.0]), 2)
    expected = -(functional.log_softmax(outputs, 1)[0, 1] + functional.log_softmax(outputs, 1)[2, 0]) / 2
    torch.testing.assert_close(classes.loss(outputs, rows), expected)


def test_scores_are_one_at_the_labels_and_zero_at_their_mean() -> None:
    task, rows = small_table().tasks["large"], torch.arange(40)
    assert task.score(task.labels / 50, rows) == pytest.approx(1)
    assert task.score(task.labels.mean() / 50 * torch.ones(40, 1), rows) == pytest.approx(0, abs=1e-6)
    kind = small_table().tasks["kind"]
    assert kind.score(functional.one_hot((kind.labels.long() + 1) % 3, 3).float(), rows) == 0


@pytest.mark.parametrize("name", ["digits", "tumours"])
def test_rows_are_split_once_and_labels_hidden_only_from_training(name: str) -> None:
    pytest.importorskip("sklearn")
    table = digits_data.load(name)
    together = torch.cat([table.train, table.validation, table.test])
    assert together.sort().values.equal(torch.arange(len(table.inputs)))
    masked = table.masked(0)
    for key, task in table.tasks.items():
        missing = masked.tasks[key].labels.reshape(len(together), -1).isnan().any(1)
        assert not missing[table.validation].any()
        assert not missing[table.test].any()
        share = 1 - missing[table.train].double().mean().item()
        assert share == pytest.approx(digits_data.SHARE if task.partial else 1, abs=0.06)
        if task.scale is not None:
            spread = (task.labels[table.train] - task.centre).square().mean().sqrt().item()
            assert task.scale == pytest.approx(spread, rel=1e-5)
    assert any(task.partial for task in table.tasks.values())


def test_standardised_losses_have_no_unit() -> None:
    table = small_table()
    rows, outputs = table.train, torch.zeros(24, 1)
    task = table.standardised().tasks["large"]
    torch.testing.assert_close(task.loss(outputs, rows), (task.labels[rows] / 50).square().mean())


def test_the_sum_is_plain_adamw_and_what_an_observing_marble_does() -> None:
    table = small_table().masked(1)
    trained = train(table, "sum", 1e-2, 2, 8, seed=5)
    torch.manual_seed(5)
    network, random = Network(table, 2), torch.Generator().manual_seed(5)
    opt = make_marble("sum", torch.optim.AdamW(network.parameters(), lr=1e-2), list(table.tasks))
    for _ in range(8):
        rows = table.train[torch.randperm(24, generator=random)[: digits_training.BATCH]]
        losses = digits_training.batch_losses(network, table, rows)
        opt.backward(losses, shared=torch.stack([loss for loss in losses.values() if loss is not None]).sum())
        opt.step()
        opt.zero_grad()
    torch.testing.assert_close(parameters_of(trained.network), parameters_of(network))


def test_units_change_the_sum_and_not_the_relative_sum() -> None:
    table = small_table()
    scaled = table.rescaled({"pair": 100.0})
    for method, same in (("sum", False), ("sum relative", True)):
        first, second = (parameters_of(train(each, method, 1e-2, 2, 6, seed=0).network) for each in (table, scaled))
        assert torch.allclose(first, second, atol=1e-5) is same, method


def test_units_do_not_turn_marble() -> None:
    table = small_table()
    directions = []
    for each in (table, table.rescaled({"pair": 100.0})):
        torch.manual_seed(0)
        network = Network(each, 2)
        opt = make_marble("marble", torch.optim.AdamW(network.parameters()), list(each.tasks))
        opt.backward(digits_training.batch_losses(network, each, each.train))
        opt.balance()
        directions.append(functional.normalize(digits_training.flat([p.grad for p in network.parameters()]), dim=0))
    torch.testing.assert_close(directions[0], directions[1], atol=1e-5, rtol=0)


def test_uncertainty_weights_rest_at_their_optimum() -> None:
    table = small_table()
    total, losses = UncertaintySum(table), {"kind": torch.tensor(0.7), "large": torch.tensor(900.0), "pair": None}
    with torch.no_grad():
        # ∂/∂s (a e^{−s} L + s / 2) = 0 at s = log(2 a L).
        total.log_variances["kind"].fill_(math.log(1.4))
        total.log_variances["large"].fill_(math.log(900))
    total(losses).backward()
    assert total.log_variances["kind"].grad.item() == pytest.approx(0, abs=1e-6)
    assert total.log_variances["large"].grad.item() == pytest.approx(0, abs=1e-6)
    assert total.log_variances["pair"].grad is None


def test_a_relative_sum_starts_at_the_number_of_losses() -> None:
    total = RelativeSum(small_table())
    assert total({"kind": torch.tensor(2.0), "large": torch.tensor(300.0), "pair": None}).item() == pytest.approx(2)
    assert total({"kind": torch.tensor(1.0), "large": torch.tensor(300.0), "pair": torch.tensor(4.0)}) == 2.5
    assert Sum(small_table())({"kind": torch.tensor(2.0), "pair": None}) == 2


def test_opposition_is_a_rise_of_a_loss() -> None:
    rows = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    assert digits_training.opposes(rows, torch.tensor([2.0, 1.0])) == 1
    assert digits_training.opposes(rows, torch.tensor([1.0, 2.0])) == 0
    assert digits_training.opposes(rows * torch.tensor([[1.0], [1e-15]]), torch.tensor([2.0, 1.0])) == 0, "solved"
    assert digits_training.opposes(rows, torch.zeros(2)) == 0


def test_gradient_rows_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    table = small_table()
    network = Network(table, 2).double()
    table = Table(table.inputs.double(), table.tasks, table.train, table.validation, table.test)
    parameters = list(network.parameters())
    rows = digits_training.gradient_rows(digits_training.batch_losses(network, table, table.train), parameters)
    assert rows.shape == (3, sum(p.numel() for p in parameters))
    weight, size = parameters[0], 1e-5
    found = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[0, 0] += sign * size
        found.append(torch.stack(list(digits_training.batch_losses(network, table, table.train).values())).detach())
        with torch.no_grad():
            weight[0, 0] -= sign * size
    torch.testing.assert_close(rows[:, 0], (found[0] - found[1]) / (2 * size), rtol=1e-4, atol=1e-7)


def test_the_rate_is_the_best_on_validation_rows_and_none_that_diverged(monkeypatch: pytest.MonkeyPatch) -> None:
    quality = {3e-3: 0.5, 1e-2: 0.7, 3e-2: math.nan}
    table = SimpleNamespace(validation="validation")

    def fake_scores(network: float, _: object, rows: str) -> dict[str, float]:
        assert rows == "validation"
        return {"a": quality[network], "b": 0.1}

    monkeypatch.setattr(digits, "fitted", lambda task, method, rate, *_, **__: (table, SimpleNamespace(network=rate)))
    monkeypatch.setattr(digits, "scores", fake_scores)
    digits.best_rate.cache_clear()
    assert digits.best_rate("digits", "sum", 1) == 1e-2
    digits.best_rate.cache_clear()


def test_rows_measure_against_single_task_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(digits, "RATES", (1e-2,))
    monkeypatch.setattr(digits, "TUNING_SEEDS", (101,))
    digits.best_rate.cache_clear()
    digits.singles.cache_clear()
    single = digits.run(Cell("tumours", "single", 0, {"steps": 3}), "cpu")
    marble = digits.run(Cell("tumours", "marble", 0, {"steps": 3}), "cpu")
    digits.best_rate.cache_clear()
    digits.singles.cache_clear()
    assert single["composite"] == single["worst"] == 0
    names = digits_data.load("tumours").tasks
    changes = [
        100 * (marble[f"heldout/{name}"] - single[f"heldout/{name}"]) / abs(single[f"heldout/{name}"]) for name in names
    ]
    assert marble["composite"] == pytest.approx(sum(changes) / len(changes))
    assert marble["worst"] == pytest.approx(min(changes))
    assert marble["dropped"] == 0
    assert 0 <= marble["conflict/gradient"] <= 1
    assert marble["seconds/step"] > 0


def test_cells_are_distinct_and_cover_every_method() -> None:
    for length in ("quick", "full"):
        found = digits.cells(length)
        assert len({cell.key(digits.NAME) for cell in found}) == len(found)
    methods = {cell.method for cell in found}
    assert methods == {*digits.METHODS, *digits.OWN_LABELS} - {"gdpo"}
    assert not set(digits.TUNING_SEEDS) & {cell.seed for cell in found}
