"""The streaming kernels on a GPU: the interpreter's cases, real sizes, CUDA graphs, no copy to the host, P > 2^31."""

from collections.abc import Callable

import pytest
import torch
from operands import Guarded, blocks, combine_error, flat, gram_error
from streaming_cases import CASES

from marble_kernels.combine import clip_scale, combine
from marble_kernels.fused_adamw import fused_adamw
from marble_kernels.gram import gram

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
LORA_LIKE = tuple((16, 256) if index % 2 else (1536, 16) for index in range(60))


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    CASES[name]("cuda")


@pytest.mark.parametrize("count", range(1, 33))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gram_at_real_sizes(count: int, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(1)
    guarded = Guarded("cuda")
    rows = [guarded.block(block) for block in blocks(count, LORA_LIKE, random, dtype)]
    found = gram(rows, impl="triton")
    # A sum over a million elements, in fp32 per thread and fp64 at the end.
    assert gram_error(found, flat(rows)) < 2e-6
    assert torch.equal(found, gram(rows, impl="triton"))
    assert guarded.intact()


@pytest.mark.parametrize("count", [1, 5, 10, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_combine_at_real_sizes(count: int, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(1)
    guarded = Guarded("cuda")
    rows = [guarded.block(block) for block in blocks(count, LORA_LIKE, random, dtype)]
    weights = torch.randn(count, generator=random).cuda()
    out = [guarded.written(torch.zeros(shape)) for shape in LORA_LIKE]
    combine(rows, weights, out=out, impl="triton")
    assert combine_error(flat([tensor.unsqueeze(0) for tensor in out])[0], flat(rows), weights) < 2e-6
    assert guarded.intact()


class Problem:
    """A bank and AdamW's tensors at fixed addresses, as a captured graph needs them."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.params = [torch.randn(shape, device="cuda", dtype=dtype) for shape in LORA_LIKE]
        self.rows = [torch.randn(5, *shape, device="cuda") for shape in LORA_LIKE]
        self.shared = [torch.randn(shape, device="cuda") for shape in LORA_LIKE]
        self.firsts, self.seconds = ([torch.zeros_like(param) for param in self.params] for _ in range(2))
        self.steps = [torch.zeros((), device="cuda") for _ in LORA_LIKE]
        self.weights, self.lr = torch.rand(5, device="cuda"), torch.tensor(1e-3, device="cuda")
        self.usable = torch.tensor(True, device="cuda")
        self.gram = torch.zeros(6, 6, device="cuda")
        self.combined = [torch.zeros_like(tensor) for tensor in self.shared]

    def step(self, impl: str = "triton") -> None:
        self.gram.copy_(gram(self.rows, impl=impl, shared=self.shared))
        scale = clip_scale(self.gram, self.weights, 1.0)
        combine(self.rows, self.weights, self.shared, scale, self.combined, impl)
        fused_adamw(
            self.params, self.rows, self.weights, self.shared, self.firsts, self.seconds, self.steps, lr=self.lr,
            beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01, scale=scale, usable=self.usable, impl=impl,
        )  # fmt: skip

    def results(self) -> list[torch.Tensor]:
        return [self.gram, *self.combined, *self.params, *self.firsts, *self.seconds, *self.steps]


def _problems(count: int) -> list[Problem]:
    found = []
    for _ in range(count):
        torch.manual_seed(0)
        found.append(Problem())
    return found


def test_a_captured_step_replays() -> None:
    replayed, eager = _problems(2)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        replayed.step()  # compiles, and uploads the tables
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed.step()
    eager.step()
    for turn in range(3):
        for problem in (replayed, eager):
            problem.lr.fill_(1e-3 / (turn + 1))
            problem.usable.fill_(turn != 1)
            for row in problem.rows:
                row.mul_(1.5)
        graph.replay()
        eager.step()
    for left, right in zip(replayed.results(), eager.results(), strict=True):
        assert torch.equal(left, right)
    assert eager.steps[0].item() == 3


def test_a_capture_without_a_warm_up_says_what_to_do() -> None:
    rows = torch.randn(2, 1000, device="cuda")
    gram(rows.clone(), impl="triton")
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="once before the capture"), torch.cuda.graph(graph):
        gram(rows, impl="triton")


def test_the_kernels_agree_with_torch_over_steps() -> None:
    kernel, twin = _problems(2)
    for _ in range(5):
        kernel.step("triton")
        twin.step("torch")
    for left, right in zip(kernel.results(), twin.results(), strict=True):
        assert float((left - right).abs().max() / right.abs().max()) < 5e-6


def _copies(run: Callable[[], None]) -> list[str]:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        run()
        torch.cuda.synchronize()
    names = [event.name for event in profile.events()]
    return [name for name in names if "DtoH" in name or "HtoD" in name]


def test_a_step_copies_nothing_to_or_from_the_host() -> None:
    problem = Problem()
    problem.step()
    torch.cuda.synchronize()
    assert _copies(problem.step) == []
    # The check sees a copy where there is one.
    assert _copies(lambda: problem.steps[0].item())


def test_more_elements_than_fit_in_32_bits() -> None:
    length = 2**31 + 4096
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of GPU memory")
    rows = torch.zeros(2, length, dtype=torch.bfloat16, device="cuda")
    rows[0, -3:], rows[1, -2:], rows[0, 5] = 2, 3, 1
    assert gram(rows, impl="triton").tolist() == [[13, 12], [12, 18]]
    weights = torch.tensor([1.0, -2.0], device="cuda")
    out = torch.full((length,), torch.nan, dtype=torch.bfloat16, device="cuda")
    combine(rows, weights, out=out, impl="triton")
    assert out[-4:].tolist() == [0, 2, -4, -4]
    assert out[5].item() == 1
    assert int(out.count_nonzero()) == 4
