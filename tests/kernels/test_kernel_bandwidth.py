"""The bandwidth benchmark runs, on a CPU at tiny size, and prints no number for a wrong result."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import kernel_bandwidth


def test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = kernel_bandwidth.times
    monkeypatch.setattr(kernel_bandwidth, "times", lambda call, device: plain(call, device, repeats=3))
    rows = kernel_bandwidth.all_rows("cpu", total=4000, parameters=4, copied=1000)
    assert {row["method"] for row in rows} >= {"copy", "gram", "combine", "fused_adamw", "fused_adamw by torch"}
    for row in rows:
        assert set(row) == {"method", "metric", "value", "q20", "q80", "settings"}
        assert 0 < row["q20"] <= row["value"] <= row["q80"]


def test_a_wrong_result_has_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = kernel_bandwidth.gram
    monkeypatch.setattr(
        kernel_bandwidth,
        "gram",
        lambda rows, impl="torch": plain(rows, impl=impl) * (1.0 if isinstance(rows, torch.Tensor) else 1.1),
    )
    with pytest.raises(RuntimeError, match="so no number"):
        kernel_bandwidth.gram_rows("cpu", 1.0, total=4000, parameters=4)


def test_the_shapes_have_about_the_size_asked_for() -> None:
    shapes = kernel_bandwidth.lora_shapes()
    assert len(shapes) == kernel_bandwidth.PARAMETERS
    assert sum(a * b for a, b in shapes) == pytest.approx(kernel_bandwidth.P, rel=0.01)
