"""A rank killed under torchrun's agent: it restarts all, and they go on from the last checkpoint."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from distributed_worker import preloaded
from elastic_worker import EVERY, KILLED_AT, STEPS, main
from marble_opt import load_checkpoint
from toys import same

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


@pytest.fixture
def handlers() -> Iterator[None]:
    """Those of this process come back: the agent sets its own."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_a_killed_rank_resumes_and_ends_like_the_unbroken_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    # What torchrun --standalone --nproc-per-node 2 --max-restarts 1 makes of its arguments.
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        run_id="killed",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=1,
        monitor_interval=0.1,
        start_method=preloaded(),
    )
    elastic_launch(config, main)(tmp_path)
    ranks = [load_checkpoint(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    for each in ranks:
        assert each["attempt"] == 1, "the first attempt was killed"
        broken, whole = each["broken"], each["whole"]
        assert (broken.pop("resumed_from"), whole.pop("resumed_from")) == (KILLED_AT - KILLED_AT % EVERY, 0)
        assert broken["step"] == STEPS
        assert same(broken, whole)
    assert same(ranks[0], ranks[1])
