"""A rank killed under torchrun: the elastic agent restarts all, and they go on from the last checkpoint."""

import os
import subprocess
import sys
from pathlib import Path

from elastic_worker import EVERY, KILLED_AT, STEPS
from marble_opt import load_checkpoint
from toys import same

WORKER = Path(__file__).with_name("elastic_worker.py")


def test_a_killed_rank_resumes_and_ends_like_the_unbroken_run(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "--max-restarts", "1", "--monitor-interval", "0.1", str(WORKER), str(tmp_path)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=variables)
    assert done.returncode == 0, done.stderr
    ranks = [load_checkpoint(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    for each in ranks:
        assert each["attempt"] == 1, "the first attempt was killed"
        broken, whole = each["broken"], each["whole"]
        assert (broken.pop("resumed_from"), whole.pop("resumed_from")) == (KILLED_AT - KILLED_AT % EVERY, 0)
        assert broken["step"] == STEPS
        assert same(broken, whole)
    assert same(ranks[0], ranks[1])
