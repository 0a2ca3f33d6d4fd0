"""The torch twin against every face of the simplex, and which of kernel and twin runs."""

import pytest
import torch
from min_norm_oracle import Problem, check
from torch import Generator

from families import FAMILIES, grams
from marble_kernels import dispatch
from marble_kernels import min_norm as module
from marble_kernels.min_norm import min_norm


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13, 32])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize("floor_share", [0.0, 0.4])
def test_options(size: int, normalize: bool, with_prior: bool, floor_share: float, random: Generator) -> None:
    mask = torch.rand(20, size, generator=random) < 0.7
    gram = grams("gaussian", random, 20, size, size + 3)
    gram = torch.where(mask.unsqueeze(-1) & mask.unsqueeze(-2), gram, torch.nan)
    prior = 0.2 + torch.rand(20, size, generator=random, dtype=torch.float64) if with_prior else None
    problem = Problem(gram, mask, floor_share / size, normalize, prior)
    check(problem, min_norm(*problem))
    alone = Problem(gram[:1], mask[:1], floor_share / size, normalize, None if prior is None else prior[:1])
    check(alone, min_norm(*alone))


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str, random: Generator) -> None:
    for size, length in ((5, 3), (8, 12), (13, 5)):
        for normalize in (False, True):
            problem = Problem(grams(family, random, 20, size, length), normalize=normalize)
            check(problem, min_norm(*problem), 1e-12)


def test_weights_of_zero_leave_the_simplex(random: Generator) -> None:
    gram, prior = grams("gaussian", random, 4, 3), torch.tensor([1.0, 0.0, 1.0]).double()
    found, without = min_norm(gram, prior=prior), min_norm(gram, torch.tensor([True, False, True]).expand(4, 3))
    torch.testing.assert_close(found.alpha, without.alpha)


def test_a_cpu_takes_the_twin(random: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(module, "min_norm_torch", lambda *operands: taken.append(operands))
    min_norm(grams("gaussian", random, 1, 3))
    assert len(taken) == 1


def test_a_supported_call_takes_the_kernel(random: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from marble_kernels import min_norm_triton

    gram = grams("gaussian", random, 2, 3)
    seen = []

    def launch(flat: torch.Tensor, *options: object) -> tuple[torch.Tensor, ...]:
        seen.append((flat.shape, options))
        return flat[:, 0], flat[:, 0, 0], flat[:, 0, 0]

    monkeypatch.setattr(dispatch, "obstacle", lambda tensors: None)
    monkeypatch.setattr(min_norm_triton, "launch_min_norm", launch)
    min_norm(gram)
    assert seen == [(gram.shape, (None, 0.0, False, None))]
    min_norm(gram, impl="torch")
    min_norm(grams("gaussian", random, 1, 33))
    assert len(seen) == 1


def test_insisting_on_the_kernel_names_the_obstacle(random: Generator) -> None:
    with pytest.raises(RuntimeError, match=r"cannot run: .*(CUDA|not installed)"):
        min_norm(torch.eye(3)[None], impl="triton")
    with pytest.raises(RuntimeError, match="takes K <= 32, got K = 33"):
        min_norm(torch.eye(33)[None], impl="triton")
    with pytest.raises(RuntimeError, match=r"takes fp32 or fp64, got torch\.float16"):
        min_norm(torch.eye(3, dtype=torch.float16)[None], impl="triton")
