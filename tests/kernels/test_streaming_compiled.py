"""The streaming kernels as compiled for sm_80 and sm_90, without a GPU: registers, shared memory, vector loads."""

import pytest
from worker import run_worker

pytest.importorskip("triton")
TARGETS = (80, 90)
# Registers at which as many programs of 128 threads fit side by side as gram_triton counts on (65536 registers). The
# numbers differ a little between versions of Triton.
REGISTERS = {2: 40, 5: 96, 10: 168, 12: 255, 16: 80, 32: 80}


@pytest.fixture(scope="module")
def compiled() -> list[dict]:
    return run_worker("streaming_compile_worker.py", *map(str, TARGETS))


def _of(compiled: list[dict], kernel: str) -> list[dict]:
    found = [row for row in compiled if row["name"].split()[0] == kernel]
    assert {row["target"] for row in found} == set(TARGETS)
    return found


def test_nothing_spills(compiled: list[dict]) -> None:
    assert [row for row in compiled if row["spilled"]] == []


def test_shared_memory_is_small(compiled: list[dict]) -> None:
    assert max(row["shared"] for row in compiled) <= 16384


def test_registers_leave_room_for_the_programs_counted_on(compiled: list[dict]) -> None:
    for row in _of(compiled, "gram"):
        if "misaligned" not in row["name"]:
            assert row["registers"] <= REGISTERS[int(row["name"].split()[2])], row
    for row in (*_of(compiled, "combine"), *_of(compiled, "adamw")):
        assert row["registers"] <= 128, row


def test_loads_and_stores_are_vectors(compiled: list[dict]) -> None:
    for row in compiled:
        kernel, *words = row["name"].split()
        count = int(words[1]) if words else 0
        if "misaligned" in words:
            assert row["vector_loads"] == 0, row
        elif kernel == "gram" and count <= 12:
            assert row["vector_loads"] >= count, row
        elif kernel == "gram":
            assert row["vector_loads"] + row["vector_copies"] >= 1, row
        elif kernel == "combine":
            assert row["vector_loads"] >= count + 1, row
            assert row["vector_stores"] >= 1, row
        elif kernel == "adamw":
            assert row["vector_loads"] >= count + 4, row
            assert row["vector_stores"] >= 3, row


def test_fp32_products_are_exact(compiled: list[dict]) -> None:
    for row in _of(compiled, "gram"):
        assert row["tf32"] == 0, row
        if "fp32" in row["name"]:
            assert row["tensor_core"] == 0, row
            assert row["fused"] > 0, row


def test_offsets_have_64_bits(compiled: list[dict]) -> None:
    for row in compiled:
        assert row["wide_offsets"] or row["name"] in ("reduce", "prepare"), row
