"""The bank accumulates one gradient per reward and keeps them apart."""

import copy

import pytest
import torch
from torch.nn import Parameter

from marble_kernels.segments import Rows
from marble_opt.bank import GradientBank, add_to_grad
from toys import flat, normal, parameters


def test_gradients_accumulate_per_reward() -> None:
    params, bank = parameters(), GradientBank(2)
    first, second, other = ([normal(*p.shape, seed=seed) for p in params] for seed in (1, 2, 3))
    bank.add(0, params, first)
    bank.add(1, params, other)
    bank.add(0, params, second)
    rows = torch.cat([bank.blocks[p].flatten(1) for p in params], dim=1)
    torch.testing.assert_close(rows, torch.stack([flat(first) + flat(second), flat(other)]))
    assert bank.offered == [True, True]


def test_a_parameter_that_no_gradient_reaches_gets_no_block() -> None:
    params, bank = parameters(), GradientBank(2)
    bank.add(0, params, [None, normal(4)])
    assert list(bank.blocks) == params[1:]
    assert len(bank) == 1


def test_a_reward_without_any_gradient_was_offered_all_the_same() -> None:
    params, bank = parameters(), GradientBank(2)
    bank.add(1, params, [None, None])
    assert bank.offered == [False, True]
    assert not bank.gram(params).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_accumulates_in_fp32(dtype: torch.dtype) -> None:
    param, bank = Parameter(torch.zeros(1, dtype=dtype)), GradientBank(1)
    for _ in range(1000):
        bank.add(0, [param], [torch.full((1,), 0.01, dtype=dtype)])
    expected = 1000 * torch.tensor(0.01, dtype=dtype).double().item()
    assert bank.blocks[param].item() == pytest.approx(expected, rel=1e-4)
    # The format itself stalls long before.
    naive = torch.zeros(1, dtype=dtype)
    for _ in range(1000):
        naive += torch.tensor(0.01, dtype=dtype)
    assert naive.item() != pytest.approx(expected, rel=1e-3)


def test_gram_has_the_shared_gradient_last() -> None:
    params, bank = parameters(), GradientBank(2)
    rows = normal(2, 10)
    for k in range(2):
        bank.add(k, params, [rows[k, :6].view(2, 3), rows[k, 6:]])
    params[1].grad = normal(4, seed=9)
    full = torch.cat([rows, torch.cat([torch.zeros(6), params[1].grad]).double().unsqueeze(0)])
    torch.testing.assert_close(bank.gram(params), full @ full.mT)


def test_gram_counts_parameters_that_only_the_shared_gradient_reaches() -> None:
    params, bank = parameters(), GradientBank(1)
    bank.add(0, params, [None, normal(4)])
    params[0].grad = torch.ones(2, 3, dtype=torch.float64)
    assert bank.gram(params)[-1, -1].item() == pytest.approx(6)


def test_products_with_a_vector() -> None:
    params, bank = parameters(), GradientBank(2)
    rows, vector = normal(2, 10), normal(10, seed=3)
    for k in range(2):
        bank.add(k, params, [rows[k, :6].view(2, 3), rows[k, 6:]])
    pairs = zip(params, (vector[:6].view(2, 3), vector[6:]), strict=True)
    torch.testing.assert_close(bank.products(pairs), rows @ vector)


def test_a_row_that_is_left_out_does_not_poison_the_combination() -> None:
    param, bank = Parameter(torch.zeros(3)), GradientBank(3)
    for k, value in enumerate((1.0, torch.nan, 2.0)):
        bank.add(k, [param], [torch.full((3,), value)])
    bank.add_combined(torch.tensor([0.5, 0.0, 0.25]))
    assert param.grad is not None
    assert param.grad.tolist() == [1, 1, 1]
    # The guard has teeth: plain arithmetic does not silence a NaN with a coefficient of 0.
    assert (torch.tensor([0.5, 0.0, 0.25]) @ bank.blocks[param]).isnan().all()


def test_the_combination_joins_what_grad_holds() -> None:
    params, bank = parameters(), GradientBank(2)
    rows, before = normal(2, 10), normal(4, seed=5)
    for k in range(2):
        bank.add(k, params, [rows[k, :6].view(2, 3), rows[k, 6:]])
    params[1].grad = before.clone().to(params[1].dtype)
    bank.add_combined(torch.tensor([2.0, -1.0], dtype=torch.float64))
    expected = 2 * rows[0] - rows[1]
    assert params[0].grad is not None
    torch.testing.assert_close(params[0].grad, expected[:6].view(2, 3).to(params[0].dtype))
    torch.testing.assert_close(params[1].grad, (expected[6:] + before).to(params[1].dtype))


def test_complete_gives_every_parameter_a_zero_block() -> None:
    params, bank = parameters(), GradientBank(2)
    bank.complete(params)
    assert [tuple(bank.blocks[p].shape) for p in params] == [(2, 2, 3), (2, 4)]
    assert not any(block.any() for block in bank.blocks.values())


def test_clear_forgets_everything() -> None:
    params, bank = parameters(), GradientBank(1)
    bank.add(0, params, [normal(2, 3), normal(4)])
    bank.clear()
    assert (len(bank), bank.offered) == (0, [False])


def test_a_sparse_gradient_is_refused_with_the_way_out() -> None:
    table = torch.nn.Embedding(5, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"shape \[5, 2\] has a sparse gradient: use Embedding\(sparse=False\)"):
        GradientBank(1).add(0, [table.weight], [table.weight.grad])


def test_grad_is_stored_first_and_added_to_later() -> None:
    params = parameters()
    add_to_grad(params, [None, normal(4)])
    assert params[0].grad is None
    add_to_grad(params, [None, normal(4, seed=2)])
    torch.testing.assert_close(params[1].grad, normal(4) + normal(4, seed=2))


def test_grad_takes_the_dtype_of_its_parameter() -> None:
    param = Parameter(torch.zeros(2, dtype=torch.bfloat16))
    add_to_grad([param], [torch.ones(2)])
    assert param.grad is not None
    assert param.grad.dtype == torch.bfloat16


def test_one_gradient_of_two_parameters_is_stored_twice() -> None:
    # autograd hands the same tensor to both summands of p + q.
    first, second = Parameter(torch.zeros(2)), Parameter(torch.zeros(2))
    gradients = torch.autograd.grad((first + second).square().sum(), [first, second])
    add_to_grad([first, second], gradients)
    add_to_grad([first], [torch.ones(2)])
    assert first.grad is not None
    assert first.grad.tolist() == [1, 1]
    assert second.grad is not None
    assert second.grad.tolist() == [0, 0]


def test_an_expanded_gradient_can_be_added_to() -> None:
    # The gradient of a sum is one number expanded, which nothing may be written to.
    param = Parameter(torch.zeros(2))
    add_to_grad([param], torch.autograd.grad(param.sum(), [param]))
    add_to_grad([param], [torch.ones(2)])
    assert param.grad is not None
    assert param.grad.tolist() == [2, 2]


def test_rows_are_looked_at_once_until_something_is_elsewhere() -> None:
    params = parameters()
    bank = GradientBank(2)
    for reward in range(2):
        bank.add(reward, params, [torch.ones_like(p) for p in params])

    def current() -> bool:
        rows = bank.rows(params)
        rows.check("a test", lambda: None)
        fresh = Rows([bank.blocks.get(p) for p in params], [p.grad for p in params])
        fresh.check("a test", lambda: None)
        return torch.equal(rows.table(), fresh.table())

    first = bank.rows(params)
    assert bank.rows(params) is first
    assert current()
    copied, owners = copy.deepcopy((bank, params))
    rows = copied.rows(owners)
    rows.check("a test", lambda: None)
    assert rows.table()[0, 0] == copied.blocks[owners[0]].data_ptr()
    params[0].grad = torch.ones_like(params[0])
    assert bank.rows(params) is not first
    assert current()
    bank.clear()
    bank.add(0, params[1:], [torch.ones_like(params[1])])
    assert current()


def test_complex_parameters_are_refused() -> None:
    bank = GradientBank(2)
    parameter = Parameter(torch.zeros(3, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"shape \[3\] is complex.*view_as_real"):
        bank.add(0, [parameter], [torch.ones(3, dtype=torch.complex64)])
