"""Checks of combine and fused_adamw that hold on every device (see streaming_cases): each raises AssertionError."""

import torch
from operands import Guarded, blocks, combine_error, flat
from torch import Tensor

from marble_kernels.combine import clip_scale, combine
from marble_kernels.fused_adamw import fused_adamw
from marble_kernels.gram import gram

SHAPES = ((3,), (5, 7), (600,), (8, 16))
FP32, BF16 = torch.float32, torch.bfloat16
ROUNDING = 2e-6  # a few units of fp32 after a sum over some hundred elements


def _random() -> torch.Generator:
    return torch.Generator().manual_seed(3)


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


def adamw_many_steps(device: str) -> None:
    # The interpreter takes 0.15 s per step; over a hundred steps it is the twin that is compared with torch there.
    _adamw(device, 100 if device == "cuda" else 25, ((5, 13),))
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
