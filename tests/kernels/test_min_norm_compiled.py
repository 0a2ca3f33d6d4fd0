"""The min-norm kernel as compiled for sm_80 and sm_90, without a GPU: registers, spills, shared memory."""

import pytest
from worker import run_worker

pytest.importorskip("triton")
TARGETS = ("80", "90")


@pytest.fixture(scope="module")
def compiled() -> list[dict]:
    rows = run_worker("min_norm_compile_worker.py", *TARGETS)
    assert len(rows) == 3 * 2 * len(TARGETS)
    return rows


def test_the_tile_stays_in_registers(compiled: list[dict]) -> None:
    # Bytes stored and loaded: ptxas may stop at a rounder number of registers and park a few scalars.
    assert [row for row in compiled if row["spilled"] > 64] == []


def test_registers_leave_room_for_several_problems(compiled: list[dict]) -> None:
    # 128 registers and one warp: 16 problems side by side on a multiprocessor.
    assert max(row["registers"] for row in compiled if row["width"] == 8) <= 128


def test_up_to_eight_rows_no_memory_is_shared_and_no_thread_waits(compiled: list[dict]) -> None:
    assert {(row["shared"], row["barriers"]) for row in compiled if row["width"] == 8} == {(0, 0)}
    # Above that the one transposed load goes through shared memory: a tile of fp64.
    assert [row for row in compiled if row["shared"] > 8 * row["width"] ** 2] == []
