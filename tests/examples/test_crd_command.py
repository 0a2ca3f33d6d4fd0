"""`examples/train.py --algorithm crd` on two ranks."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from trainer_cases import SMALL, adapter_weights, small_trainer

from trainer import checkpoint

SCRIPT = Path(__file__).parents[2] / "examples" / "train.py"
OPTIONS = ("epochs=1", "rollout.prompts=4", "optimizer.steps_per_epoch=2", "crd.sampling=0.25", "seed=0")


@pytest.mark.soak
def test_two_ranks_of_crd_equal_one(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, str(SCRIPT), "--algorithm", "crd", "--output", str(tmp_path), *SMALL, *OPTIONS]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    state = checkpoint.load(tmp_path / "marble-seed0")
    assert state is not None
    alone = small_trainer("algorithm=crd", *OPTIONS, "crd.anchor.guidance=2")
    alone.train_epoch()
    saved = [weight for name in alone.adapters.names for weight in state["adapters"][name].values()]
    for a, b in zip(adapter_weights(alone), saved, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
