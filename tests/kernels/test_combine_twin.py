"""combine's torch twin against fp64, the clip factor against clip_grad_norm_, and what they refuse."""

import pytest
import torch
from operands import blocks, combine_error, flat
from torch import Generator

from families import FAMILIES
from marble_kernels.combine import clip_scale, combine
from marble_kernels.gram import gram

SHAPES = ((3,), (5, 7), (101,))


@pytest.mark.parametrize("count", [1, 2, 5, 17, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_against_brute_force(count: int, dtype: torch.dtype, random: Generator) -> None:
    rows, weights = blocks(count, SHAPES, random, dtype), torch.randn(count, generator=random)
    found = combine(rows, weights)
    assert [tuple(tensor.shape) for tensor in found] == list(SHAPES)
    assert all(tensor.dtype == torch.float32 for tensor in found)
    assert combine_error(flat([tensor.unsqueeze(0) for tensor in found])[0], flat(rows), weights) < 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str, random: Generator) -> None:
    rows = FAMILIES[family](random, 1, 5, 99)[0].float()
    weights = torch.randn(5, generator=random)
    assert combine_error(combine(rows, weights), rows.double(), weights) < 1e-6


def test_a_row_without_weight_is_not_used(random: Generator) -> None:
    rows = torch.randn(3, 50, generator=random)
    rows[1] = torch.nan
    weights = torch.tensor([1.0, 0.0, 2.0])
    torch.testing.assert_close(combine(rows, weights), rows[0] + 2 * rows[2])


def test_shared_scale_and_outputs(random: Generator) -> None:
    rows, weights = blocks(2, SHAPES, random, torch.float32), torch.tensor([0.5, -1.0])
    shared = [torch.randn(3, generator=random).bfloat16(), None, torch.randn(101, generator=random)]
    scale = torch.tensor(0.1)
    wanted = [0.5 * block[0] - block[1] for block in rows]
    wanted = [0.1 * (w if s is None else w + s) for w, s in zip(wanted, shared, strict=True)]
    for left, right in zip(combine(rows, weights, shared, scale), wanted, strict=True):
        torch.testing.assert_close(left, right)
    out = torch.full((139,), torch.nan)
    assert combine(rows, weights, shared, scale, out) is out
    torch.testing.assert_close(out, torch.cat([tensor.flatten() for tensor in wanted]))
    outputs = [torch.zeros(3, dtype=torch.bfloat16), None, torch.zeros(101)]
    combine(rows, weights, shared, scale, outputs)
    assert torch.equal(outputs[0], wanted[0].bfloat16())


def test_what_nothing_reaches_is_left_alone() -> None:
    rows = [torch.ones(2, 3), None, None]
    found = combine(rows, torch.ones(2), [None, None, torch.ones(4)])
    assert found[1] is None
    assert torch.equal(found[2], torch.ones(4))
    out = [torch.zeros(3), torch.full((5,), 7.0), torch.zeros(4)]
    combine(rows, torch.ones(2), [None, None, torch.ones(4)], out=out)
    assert torch.equal(out[1], torch.full((5,), 7.0))


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("shared", [False, True])
def test_the_clip_factor_is_that_of_torch(scale: float, shared: bool, random: Generator) -> None:
    rows = torch.randn(3, 40, generator=random) * scale
    extra = torch.randn(40, generator=random) * scale if shared else None
    weights = torch.tensor([0.2, 0.5, 0.3])
    for limit in (0.5 * scale, 1.0, 100 * scale):
        param = torch.nn.Parameter(torch.zeros(40))
        param.grad = combine(rows, weights, extra)
        factor = clip_scale(gram(rows, shared=extra), weights, limit)
        found = combine(rows, weights, extra, factor)
        torch.nn.utils.clip_grad_norm_([param], limit)
        torch.testing.assert_close(found, param.grad, rtol=1e-5, atol=0)
        assert factor.dim() == 0


def test_the_clip_factor_leaves_unused_rows_out_and_shows_nan() -> None:
    matrix = torch.tensor([[4.0, torch.nan], [torch.nan, torch.nan]])
    assert clip_scale(matrix, torch.tensor([1.0, 0.0]), 1.0).item() == pytest.approx(0.5, rel=1e-5)
    assert clip_scale(matrix, torch.tensor([1.0, 1.0]), 1.0).isnan()
    # Rounding may make cᵀGc negative where rows cancel.
    assert clip_scale(torch.tensor([[1.0, -1.0001], [-1.0001, 1.0]]), torch.ones(2), 1.0).item() == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coefficients": torch.ones(3)}, r"must be \[2\]"),
        ({"coefficients": torch.ones(2, device="meta")}, "coefficients are on meta"),
        ({"scale": torch.ones(2)}, "one number"),
        ({"scale": torch.ones((), device="meta")}, "scale is on meta"),
        ({"out": torch.zeros(4)}, r"contiguous \[3\]"),
        ({"out": [torch.zeros(3), None]}, "out has 2"),
        ({"out": [torch.zeros(4)]}, "out 0 has shape"),
        ({"out": [torch.zeros(3, device="meta")]}, "one device"),
    ],
)
def test_refusals(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        combine(**({"rows": [torch.ones(2, 3)], "coefficients": torch.ones(2)} | options))


def test_refusals_of_the_clip_factor() -> None:
    with pytest.raises(ValueError, match="K \\+ 1"):
        clip_scale(torch.eye(4), torch.ones(2), 1.0)
    with pytest.raises(ValueError, match="positive"):
        clip_scale(torch.eye(2), torch.ones(2), 0.0)
