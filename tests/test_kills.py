"""Training processes killed by SIGKILL end, once resumed, as runs that were never interrupted, bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("kill_training.py")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")


def killed(folder: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, str(SCRIPT), str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.soak
def test_killed_at_twenty_random_moments(tmp_path: Path) -> None:
    seen = killed(tmp_path, "random", "--steps", "200", "--kills", "20")
    assert seen["equal"]
    assert (seen["step"], seen["kills"]) == (200, 20)
    assert len(set(seen["resumed_from"])) > 5, "the kills were spread over the run"


def test_killed_inside_the_writing_of_a_checkpoint(tmp_path: Path) -> None:
    seen = killed(tmp_path, "lines", "--stride", "19")
    assert seen["equal"]
    assert seen["resumed_from"] == sorted(seen["resumed_from"])
    assert set(seen["resumed_from"]) >= {0, 1, 2, 3}, "before, and inside of, the first to the fourth write"


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1, 11))
@pytest.mark.parametrize("every", ["1", "7"])
def test_killed_at_twenty_random_moments_with_many_seeds(tmp_path: Path, seed: int, every: str) -> None:
    assert killed(tmp_path, "random", "--kills", "20", "--seed", str(seed), "--every", every)["equal"]


@pytest.mark.soak
def test_killed_before_every_line_that_writes_a_checkpoint(tmp_path: Path) -> None:
    seen = killed(tmp_path, "lines")
    assert seen["equal"]
    assert seen["kills"] > 100
