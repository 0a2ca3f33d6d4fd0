"""Checks of the streaming kernels that hold on every device: each raises AssertionError.

The interpreter's worker runs them on the CPU, the GPU tests on CUDA; ``impl="triton"`` throughout.
"""

from collections.abc import Callable

import torch
from marble_kernels.combine import clip_scale, combine
from marble_kernels.fused_adamw import fused_adamw
from marble_kernels.gram import gram
from operands import Guarded, blocks, combine_error, flat, gram_error
from torch import Tensor

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
        _gram(device, count, FP32, shapes=((131,), (64,)))


def gram_large_k(device: str) -> None:
    for count in (13, 17, 32):
        _gram(device, count, FP32, shapes=((77,),) if count > 17 else ((131,), (64,)))


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


def combine_every_k(device: str) -> None:
    guarded, random = Guarded(device), _random()
    for count in (1, 2, 5, 9, 32):
        for dtype, shift in ((FP32, 0), (FP32, 1), (BF16, 0)):
            rows = [guarded.block(block, shift) for block in blocks(count, SHAPES[1:3], random, dtype)]
            weights = torch.randn(count, generator=random)
            out = [guarded.written(torch.zeros(shape), shift) for shape in SHAPES[1:3]]
            returned = combine(rows, weights.to(device), out=out, impl="triton")
            assert all(a is b for a, b in zip(returned, out, strict=True))
            found = flat([tensor.unsqueeze(0) for tensor in out])[0]
            assert combine_error(found, flat(rows), weights) < ROUNDING
    assert guarded.intact()


def combine_shared_and_scale(device: str) -> None:
    guarded, random = Guarded(device), _random()
    rows = [guarded.block(block) for block in blocks(3, SHAPES, random, FP32)]
    shared: list[Tensor | None] = [guarded(block[0]) for block in blocks(1, SHAPES, random, BF16)]
    shared[1] = None
    weights = torch.randn(3, generator=random).to(device)
    scale = torch.tensor(0.25, device=device)
    found = combine(rows, weights, shared, scale, impl="triton")
    wanted = combine(rows, weights, shared, scale, impl="torch")
    for left, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)
    one = combine(rows[2], weights, None, scale, impl="triton")
    torch.testing.assert_close(one, combine(rows[2], weights, None, scale, impl="torch"), rtol=1e-5, atol=1e-6)
    # In place, as an optimizer adds to .grad.
    into = [guarded.written(tensor.float()) for tensor in wanted]
    expected = [scale * 2 * tensor for tensor in into]
    combine(rows, torch.zeros_like(weights), into, scale * 2, out=into, impl="triton")
    for left, right in zip(into, expected, strict=True):
        torch.testing.assert_close(left, right)
    assert guarded.intact()


def combine_into_one_flat_output(device: str) -> None:
    guarded = Guarded(device)
    rows = [guarded.block(block) for block in blocks(2, SHAPES, _random(), FP32)]
    weights = torch.tensor([0.5, -2.0], device=device)
    out = guarded.written(torch.zeros(flat(rows).shape[1]))
    assert combine(rows, weights, out=out, impl="triton") is out
    assert combine_error(out, flat(rows), weights) < ROUNDING
    assert guarded.intact()


def combine_leaves_unused_rows_unread(device: str) -> None:
    rows = torch.randn(3, 333, generator=_random())
    rows[1, ::2], rows[1, 1::2] = torch.nan, torch.inf
    weights = torch.tensor([1.0, 0.0, -1.0])
    for impl in ("triton", "torch"):
        found = combine(rows.to(device), weights.to(device), impl=impl)
        assert combine_error(found, rows.nan_to_num(0, 0, 0).double(), weights) < ROUNDING


def combine_with_the_clip_factor(device: str) -> None:
    rows = torch.randn(3, 500, generator=_random()).to(device)
    weights = torch.tensor([0.3, 0.3, 0.4], device=device)
    scale = clip_scale(gram(rows, impl="triton"), weights, 2.0)
    found = combine(rows, weights, scale=scale, impl="triton")
    reference = torch.nn.Parameter(torch.zeros(500, device=device))
    reference.grad = weights @ rows
    torch.nn.utils.clip_grad_norm_([reference], 2.0)
    torch.testing.assert_close(found, reference.grad, rtol=1e-5, atol=1e-7)


def _adamw(
    device: str, turns: int, shapes: tuple, *, decoupled: bool = True, maximize: bool = False, **options
) -> None:
    guarded, random = Guarded(device), _random()
    count, dtype, shift = 3, options.pop("dtype", FP32), options.pop("shift", 0)
    settings = {"lr": 3e-3, "weight_decay": 0.1, "eps": 1e-8} | options
    betas = (settings.pop("beta1", 0.9), settings.pop("beta2", 0.999))
    params = [guarded.written(torch.randn(shape, generator=random), shift) for shape in shapes]
    reference = [torch.nn.Parameter(param.clone()) for param in params]
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    base = kind(reference, betas=betas, maximize=maximize, foreach=False, **settings)
    firsts, seconds = ([guarded.written(torch.zeros(shape), shift) for shape in shapes] for _ in range(2))
    steps = [torch.zeros((), device=device) for _ in shapes]
    scale = torch.tensor(0.5, device=device)
    for turn in range(turns):
        rows = [guarded.block(block, shift) for block in blocks(count, shapes, random, dtype)]
        shared: list[Tensor | None] = [guarded(block[0]) for block in blocks(1, shapes, random, BF16)]
        if len(shapes) > 1:
            shared[0] = None
        weights = torch.rand(count, generator=random).to(device)
        gradients = combine(rows, weights, shared, scale, impl="torch")
        for param, gradient in zip(reference, gradients, strict=True):
            param.grad = gradient
        base.step()
        lr = torch.tensor(settings["lr"], device=device) if turn % 2 else settings["lr"]
        fused_adamw(
            params, rows, weights, shared, firsts, seconds, steps, lr=lr, beta1=betas[0], beta2=betas[1],
            eps=settings["eps"], weight_decay=settings["weight_decay"], decoupled=decoupled, maximize=maximize,
            scale=scale, usable=torch.tensor(True, device=device), impl="triton",
        )  # fmt: skip
    for param, first, second, step, wanted in zip(params, firsts, seconds, steps, reference, strict=True):
        state = base.state[wanted]
        pairs = ((param, wanted.detach()), (first, state["exp_avg"]), (second, state["exp_avg_sq"]))
        for found, expected in pairs:
            assert float((found - expected).abs().max() / expected.abs().max()) < 1e-6
        assert step.item() == turns
    assert guarded.intact()


def adamw_hundred_steps(device: str) -> None:
    _adamw(device, 100, ((5, 13),))
    _adamw(device, 3, SHAPES)


def adam_with_l2(device: str) -> None:
    _adamw(device, 5, SHAPES, decoupled=False)


def adamw_other_options(device: str) -> None:
    _adamw(device, 4, ((600,), (3,)), maximize=True, beta1=0.0, beta2=0.5, eps=1e-3)
    _adamw(device, 4, ((600,), (3,)), shift=1)
    _adamw(device, 4, ((600,), (64,)), dtype=BF16, weight_decay=0.0)


def adamw_unusable_changes_nothing(device: str) -> None:
    random = _random()
    rows = torch.full((2, 77), torch.nan, device=device)
    for usable in (torch.tensor(False), torch.tensor(0.0)):
        tensors = [torch.rand(77, generator=random).to(device) for _ in range(3)]
        before, step = [tensor.clone() for tensor in tensors], torch.tensor(3.0, device=device)
        fused_adamw(
            tensors[:1], rows, torch.ones(2, device=device), None, tensors[1:2], tensors[2:], [step], lr=0.1, beta1=0.9,
            beta2=0.99, eps=1e-8, weight_decay=0.1, usable=usable.to(device), impl="triton",
        )  # fmt: skip
        assert step.item() == 3
        assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


def adamw_passes_over_unreached_parameters(device: str) -> None:
    params = [torch.ones(3, device=device), torch.ones(4, device=device)]
    firsts, seconds = ([torch.zeros_like(param) for param in params] for _ in range(2))
    steps = [torch.zeros((), device=device) for _ in params]
    version = params[1]._version
    fused_adamw(
        params, [None, torch.ones(2, 4, device=device)], torch.ones(2, device=device), None, firsts, seconds, steps,
        lr=0.1, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1, impl="triton",
    )  # fmt: skip
    assert [step.item() for step in steps] == [0, 1]
    assert torch.equal(params[0], torch.ones_like(params[0]))
    assert (params[1] < 1).all()
    assert params[1]._version > version


PREFIXES = ("gram_", "combine_", "adam")
CASES: dict[str, Callable[[str], None]] = {
    name: case
    for name, case in list(globals().items())
    if name.startswith(PREFIXES) and name not in ("gram_error", "combine_error") and callable(case)
}
