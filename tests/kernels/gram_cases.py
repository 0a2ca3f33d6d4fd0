"""Checks of gram that hold on every device (see streaming_cases): each raises AssertionError."""

import torch
from operands import Guarded, blocks, flat, gram_error
from torch import Tensor

from marble_kernels.gram import gram

SHAPES = ((3,), (5, 7), (600,), (8, 16))
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
ROUNDING = 2e-6  # a few units of fp32 after a sum over some hundred elements


def _random() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def _gram(device: str, count: int, dtype: torch.dtype, shift: int = 0, shapes: tuple = SHAPES) -> None:
    guarded = Guarded(device)
    rows = [guarded.block(block, shift) for block in blocks(count, shapes, _random(), dtype)]
    found = gram(rows, impl="triton")
    assert found.dtype == FP32
    assert torch.equal(found, found.mT)
    assert gram_error(found, flat(rows)) < ROUNDING
    assert guarded.intact()


def gram_every_k_in_registers(device: str) -> None:
    for count in range(1, 13):
        _gram(device, count, FP32, shapes=((37,), (64,)))


def gram_large_k(device: str) -> None:
    for count in (13, 17, 32):
        _gram(device, count, FP32, shapes=((77,),) if count > 13 else ((131,), (64,)))


def gram_half_precision(device: str) -> None:
    for dtype in (BF16, FP16):
        for count in (1, 5, 13):
            _gram(device, count, dtype, shapes=((131,), (64,)))


def gram_misaligned(device: str) -> None:
    for shift in (1, 2):
        _gram(device, 4, FP32, shift)
        _gram(device, 4, BF16, shift)


def gram_over_several_tasks(device: str) -> None:
    shapes = ((9001,), (2048 * 3,))
    _gram(device, 2, FP32, shapes=shapes)
    rows = [block.to(device) for block in blocks(2, shapes, _random(), FP32)]
    assert torch.equal(gram(rows, impl="triton"), gram(rows, impl="triton")), "not reproducible"


def gram_forms_agree(device: str) -> None:
    guarded, random = Guarded(device), _random()
    rows = blocks(3, ((37,),), random, FP32)[0]
    block = guarded.block(rows)
    lists = [[guarded(row)] for row in rows]
    one = gram(block, impl="triton")
    assert torch.equal(one, gram([block], impl="triton"))
    torch.testing.assert_close(gram(lists, impl="triton"), one, rtol=1e-5, atol=1e-5)
    assert guarded.intact()


def gram_absent_rows(device: str) -> None:
    guarded, random = Guarded(device), _random()
    for count in (3, 13):
        rows = blocks(count, SHAPES, random, FP32)
        lists: list[list[Tensor | None]] = [[guarded(block[k]) for block in rows] for k in range(count)]
        for k, index in ((0, 1), (2, 2), (2, 0)):
            lists[k][index] = None
            rows[index][k] = 0
        for row in lists:
            row[3] = None
        rows[3].zero_()
        found = gram(lists, impl="triton")
        assert gram_error(found, flat(rows)) < ROUNDING
    assert guarded.intact()


def gram_shared_of_other_dtype(device: str) -> None:
    guarded, random = Guarded(device), _random()
    for count in (2, 13):
        rows = [guarded.block(block) for block in blocks(count, SHAPES[1:], random, FP32)]
        last = [block[0] for block in blocks(1, SHAPES[1:], random, BF16)]
        shared = [guarded(last[0]), None, guarded(last[2])]
        last[1].zero_()
        found = gram(rows, impl="triton", shared=shared)
        exact = torch.cat([flat(rows), flat([tensor.unsqueeze(0) for tensor in last])])
        assert found.shape == (count + 1, count + 1)
        assert gram_error(found, exact) < ROUNDING
    # A parameter that only the shared gradient reaches.
    found = gram([None, rows[1]], impl="triton", shared=[shared[0], None])
    torch.testing.assert_close(found[-1, -1].cpu(), last[0].float().square().sum(), rtol=1e-5, atol=0)
    assert guarded.intact()


def gram_metric(device: str) -> None:
    guarded, random = Guarded(device), _random()
    for count, dtype in ((3, FP32), (3, BF16), (13, FP32)):
        rows = [guarded.block(block) for block in blocks(count, SHAPES[:2], random, dtype)]
        weights = [torch.rand(shape, generator=random) + 0.1 for shape in SHAPES[:2]]
        found = gram(rows, [guarded(weight) for weight in weights], impl="triton")
        exact = torch.cat([weight.flatten() for weight in weights]).double()
        assert gram_error(found, flat(rows), exact) < ROUNDING
    assert guarded.intact()


def gram_groups(device: str) -> None:
    guarded = Guarded(device)
    shapes = ((2500,), (5, 7), (64,), (3,))
    rows = [guarded.block(block) for block in blocks(3, shapes, _random(), FP32)]
    found = gram(rows, groups=[2, 0, 2, 0], impl="triton")
    assert found.shape == (3, 3, 3)
    assert not found[1].any()
    for group, members in ((2, (0, 2)), (0, (1, 3))):
        assert gram_error(found[group], flat([rows[index] for index in members])) < ROUNDING
    assert guarded.intact()


def gram_scales_and_rank(device: str) -> None:
    random = _random()
    base = torch.randn(2, 300, generator=random)
    rows = torch.randn(5, 2, generator=random) @ base
    for scale in (1e-8, 1.0, 1e8):
        found = gram((rows * scale).to(device), impl="triton")
        assert gram_error(found, (rows * scale).double()) < ROUNDING
