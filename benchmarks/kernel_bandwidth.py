"""Question: what share of the measured copy bandwidth do the streaming kernels reach, and what do they save over torch?

A library: each function returns rows (dictionaries) for benchmarks/results, and checks the kernel's result before it
measures. Times are medians over single calls with the 20 % and 80 % quantiles: CUDA events on a GPU, with the call in a
CUDA graph and the second-level cache flushed before each; the wall clock on a CPU, which only shows that the code runs.
Bytes are those that must move at least once: a share of 1 means that nothing is read twice.
"""

import statistics
from collections.abc import Callable, Sequence

import torch
from measure import quantiles
from measure import seconds as wall_time
from torch import Tensor

from marble_kernels.combine import clip_scale, combine
from marble_kernels.fused_adamw import fused_adamw
from marble_kernels.gram import gram

P, PARAMETERS = 18_800_000, 400
ADAMW = {"lr": 1e-4, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def lora_shapes(total: int = P, parameters: int = PARAMETERS) -> list[tuple[int, int]]:
    """Shapes of pairs of adapter matrices [rank, in], [out, rank] with about ``total`` elements."""
    rank = 16
    width = max(8, round(total / parameters / rank / 8) * 8)
    return [(rank, width) if index % 2 == 0 else (width, rank) for index in range(parameters)]


def times(call: Callable[[], object], device: str, repeats: int = 50) -> list[float]:
    """Seconds of single calls. On a GPU the host's launch time is left out: the call is captured and replayed."""
    if device == "cpu":
        call()
        return [wall_time(call) for _ in range(repeats)]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    flush = torch.empty(2 * torch.cuda.get_device_properties(0).L2_cache_size, dtype=torch.int8, device=device)
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, end in pairs:
        flush.zero_()
        start.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1000 for start, end in pairs]


def row(method: str, metric: str, values: Sequence[float], settings: dict) -> dict:
    """One row without the facts that all rows share."""
    return {"method": method, "metric": metric, "settings": settings} | quantiles(values)


def copy_bandwidth(device: str, total: int = 2**28) -> list[dict]:
    """Bytes per second, read and written, of copying a large fp32 tensor: the ceiling of all shares."""
    source = torch.ones(total, device=device)
    target = torch.empty_like(source)
    seconds = times(lambda: target.copy_(source), device)
    settings = {"elements": total, "device": device}
    return [row("copy", "bytes_per_second", [2 * 4 * total / value for value in seconds], settings)]


def gram_rows(device: str, ceiling: float, total: int = P, parameters: int = PARAMETERS) -> list[dict]:
    """gram for K = 2, 5, 10 in fp32 and bf16, per parameter and contiguous, against torch (stack, matmul)."""
    found = []
    for name, dtype in DTYPES.items():
        for count in (2, 5, 10):
            blocks = _blocks(count, lora_shapes(total, parameters), dtype, device)
            flat = torch.cat([block.flatten(1) for block in blocks], 1)
            size = flat.numel() * flat.element_size()
            for layout, rows in (("parameters", blocks), ("contiguous", flat)):
                _same(gram(rows, impl=_impl(device)), gram(flat.double()), 1e-5)
                plain = times(lambda rows=rows: _torch_gram(rows), device)
                settings = _settings(device, name, count, flat.shape[1]) | {"layout": layout}
                seconds = times(lambda rows=rows: gram(rows, impl=_impl(device)), device)
                found += _compared("gram", seconds, plain, size, ceiling, settings)
    return found


def combine_rows(device: str, ceiling: float, total: int = P, parameters: int = PARAMETERS) -> list[dict]:
    """combine into per-parameter outputs for K = 5, against torch (tensordot per parameter)."""
    found = []
    for name, dtype in DTYPES.items():
        blocks = _blocks(5, lora_shapes(total, parameters), dtype, device)
        weights = torch.rand(5, device=device)
        out = [torch.empty(block.shape[1:], device=device) for block in blocks]
        combine(blocks, weights, out=out, impl=_impl(device))
        for own, torchs in zip(out, _torch_combine(blocks, weights), strict=True):
            _same(own, torchs, 1e-2 if dtype == torch.bfloat16 else 1e-5)
        size = sum(block.numel() * block.element_size() + block[0].numel() * 4 for block in blocks)
        settings = _settings(device, name, 5, sum(tensor.numel() for tensor in out))
        seconds = times(lambda b=blocks, o=out, w=weights: combine(b, w, out=o, impl=_impl(device)), device)
        plain = times(lambda b=blocks, w=weights: _torch_combine(b, w), device)
        found += _compared("combine", seconds, plain, size, ceiling, settings)
    return found


def adamw_rows(device: str, ceiling: float, total: int = P, parameters: int = PARAMETERS) -> list[dict]:
    """fused_adamw with a clip factor for K = 5, against combine by torch, clipping and torch's fused AdamW."""
    found = []
    for name, dtype in DTYPES.items():
        blocks = _blocks(5, lora_shapes(total, parameters), dtype, device)
        weights, matrix = torch.rand(5, device=device), gram(blocks)
        own, torchs = _Trained(blocks, device), _Trained(blocks, device)
        scale = clip_scale(matrix, weights, 1.0)
        for _ in range(3):
            own.fused(blocks, weights, scale)
            torchs.plain(blocks, weights, scale)
        for left, right in zip(own.params, torchs.params, strict=True):
            _same(left.detach(), right.detach(), 1e-3 if dtype == torch.bfloat16 else 1e-5)
        elements = sum(block[0].numel() for block in blocks)
        size = sum(block.numel() * block.element_size() for block in blocks) + 6 * 4 * elements
        settings = _settings(device, name, 5, elements) | {"parameters_in": "fp32"}
        seconds = times(lambda b=blocks, o=own, w=weights, s=scale: o.fused(b, w, s), device)
        plain = times(lambda b=blocks, o=torchs, w=weights, s=scale: o.plain(b, w, s), device)
        found += _compared("fused_adamw", seconds, plain, size, ceiling, settings)
    return found


def all_rows(device: str, total: int = P, parameters: int = PARAMETERS, copied: int = 2**28) -> list[dict]:
    """Everything; the ceiling is measured in the same run."""
    rows = copy_bandwidth(device, copied)
    for measure in (gram_rows, combine_rows, adamw_rows):
        rows += measure(device, rows[0]["value"], total, parameters)
    return rows


class _Trained:
    """Parameters with AdamW's state on the device."""

    def __init__(self, blocks: list[Tensor], device: str) -> None:
        self.params = [torch.ones(block.shape[1:], device=device, requires_grad=True) for block in blocks]
        self.firsts, self.seconds = ([torch.zeros_like(p, requires_grad=False) for p in self.params] for _ in range(2))
        self.steps = [torch.zeros((), device=device) for _ in self.params]
        options = {"lr": ADAMW["lr"], "betas": (0.9, 0.999), "eps": ADAMW["eps"], "weight_decay": 0.01}
        options["capturable"] = device != "cpu"
        self.optimizer = torch.optim.AdamW(self.params, fused=True, **options)

    def fused(self, blocks: list[Tensor], weights: Tensor, scale: Tensor) -> None:
        state = (self.firsts, self.seconds, self.steps)
        fused_adamw(self.params, blocks, weights, None, *state, **ADAMW, scale=scale, impl=_impl(weights.device.type))

    def plain(self, blocks: list[Tensor], weights: Tensor, scale: Tensor) -> None:
        gradients = [gradient.to(torch.float32) for gradient in _torch_combine(blocks, weights)]
        torch._foreach_mul_(gradients, scale)
        for param, gradient in zip(self.params, gradients, strict=True):
            param.grad = gradient
        self.optimizer.step()


def _blocks(count: int, shapes: Sequence[tuple[int, int]], dtype: torch.dtype, device: str) -> list[Tensor]:
    random = torch.Generator(device).manual_seed(0)
    return [torch.randn(count, *shape, generator=random, device=device).to(dtype) for shape in shapes]


def _impl(device: str) -> str:
    """On a GPU a check must not pass by way of the twin."""
    return "auto" if device == "cpu" else "triton"


def _torch_gram(rows: Tensor | list[Tensor]) -> Tensor:
    stacked = rows if isinstance(rows, Tensor) else torch.cat([block.flatten(1) for block in rows], 1)
    return stacked @ stacked.mT


def _torch_combine(blocks: list[Tensor], weights: Tensor) -> list[Tensor]:
    return [torch.tensordot(weights.to(block.dtype), block, 1) for block in blocks]


def _same(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    error = float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())
    if not error <= tolerance:
        raise RuntimeError(f"wrong result, so no number: relative error {error:.2e}, allowed {tolerance:.0e}")


def _settings(device: str, dtype: str, count: int, elements: int) -> dict:
    return {"device": device, "dtype": dtype, "rewards": count, "elements": elements}


def _compared(
    name: str, seconds: list[float], plain: list[float], size: int, ceiling: float, settings: dict
) -> list[dict]:
    middle = statistics.median(plain)
    return [
        row(name, "seconds", seconds, settings),
        row(name, "share_of_copy", [size / value / ceiling for value in seconds], settings),
        row(f"{name} by torch", "seconds", plain, settings),
        row(name, "speed_against_torch", [middle / value for value in seconds], settings),
    ]
