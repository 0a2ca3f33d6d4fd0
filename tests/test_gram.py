"""gram_matrix against sums in fp64."""

import pytest
import torch
from torch import Generator, Tensor

from families import FAMILIES
from marble_opt import gram_matrix
from marble_opt.gram import gram_of_blocks
from toys import normal


def as_lists(rows: Tensor) -> list[list[Tensor | None]]:
    return [[row[:6].view(2, 3), row[6:]] for row in rows]


def brute_force(rows: Tensor, metric: Tensor) -> Tensor:
    size = len(rows)
    gram = torch.zeros(size, size, dtype=torch.float64)
    for j in range(size):
        for k in range(size):
            for p in range(rows.shape[1]):
                gram[j, k] += metric[p].double() * rows[j, p].double() * rows[k, p].double()
    return gram


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_sum_over_entries(family: str, random: Generator) -> None:
    rows = FAMILIES[family](random, 1, 4, 10)[0]
    expected = brute_force(rows, torch.ones(10))
    torch.testing.assert_close(gram_matrix(rows), expected, rtol=1e-13, atol=1e-13 * expected.abs().max().item())


def test_is_exactly_symmetric() -> None:
    gram = gram_matrix(normal(5, 300, dtype=torch.float32))
    assert torch.equal(gram, gram.mT)


def test_list_form_equals_tensor_form() -> None:
    rows = normal(4, 10)
    torch.testing.assert_close(gram_matrix(as_lists(rows)), gram_matrix(rows), rtol=1e-13, atol=1e-13)


def test_batches_are_solved_apart() -> None:
    rows = normal(2, 3, 4, 10)
    batched = gram_matrix(rows)
    assert batched.shape == (2, 3, 4, 4)
    torch.testing.assert_close(batched[1, 2], gram_matrix(rows[1, 2]))


def test_metric_weighs_every_entry() -> None:
    rows, metric = normal(3, 10), normal(10, seed=2).abs()
    expected = brute_force(rows, metric)
    torch.testing.assert_close(gram_matrix(rows, metric), expected)
    torch.testing.assert_close(gram_matrix(as_lists(rows), [metric[:6].view(2, 3), metric[6:]]), expected)


def test_none_is_a_zero_gradient() -> None:
    rows = normal(2, 10)
    lists = as_lists(rows)
    lists[0][1] = None
    rows[0, 6:] = 0
    torch.testing.assert_close(gram_matrix(lists), gram_matrix(rows))


def test_metric_stays_with_its_parameter_when_no_row_reaches_another() -> None:
    rows, metric = normal(2, 10), normal(10, seed=2).abs()
    lists: list[list[Tensor | None]] = [[None, row[6:]] for row in rows]
    expected = brute_force(rows[:, 6:], metric[6:])
    torch.testing.assert_close(gram_matrix(lists, [metric[:6].view(2, 3), metric[6:]]), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_accumulated_in_fp32(dtype: torch.dtype) -> None:
    rows = normal(3, 20_000, dtype=torch.float32).to(dtype)
    gram, exact = gram_matrix(rows), rows.double() @ rows.double().mT
    assert gram.dtype == torch.float32
    assert (gram - exact).abs().max() <= 1e-5 * exact.diagonal().max()


def test_fp64_rows_give_fp64() -> None:
    blocks = [normal(2, 3, dtype=torch.float32), normal(2, 4)]
    assert gram_matrix(normal(2, 3)).dtype == torch.float64
    assert gram_of_blocks(2, blocks, [None, None]).dtype == torch.float64


def test_fewer_than_two_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[\.\.\., K, P\], got shape \[4\]"):
        gram_matrix(normal(4))


def test_metric_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"metric has shape \[3\], rows need \[10\]"):
        gram_matrix(normal(2, 10), normal(3))


def test_metric_of_the_other_form_is_refused() -> None:
    with pytest.raises(ValueError, match="one tensor"):
        gram_matrix(normal(2, 10), [normal(10)])
    with pytest.raises(ValueError, match="list of tensors"):
        gram_matrix(as_lists(normal(2, 10)), normal(10))


def test_metric_list_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="metric has 1 tensors, the gradients have 2"):
        gram_matrix(as_lists(normal(2, 10)), [normal(2, 3)])


@pytest.mark.parametrize("shape", [(1,), (5,)])
def test_metric_tensor_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="metric"):
        gram_matrix(as_lists(normal(2, 10)), [normal(*shape), normal(4)])


def test_rows_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"length \[1, 2\]"):
        gram_matrix([[normal(3)], [normal(3), normal(2)]])


def test_gradients_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="parameter 0 has gradients of different shapes"):
        gram_matrix([[normal(3)], [normal(4)]])


def test_no_gradient_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="no gradient block"):
        gram_matrix([[None], [None]])
