"""gram's torch twin against fp64 by brute force, and what gram refuses."""

import pytest
import torch
from operands import blocks, flat, gram_error
from torch import Generator, Tensor

from families import FAMILIES
from marble_kernels.gram import gram
from marble_kernels.segments import Rows

SHAPES = ((3,), (5, 7), (101,))


def brute_force(rows: Tensor, metric: Tensor | None = None) -> Tensor:
    found = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for j, left in enumerate(rows):
        for k, right in enumerate(rows):
            found[j, k] = (left * right * (1.0 if metric is None else metric)).sum()
    return found


@pytest.mark.parametrize("count", range(1, 33))
def test_every_k(count: int, random: Generator) -> None:
    rows = blocks(count, SHAPES, random, torch.float32)
    found = gram(rows)
    assert found.dtype == torch.float32
    assert torch.equal(found, found.mT)
    assert gram_error(found, flat(rows)) < 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str, random: Generator) -> None:
    rows = FAMILIES[family](random, 1, 6, 211)[0].float()
    found = gram(rows)
    assert gram_error(found, rows.double()) < 1e-6
    assert gram_error(brute_force(rows.double()), rows.double()) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_forms_agree(dtype: torch.dtype, random: Generator) -> None:
    rows = blocks(4, SHAPES, random, dtype)
    lists = [[block[k] for block in rows] for k in range(4)]
    joined = torch.cat([block.flatten(1) for block in rows], 1)
    assert gram_error(gram(rows), flat(rows)) < 1e-6
    assert torch.equal(gram(rows), gram(lists))
    torch.testing.assert_close(gram(rows), gram(joined), rtol=1e-5, atol=1e-5)


def test_double_precision_stays(random: Generator) -> None:
    rows = blocks(3, SHAPES, random, torch.float64)
    found = gram(rows)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, brute_force(flat(rows)), rtol=1e-12, atol=1e-12)


def test_absent_rows_are_zero(random: Generator) -> None:
    rows = blocks(3, SHAPES, random, torch.float32)
    lists: list[list[Tensor | None]] = [[block[k].clone() for block in rows] for k in range(3)]
    lists[1][0] = None
    rows[0][1] = 0
    for row in lists:
        row[2] = None
    rows[2].zero_()
    assert torch.equal(gram(lists), gram(rows))
    assert torch.equal(gram([rows[0], rows[1], None]), gram(rows))


def test_the_shared_row_is_last(random: Generator) -> None:
    rows = blocks(2, SHAPES, random, torch.float32)
    shared = [torch.randn(3, generator=random).bfloat16(), None, torch.randn(101, generator=random)]
    full = [*flat(rows), torch.cat([shared[0].double(), torch.zeros(35).double(), shared[2].double()])]
    assert gram_error(gram(rows, shared=shared), torch.stack(full)) < 1e-6
    one = torch.randn(101, generator=random)
    assert gram_error(gram(rows[2], shared=one), torch.stack([*rows[2], one]).double()) < 1e-6


def test_metric_and_groups(random: Generator) -> None:
    rows = blocks(3, SHAPES, random, torch.float32)
    metric = [torch.rand(shape, generator=random) for shape in SHAPES]
    weights = [weight.flatten().double() for weight in metric]
    torch.testing.assert_close(
        gram(rows, metric).double(), brute_force(flat(rows), torch.cat(weights)), rtol=1e-5, atol=1e-5
    )
    found = gram(rows, metric, groups=[2, 0, 2])
    assert found.shape == (3, 3, 3)
    assert not found[1].any()
    torch.testing.assert_close(found[0].double(), brute_force(flat(rows[1:2]), weights[1]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.sum(0), gram(rows, metric), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": torch.zeros(3)}, r"\[K, P\]"),
        ({"rows": []}, "K is unknown"),
        ({"rows": [None, None]}, "K is unknown"),
        ({"rows": [[None], [None]], "shared": [torch.zeros(3)]}, "no tensor"),
        ({"rows": [torch.zeros(2, 3), torch.zeros(3, 3)]}, "same K"),
        ({"rows": [torch.zeros(2, 3), [None]]}, "mixes"),
        ({"rows": [[torch.zeros(3)], []]}, "same parameters"),
        ({"rows": [[torch.zeros(3)], [torch.zeros(4)]]}, "different shapes"),
        ({"rows": torch.zeros(2, 3), "shared": [None]}, r"one tensor \[P\]"),
        ({"rows": [torch.zeros(2, 3)], "shared": [torch.zeros(4)]}, "different shapes"),
        ({"rows": torch.zeros(2, 3), "metric": torch.zeros(4)}, "metric 0 has shape"),
        ({"rows": [torch.zeros(2, 3)], "metric": torch.zeros(3)}, "a tensor for each"),
        ({"rows": torch.zeros(2, 3), "groups": [0]}, "per parameter"),
        ({"rows": [torch.zeros(2, 3)], "groups": [-1]}, "number >= 0"),
        ({"rows": torch.zeros(2, 3), "impl": "cuda"}, "impl must be"),
        ({"rows": torch.zeros(2, 3), "metric": torch.zeros(3, device="meta")}, "one device"),
    ],
)
def test_refusals(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gram(**options)


def test_rows_made_before_bring_their_shared_row() -> None:
    blocks, shared = [torch.ones(2, 3), torch.ones(2, 4)], [torch.ones(3), None]
    assert torch.equal(gram(Rows(blocks, shared)), gram(blocks, shared=shared))
    with pytest.raises(ValueError, match="shared=None"):
        gram(Rows(blocks), shared=shared)
