"""The min-norm kernel on a GPU: every case, a thousand problems, no wait for the host, a captured graph."""

import pytest
import torch
from min_norm_cases import CASES
from min_norm_oracle import Problem, check
from torch import Generator
from torch.profiler import ProfilerActivity, profile

from families import grams
from marble_kernels.min_norm import min_norm

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("case", CASES)
def test_case(case: str) -> None:
    CASES[case]("cuda")


@pytest.mark.parametrize("size", [2, 5, 8, 16, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_thousand_problems(size: int, dtype: torch.dtype, random: Generator) -> None:
    gram = grams("gaussian", random, 1000, size, size + 3).to(dtype)
    found = min_norm(gram.cuda(), impl="triton")
    check(Problem(gram), type(found)(*(part.cpu() for part in found)))


def test_results_are_the_same_bits_again(random: Generator) -> None:
    gram = grams("gaussian", random, 1000, 5).cuda()
    first, second = min_norm(gram, impl="triton"), min_norm(gram, impl="triton")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_nothing_is_copied_to_the_host(random: Generator) -> None:
    gram, mask = grams("gaussian", random, 10, 5).cuda(), torch.ones(10, 5, dtype=torch.bool, device="cuda")
    min_norm(gram, mask, 0.05, True)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        min_norm(gram, mask, 0.05, True)
        torch.cuda.synchronize()
    names = [event.key for event in profiler.key_averages()]
    assert not [name for name in names if "Memcpy" in name or name == "aten::item"]
    assert [name for name in names if "min_norm_kernel" in name]


def test_a_captured_graph_follows_its_input(random: Generator) -> None:
    first, second = grams("gaussian", random, 2, 5).cuda()[:, None]
    gram = first.clone()
    min_norm(gram)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = min_norm(gram)
    for problem in (first, second):
        gram.copy_(problem)
        graph.replay()
        expected = min_norm(problem)
        assert torch.equal(captured.alpha, expected.alpha)
        assert torch.equal(captured.gap, expected.gap)
