"""Cases of the min-norm kernel, run in the interpreter and on a GPU: against the oracle, between guard bands."""

from collections.abc import Callable
from contextlib import contextmanager
from unittest import mock

import torch
from min_norm_oracle import Problem, check
from torch import Generator, Tensor

from families import FAMILIES, grams
from marble_kernels.min_norm import min_norm

BAND = 37
Case = Callable[[str], None]
CASES: dict[str, Case] = {}


def _case(name: str) -> Callable[[Case], Case]:
    def add(case: Case) -> Case:
        CASES[name] = case
        return case

    return add


def banded(value: Tensor, bands: list[Tensor]) -> Tensor:
    """A copy between bands of NaN (True for bool), which ``bands`` collects."""
    poison = True if value.dtype == torch.bool else torch.nan
    buffer = torch.full((value.numel() + 2 * BAND,), poison, dtype=value.dtype, device=value.device)
    bands += [buffer[:BAND], buffer[BAND + value.numel() :]]
    return buffer[BAND : BAND + value.numel()].view(value.shape).copy_(value)


@contextmanager
def guarded_outputs(bands: list[Tensor]):
    """Outputs that ``torch.empty`` makes are NaN, and lie between bands of NaN."""
    empty = torch.empty

    def make(*shape: int, **options: object) -> Tensor:
        found = empty(*shape, **options)
        return banded(found.fill_(torch.nan), bands) if found.is_floating_point() else found

    with mock.patch.object(torch, "empty", make):
        yield


def solve_guarded(problem: Problem, device: str) -> None:
    """Launch the kernel on guarded copies, check against the oracle, and that every band is as it was."""
    bands: list[Tensor] = []
    copy = lambda value: None if value is None else banded(value.to(device), bands)  # noqa: E731
    gram, mask, prior = copy(problem.gram), copy(problem.mask), copy(problem.prior)
    with guarded_outputs(bands):
        found = min_norm(gram, mask, problem.floor, problem.normalize, prior, impl="triton")
    check(problem, type(found)(*(part.cpu() for part in found)))
    for band in bands:
        assert (band if band.dtype == torch.bool else band.isnan()).all(), "written past an end"
    assert len(bands) >= 6, "inputs or outputs were not guarded"


def _random(seed: int) -> Generator:
    return Generator().manual_seed(seed)


for size in (1, 2, 3, 5, 8, 9, 17, 32):

    @_case(f"gaussian {size}")
    def _(device: str, size: int = size) -> None:
        solve_guarded(Problem(grams("gaussian", _random(size), 2, size, size + 3)), device)

    @_case(f"options {size}")
    def _(device: str, size: int = size) -> None:
        random = _random(100 + size)
        mask = torch.rand(2, size, generator=random) < 0.7
        prior = 0.2 + torch.rand(2, size, generator=random, dtype=torch.float64)
        gram = grams("gaussian", random, 2, size, size + 3)
        gram = torch.where(mask.unsqueeze(-1) & mask.unsqueeze(-2), gram, torch.nan)
        solve_guarded(Problem(gram, mask, 0.4 / size, True, prior), device)


for family in FAMILIES:

    @_case(f"family {family}")
    def _(device: str, family: str = family) -> None:
        random = _random(7)
        for size, length in ((5, 3), (5, 9), (13, 5)):
            solve_guarded(Problem(grams(family, random, 3, size, length)), device)
        solve_guarded(Problem(grams(family, random, 2, 6, 4), floor=0.05), device)
        solve_guarded(Problem(grams(family, random, 2, 6, 4), normalize=True), device)


for scale in (1e-8, 1e-4, 1e4, 1e8):

    @_case(f"scale {scale}")
    def _(device: str, scale: float = scale) -> None:
        gram = grams("gaussian", _random(3), 3, 5, 4)
        plain, scaled = (min_norm(g.to(device), impl="triton") for g in (gram, gram * scale**2))
        torch.testing.assert_close(scaled.alpha, plain.alpha, rtol=0, atol=1e-13)
        torch.testing.assert_close(scaled.value, plain.value * scale**2, rtol=1e-12, atol=0)


@_case("single precision")
def _(device: str) -> None:
    gram = grams("gaussian", _random(4), 3, 5, 9).float()
    solve_guarded(Problem(gram), device)
    assert min_norm(gram.to(device), impl="triton").alpha.dtype == torch.float32


@_case("none active")
def _(device: str) -> None:
    mask = torch.tensor([[False] * 3, [True, False, True]])
    gram = torch.eye(3, dtype=torch.float64).repeat(2, 1, 1)
    gram[0] = torch.nan
    found = min_norm(gram.to(device), mask.to(device), impl="triton")
    assert found.alpha.tolist() == [[0, 0, 0], [0.5, 0, 0.5]]
    assert (found.value.tolist(), found.gap.tolist()) == ([0, 0.5], [0, 0])


@_case("zero gram")
def _(device: str) -> None:
    found = min_norm(torch.zeros(1, 4, 4, dtype=torch.float64, device=device), impl="triton")
    assert abs(found.alpha.sum().item() - 1) < 1e-14
    assert (found.value.item(), found.gap.item()) == (0, 0)


@_case("zero row leaves unit rows")
def _(device: str) -> None:
    gram = torch.diag(torch.tensor([4.0, 0.0, 1.0, torch.inf], dtype=torch.float64)).to(device)
    found = min_norm(gram[None], normalize=True, impl="triton")
    assert found.alpha.tolist() == [[0.5, 0, 0.5, 0]]


@_case("not finite")
def _(device: str) -> None:
    gram = torch.full((1, 3, 3), torch.nan, dtype=torch.float64, device=device)
    found = min_norm(gram, impl="triton")
    assert found.alpha.isnan().all()
    assert found.gap.isnan().all()


@_case("empty batch")
def _(device: str) -> None:
    found = min_norm(torch.ones(0, 3, 3, dtype=torch.float64, device=device), impl="triton")
    assert (found.alpha.shape, found.gap.shape) == ((0, 3), (0,))


@_case("leading dimensions and strides")
def _(device: str) -> None:
    gram = grams("gaussian", _random(5), 6, 4).view(2, 3, 4, 4).to(device)
    plain = min_norm(gram, impl="triton")
    strided = min_norm(gram.transpose(0, 1).flip(0), impl="triton")
    assert torch.equal(strided.alpha, plain.alpha.transpose(0, 1).flip(0))
    assert plain.value.shape == (2, 3)
