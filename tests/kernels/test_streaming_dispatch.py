"""Which implementation runs: the launcher is called where the kernel can run, and impl="triton" says why it cannot."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from marble_kernels import dispatch
from marble_kernels.combine import combine
from marble_kernels.fused_adamw import fused_adamw
from marble_kernels.gram import gram

ROWS = torch.ones(2, 8)


def _gram(impl: str, rows: torch.Tensor = ROWS) -> object:
    return gram(rows, impl=impl)


def _combine(impl: str, rows: torch.Tensor = ROWS) -> object:
    return combine(rows, torch.ones(2), impl=impl)


def _adamw(impl: str, rows: torch.Tensor = ROWS) -> object:
    one = [torch.ones(rows.shape[1])]
    moments = [torch.ones(rows.shape[1])], [torch.ones(rows.shape[1])]
    options = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.0}
    return fused_adamw(one, rows, torch.ones(2), None, *moments, [torch.zeros(())], **options, impl=impl)


CALLS = {"gram": _gram, "combine": _combine, "fused_adamw": _adamw}
LAUNCHERS = {"gram": "gram_triton", "combine": "combine_triton", "fused_adamw": "adamw_triton"}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the launchers that were called; none of them launches."""
    calls: list[str] = []
    for name, launcher in LAUNCHERS.items():
        module = ModuleType(f"marble_kernels.{name}_triton")
        answer = [torch.zeros(8)] if name == "combine" else torch.zeros(1, 2, 2)
        setattr(module, launcher, lambda *a, name=name, answer=answer, **k: calls.append(name) or answer)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


@pytest.mark.parametrize("name", CALLS)
def test_auto_launches_where_nothing_stands_in_the_way(
    name: str, launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "obstacle", lambda tensors: None)
    CALLS[name]("auto")
    CALLS[name]("triton")
    assert launched == [name, name]
    CALLS[name]("torch")
    assert launched == [name, name]


@pytest.mark.parametrize("name", CALLS)
def test_auto_takes_the_twin_on_a_cpu(name: str, launched: list[str]) -> None:
    CALLS[name]("auto")
    assert launched == []


@pytest.mark.parametrize("name", CALLS)
def test_insisting_says_why_not(name: str, launched: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "installed", lambda: True)
    with pytest.raises(RuntimeError, match="cpu device"):
        CALLS[name]("triton")
    monkeypatch.setattr(dispatch, "installed", lambda: False)
    with pytest.raises(RuntimeError, match="pip install triton"):
        CALLS[name]("triton")
    CALLS[name]("auto")
    assert launched == []


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("rows", "message"),
    [(torch.ones(2, 8, dtype=torch.float64), "float64"), (torch.ones(8, 2).T, "not contiguous")],
)
def test_what_the_kernel_does_not_cover(
    name: str, rows: torch.Tensor, message: str, launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "obstacle", lambda tensors: None)
    with pytest.raises(RuntimeError, match=message):
        CALLS[name]("triton", rows)
    CALLS[name]("auto", rows)
    assert launched == []


def test_too_many_rows(monkeypatch: pytest.MonkeyPatch, launched: list[str]) -> None:
    monkeypatch.setattr(dispatch, "obstacle", lambda tensors: None)
    with pytest.raises(RuntimeError, match="33 rows"):
        gram(torch.ones(33, 4), impl="triton")
    assert gram(torch.ones(33, 4)).shape == (33, 33)
    assert launched == []


@pytest.mark.parametrize(
    ("capability", "version", "reason"),
    [((7, 5), (3, 6), "this device has 7.5"), ((9, 0), (3, 2), "Triton 3.2 is installed"), ((9, 0), (3, 3), None)],
)
def test_old_devices_and_compilers_are_left_to_torch(
    capability: tuple[int, int], version: tuple[int, int], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a CUDA device, of which an operand is all that is asked."""
    monkeypatch.setattr(dispatch, "installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(dispatch, "version", lambda: version)
    operand = SimpleNamespace(device=torch.device("cuda", 0))
    found = dispatch.obstacle([operand])  # type: ignore[list-item]
    assert found is None if reason is None else reason in (found or "")


def test_the_installed_version_is_read() -> None:
    triton = pytest.importorskip("triton")
    assert triton.__version__.startswith(".".join(map(str, dispatch.version())))
