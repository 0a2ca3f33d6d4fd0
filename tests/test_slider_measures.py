"""What benchmarks/slider.py measures fronts by."""

import math

import pytest
import torch

from benchmarks.slider_measures import (
    evenness,
    exact_hypervolume,
    hypervolume,
    monotone,
    non_dominated,
    saturation,
    spacing,
)


def test_a_front_keeps_what_nothing_else_beats() -> None:
    points = [(0.0, 1.0), (0.5, 0.5), (0.4, 0.4), (1.0, 0.0), (1.0, -1.0), (0.5, 0.5)]
    assert non_dominated(points) == [0, 1, 3]


def test_the_hypervolume_is_the_area_that_is_dominated() -> None:
    assert exact_hypervolume([(1.0, 1.0)], (0.0, 0.0)) == pytest.approx(1)
    assert exact_hypervolume([(1.0, 0.5), (0.5, 1.0), (0.2, 0.2)], (0.0, 0.0)) == pytest.approx(0.75)
    assert exact_hypervolume([(-1.0, 2.0), (2.0, -1.0)], (0.0, 0.0)) == 0, "beyond the reference in one value"


def test_the_hypervolume_equals_a_count_of_dominated_cells_and_pymoo() -> None:
    generator = torch.Generator().manual_seed(0)
    cells = torch.cartesian_prod(*[(torch.arange(400) + 0.5) / 400] * 2)
    for _ in range(5):
        points = torch.rand(7, 2, generator=generator)
        covered = (cells.unsqueeze(1) < points).all(-1).any(-1).double().mean().item()
        pairs = [(float(x), float(y)) for x, y in points]
        assert exact_hypervolume(pairs, (0.0, 0.0)) == pytest.approx(covered, abs=5e-3)
    pytest.importorskip("pymoo")
    assert hypervolume(pairs, (0.0, 0.0)) == pytest.approx(exact_hypervolume(pairs, (0.0, 0.0)), abs=1e-12)


def test_even_steps_have_no_spacing_and_a_front_rises_in_one_value() -> None:
    line = [(i / 4, 1 - i / 4) for i in range(5)]
    assert spacing(line) == pytest.approx(0, abs=1e-12)
    assert spacing([(0.0, 1.0), (0.0, 1.0), (1.0, 0.0)]) == pytest.approx(1)
    assert monotone(line) == 1
    assert monotone([*line, (0.5, 0.5)]) == 0.8
    assert math.isnan(spacing([(0.0, 0.0)] * 3))


def test_judges_follow_their_definitions() -> None:
    grey, red = torch.full((1, 3, 4, 4), 0.5), torch.zeros(1, 3, 4, 4)
    red[:, 0] = 0.7
    black_and_white = torch.zeros(1, 3, 4, 4)
    black_and_white[..., 2:] = 1
    assert saturation(torch.cat([grey, red])).tolist() == pytest.approx([0, 1])
    assert evenness(torch.cat([grey, red, black_and_white])).tolist() == pytest.approx([1, 1, 0])
